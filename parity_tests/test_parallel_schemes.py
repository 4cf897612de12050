"""torchgpt/parallel: several processes together compute what one does, with every scheme and its combinations.

Two and then four processes share all runs of `parallel_cases.CASES`, one after another: see parallel_child.py. The
tests read what the processes have left. `make parity-long` gives every run its 20 steps.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors import safe_open
from safetensors.numpy import save_file

from numpygpt.errors import InputError
from numpygpt.formats.slices import VALUES, read_slices
from numpygpt.model.config import PRESETS
from numpygpt.model.scheme import Scheme
from numpygpt.training.team import OneProcess
from parity_tests import parallel_child
from parity_tests.parallel_cases import (
    CASES,
    SAVED,
    STEPS,
    Case,
    count,
    difference,
    first_weights,
    micro_batches,
)
from parity_tests.tolerances import FACTOR, FLOAT64_SHARED
from torchgpt.model import GPTModel
from torchgpt.parallel import plans, sharded, team
from torchgpt.parallel.meta import held_by
from torchgpt.parallel.model import ParallelModel

ROOT = Path(__file__).parents[1]
LONG = settings.get_current_profile_name() == "long"
#: Seconds that all runs may take.
LIMIT = 1800 if LONG else 400
ALL = [case.longer if LONG else case for cases in CASES.values() for case in cases]
ALONE = OneProcess()


def run_processes(folder):
    """Run parallel_child.py, which is ended with all its processes if it takes too long."""
    command = [sys.executable, "-W", "error", "-m", "parity_tests.parallel_child", folder, *["long"][: int(LONG)]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as running:
        try:
            printed, _ = running.communicate(timeout=LIMIT)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 0, printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the processes left. They run once, also where several workers have tests of this file."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    shared = base / "parallel"
    with (base / "parallel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            shared.mkdir()
            run_processes(shared)
    assert (shared / "facts-4.json").exists(), "the processes failed: see the first failure"
    return shared


@pytest.fixture(scope="module")
def facts(folder):
    return {processes: json.loads((folder / f"facts-{processes}.json").read_text()) for processes in CASES}


def assert_agrees(folder, case, ours):
    """In float64 to FLOAT64_SHARED; in float32 with FACTOR times the errors of one process's PyTorch."""
    truth, peer = (alone(folder, "plain", case, dtype) for dtype in ("float64", case.dtype))
    assert ours.keys() == truth.keys()
    for kind in ("losses", "norms", "first", "last", "evaluated"):
        allowed = FLOAT64_SHARED if case.dtype == "float64" else FACTOR * difference(peer, truth, kind)
        assert difference(ours, truth, kind) <= allowed, kind


def alone(folder, how, case, dtype):
    return dict(np.load(folder / f"{how}, {case.alone.name}, in {dtype}.npz"))


# Every scheme


@pytest.mark.long_run
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_processes_together_compute_what_one_does(folder, case):
    assert_agrees(folder, case, dict(np.load(folder / f"{case.name}.npz")))


@pytest.mark.parametrize("case", [case for case in ALL if case.scheme == "ddp=2"], ids=lambda case: case.name)
def test_one_process_computes_it_too(folder, case):
    assert_agrees(folder, case, alone(folder, "one", case, case.dtype))


def test_accumulated_gradients_are_those_of_the_large_batch():
    case = Case("ddp=1", accumulate=3)
    model = parallel_child.build(case, ALONE)
    batches = micro_batches(case, 0)
    assert len({np.mean(targets == -100) for _, targets in batches}) == 3, "they are masked unevenly"
    large = [np.concatenate(ids) for ids in zip(*batches, strict=True)]
    found = []
    for parts in (batches, [large]):
        loss = model.gradients([model.place(*part) for part in parts], count(batches))
        gradients = {f"first.{name}": p.grad.numpy().copy() for name, p in model.parameters().items()}
        found.append({"losses": loss.numpy(), **gradients})
    for kind in ("losses", "first"):
        assert difference(*found, kind) <= FLOAT64_SHARED


def test_one_process_draws_the_dropout_of_the_model():
    config = replace(Case("ddp=1").config, drop_rate=0.2)
    weights = first_weights(config, torch.float64)
    ours = ParallelModel.build(config, Scheme(), ALONE, device=torch.device("cpu"), dtype=torch.float64)
    for name, whole in weights.items():
        ours.fill(name, whole)
    expected = GPTModel(config).double()
    expected.load_state_dict(weights, strict=False)
    inputs, targets = micro_batches(Case("ddp=1"), 0)[0]
    ours.seed(3)
    loss = ours.gradients([ours.place(inputs, targets)], count([(inputs, targets)]))
    torch.manual_seed(3)
    logits = expected(torch.from_numpy(inputs)).flatten(0, 1)
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).flatten()).item(), rel=FLOAT64_SHARED
    )


def test_processes_with_other_rows_draw_other_masks_and_those_of_tp_the_same(facts):
    different = {scheme: len(set(draws)) for scheme, draws in facts[2]["draws"].items()}
    assert different == {"ddp=2": 2, "fsdp=2": 2, "tp=2": 1, "pp=2": 2}


# The team


@pytest.mark.parametrize("processes", list(CASES))
def test_a_team_decides_together(facts, processes):
    for rank, told in enumerate(facts[processes]["decisions"]):
        first, last = rank == 0, rank == processes - 1
        bug = "ZeroDivisionError: a bug"
        assert told == {
            "any": [False, True],
            "first_does": "by 0",
            "first_refuses": "InputError: no such file",
            "first_fails": bug if first else f"RuntimeError: process 0 failed: {bug}",
            "agree": rank,
            "one_refuses": "InputError: no such file",
            "one_fails": bug if last else f"RuntimeError: process {processes - 1} failed: {bug}",
        }


@pytest.mark.parametrize("processes", list(CASES))
def test_the_others_notice_when_a_process_dies(facts, processes):
    death = facts[processes]["death"]
    assert death["noticed"].startswith("process 0 has lost another process of the run: ")
    assert "\n" not in death["noticed"]
    assert death["seconds"] < parallel_child.TIME_LIMIT


@pytest.fixture
def environment(monkeypatch):
    """Sets torchrun's variables, as they are of the first of two processes, with changes; None unsets one."""

    def set_to(**changes):
        port = str(parallel_child.free_port())
        whole = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in {**whole, **changes}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return set_to


def test_without_torchrun_there_is_one_process(environment):
    environment(**dict.fromkeys(team.VARIABLES))
    assert isinstance(team.join(), OneProcess)
    assert team.environment_rank() == 0
    assert team.gather(team.join(), "value") == ["value"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None, "MASTER_PORT": None}, "has WORLD_SIZE, MASTER_ADDR but not RANK, MASTER_PORT: start"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE in the environment is 'two'; expected a number"),
        ({"RANK": "-1"}, "RANK in the environment is '-1'; expected a number"),
        ({"RANK": "2"}, "RANK in the environment is 2; expected a number below WORLD_SIZE 2"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT in the environment is 70000; expected 1 to 65535"),
        ({"RANK": "1"}, "process 1 could not join the 2 processes at 127.0.0.1:"),
        ({}, "process 0 could not join the 2 processes at 127.0.0.1:"),
    ],
)
def test_what_nobody_can_join_gets_one_line(environment, changes, message):
    environment(**changes)
    with pytest.raises(InputError) as caught:
        team.join(time_limit=1.0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_port_in_use_is_named(environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment(MASTER_PORT=str(port))
        with pytest.raises(InputError, match=f"^the port of 127.0.0.1:{port} is in use by another program: choose"):
            team.join(time_limit=1.0)


# What cannot be shared


@pytest.mark.parametrize(
    ("scheme", "changes", "message"),
    [
        ("tp=3", {}, "tp=3 does not divide n_heads 4"),
        ("pp=3", {}, "pp=3 is more than n_layers 2"),
        ("tp=4", {"vocab_size": 5}, "tp=4 leaves a process without token ids: 5 are shared in slices of 2"),
        ("fsdp=3,tp=2", {}, "fsdp=3,tp=2: emb_dim 16 is not divisible by their product 6"),
    ],
)
def test_what_cannot_be_shared_gets_one_line(scheme, changes, message):
    with pytest.raises(InputError) as caught:
        plans.check(Scheme.of(scheme, None), replace(Case("ddp=1").config, **changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Without processes and memory


@pytest.mark.parametrize("scheme", [Scheme(fsdp=4), Scheme(tp=4), Scheme(pp=2), Scheme(2, 2, 2, 2)], ids=str)
def test_together_the_processes_hold_the_whole_model(scheme):
    config = replace(Case("ddp=1").config, tie_weights=False)
    held = [held_by(rank, config, scheme) for rank in range(scheme.size)]
    with torch.device("meta"):
        whole = {name: parameter.numel() for name, parameter in GPTModel(config).named_parameters()}
    for name, number in whole.items():
        copies = sum(own[name].bytes // 4 for own in held if name in own) / number
        assert copies == scheme.ddp * (scheme.tp if is_alike_in_tp(name) else 1), name


def is_alike_in_tp(name):
    """Whether every process of tp has it: norms, positions, and the biases after a sum."""
    return "norm" in name or "pos_emb" in name or name.endswith(("out_proj.bias", "layers.2.bias"))


def test_what_a_process_would_hold_of_the_largest_gpt2():
    config = PRESETS["gpt2-xl"]
    last = held_by(9, config, Scheme(fsdp=2, tp=5))
    assert last["trf_blocks.47.ff.layers.0.weight"] == ((6400 // 5, 1600 // 2), 4 * 1280 * 800)
    assert last["trf_blocks.47.att.out_proj.weight"].shape == (1600 // 2, 1600 // 5)
    assert last["trf_blocks.47.norm1.scale"].shape == (1600 // 2,)
    assert last["tok_emb.weight"].shape == (50257 - 4 * 10052, 1600 // 2)
    assert held_by(3, config, Scheme(pp=4)).keys() >= {"trf_blocks.36.norm1.scale", "out_head.weight"}


def test_a_rank_that_is_no_process_is_refused():
    with pytest.raises(InputError, match=r"^rank 2 is no process of tp=2; expected a number from 0 to 1$"):
        held_by(2, Case("tp=2").config, Scheme(tp=2))


# Checkpoints in slices


def saved_by(processes, folder):
    """What the checkpoint of so many processes ought to hold."""
    return dict(np.load(folder / f"saved-{processes}-by-0.npz"))


def load_alone(checkpoint, case):
    return parallel_child.loaded(parallel_child.build(case, ALONE), checkpoint)


@pytest.mark.parametrize(("processes", "case"), list(zip(CASES, SAVED, strict=True)))
def test_one_process_loads_what_several_saved_while_they_went_on(folder, processes, case):
    loaded, values = load_alone(folder / f"checkpoint-{processes}", case._replace(scheme="ddp=1"))
    expected = saved_by(processes, folder)
    assert values == {"step": STEPS if LONG else case.steps}
    assert loaded.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(loaded[name], array), name


def test_four_processes_load_what_two_saved(folder, facts):
    expected = saved_by(2, folder)
    for rank in range(4):
        loaded = dict(np.load(folder / f"loaded-4-by-{rank}.npz"))
        assert loaded.keys() == expected.keys()
        assert all(np.array_equal(loaded[name], array) for name, array in expected.items())
    assert facts[4]["values"] == {"step": STEPS}


@pytest.mark.parametrize("processes", list(CASES))
def test_a_checkpoint_has_safetensors_and_json_and_no_pickle(folder, processes):
    files = sorted(path.name for path in (folder / f"checkpoint-{processes}").iterdir())
    shards = [f"shard-{number:05d}-model-00001-of-00001.safetensors" for number in range(1, processes + 1)]
    assert files == [*shards, VALUES]
    for name in shards:
        with safe_open(folder / f"checkpoint-{processes}" / name, "numpy") as file:
            assert list(file.keys())
    json.loads((folder / f"checkpoint-{processes}" / VALUES).read_text())
    assert not list(folder.glob(".numpygpt-*")), "nothing unfinished is left"


@pytest.fixture
def small(tmp_path):
    """A checkpoint of two tensors."""
    tensors = {"model.a": torch.arange(6.0).reshape(2, 3), "model.b": torch.ones(4)}
    sharded.start_saving(tmp_path / "checkpoint", tensors, {"model": {}}, ALONE).wait()
    return tmp_path / "checkpoint"


def refused(folder):
    """The message of reading the checkpoint."""
    with pytest.raises(InputError) as caught:
        read_slices(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_damaged_files_are_refused(small):
    shard = next(small.glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"x")
    assert f"{shard.name} is damaged: its SHA-256" in refused(small)
    shard.unlink()
    assert f"lacks a file: {shard.name}: No such file or directory" in refused(small)
    elsewhere = '{"values": {}, "sha256": {"../x.safetensors": ""}}'
    for nonsense in ("{}", "[]", "{", elsewhere, '{"values": 5, "sha256": {}}'):
        (small / VALUES).write_text(nonsense)
        assert f"{small / VALUES} is not what a checkpoint in slices has" in refused(small)
    (small / VALUES).unlink()
    assert f"{small / VALUES}" in refused(small)


@pytest.mark.parametrize("begins", [(0, 0), (0, 1)], ids=["the same place twice", "a part twice"])
def test_slices_that_overlap_are_refused(small, begins):
    """They have as many elements as the whole array, and would leave some of it unread."""
    for begin, name in zip((0, *begins[1:]), ("one", "two"), strict=True):
        places = {"DCP_SHARDING_INFO": json.dumps({"model.a": {"saved_offsets": [2 * begin]}})}
        save_file({"model.a": np.ones(4 - 2 * begin, np.float32)}, small / f"{name}.safetensors", places)
    checksums = {path.name: sha256(path.read_bytes()).hexdigest() for path in small.glob("[ot]*.safetensors")}
    (small / VALUES).write_text(json.dumps({"values": {"model": {}}, "sha256": checksums}))
    assert "the slices of model.a" in refused(small)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(small, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharded, "save", full)
    with pytest.raises(InputError, match=r"^the checkpoint .* cannot be written: No space left on device$"):
        sharded.start_saving(small, {"a": torch.zeros(1)}, {}, ALONE).wait()
    assert np.array_equal(read_slices(small).arrays("model")["b"], np.ones(4))
    assert [path.name for path in small.parent.iterdir()] == ["checkpoint"]
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        sharded.start_saving(small / "none" / "new", {"a": torch.zeros(1)}, {}, ALONE)
