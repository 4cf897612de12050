"""The processes of test_parallel_schemes.py: `python -m parity_tests.parallel_child FOLDER [long]`.

Groups of processes share every run of `CASES` one after another, and leave what the tests read in the folder: an .npz
file a run, and facts in JSON. With `long`, every run has STEPS steps.
"""

import json
import math
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import numpy as np
import torch

from numpygpt.errors import InputError
from numpygpt.formats.slices import read_slices
from numpygpt.model.scheme import Scheme
from numpygpt.training.team import OneProcess
from parity_tests import parallel_cases
from parity_tests.parallel_cases import (
    CASES,
    MAX_NORM,
    SAVED,
    Case,
    count,
    first_weights,
    micro_batches,
    results,
    train_alone,
)
from torchgpt.parallel import sharded
from torchgpt.parallel.model import ParallelModel
from torchgpt.parallel.team import connected, gather, join

#: Seconds: a busy machine may start a process that much later than another.
TIME_LIMIT = 300.0
CPU = torch.device("cpu")
#: A power of two, so that scaled gradients have the same digits.
SCALE = 8.0


def build(case, team, **changes):
    config, dtype = case.config, getattr(torch, case.dtype)
    how = {"rows_at_once": 11, **dict(case.how), **changes}
    model = ParallelModel.build(config, Scheme.of(case.scheme, team.size), team, device=CPU, dtype=dtype, **how)
    for name, whole in first_weights(config, dtype).items():
        model.fill(name, whole)
    return model


def placed_batches(model, case, step):
    batches = micro_batches(case, step)
    return [model.place(*batch) for batch in batches], count(batches)


def take_step(model, optimizer, case, step):
    loss = model.gradients(*placed_batches(model, case, step), SCALE)
    model.multiply_gradients(1 / SCALE)
    norms = model.norms()
    model.multiply_gradients(min(1.0, MAX_NORM / (math.hypot(*map(float, norms.values())) + 1e-6)))
    clipped = dict(model.each_whole(gradients_of(model))) if step == 0 else {}
    optimizer.step()
    return loss, norms, clipped


def gradients_of(model):
    return {name: parameter.grad for name, parameter in model.parameters().items()}


def train(case, team):
    """The same as `train_alone` gives, from all processes together; and the model and optimizer that are left."""
    model = build(case, team)
    optimizer = parallel_cases.optimizer_of(model.parameters().values())
    losses, norms, first = [], [], {}
    for step in range(case.steps):
        loss, norms_now, clipped = take_step(model, optimizer, case, step)
        first = first or clipped
        losses.append(loss.item())
        norms.append([norm.item() for norm in norms_now.values()])
        if step == 0:
            model.loss(*micro_batches(case, step)[0])  # changes nothing of the run
    assert len(set(map(str, gather(team, (losses, norms))))) == 1, "the processes differ"
    batch = micro_batches(case, 0)[0]
    evaluated = {"loss": torch.tensor(model.loss(*batch), dtype=torch.float64), "logits": model.logits(batch[0])}
    return results(losses, norms, first=first, last=dict(model.each_whole()), evaluated=evaluated), model, optimizer


def moments(model, optimizer):
    """What a checkpoint has: the weights, and the optimizer's moments."""
    parameters = model.parameters()
    pieces = {"model": parameters}
    for kind in ("exp_avg", "exp_avg_sq"):
        pieces[kind] = {name: optimizer.state[parameter][kind] for name, parameter in parameters.items()}
    return {f"{kind}.{name}": t for kind, held in pieces.items() for name, t in model.distributed(held).items()}


def whole(model, tensors):
    """Every tensor of a checkpoint, whole."""
    arrays = {}
    for kind in ("model", "exp_avg", "exp_avg_sq"):
        pieces = {name: sharded_piece(tensors[f"{kind}.{name}"]) for name in model.parameters()}
        arrays |= {f"{kind}.{name}": tensor.numpy() for name, tensor in model.each_whole(pieces)}
    return arrays


def sharded_piece(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def save_while_training(folder, model, optimizer, case, team):
    """Save a checkpoint, take a step while it is written, and then record what was to be saved."""
    tensors = moments(model, optimizer)
    expected = whole(model, tensors)
    values = {"model": {"step": case.steps}, "exp_avg": {}, "exp_avg_sq": {}}
    saving = sharded.start_saving(folder / f"checkpoint-{team.size}", tensors, values, team)
    take_step(model, optimizer, case, case.steps)
    saving.wait()
    return expected


def load_as(scheme, folder, team):
    """The tensors of the checkpoint that two processes saved, as these hold their slices, whole; and its values."""
    return loaded(build(Case(scheme), team), folder / "checkpoint-2")


def loaded(model, folder):
    saved, arrays = read_slices(folder), {}
    for kind in ("model", "exp_avg", "exp_avg_sq"):
        pieces = {name: model.slice_of(name, torch.from_numpy(array)) for name, array in saved.each_array(kind)}
        held = {name: piece for name, piece in pieces.items() if piece is not None}
        arrays |= {f"{kind}.{name}": tensor.numpy() for name, tensor in model.each_whole(held)}
    return arrays, saved.values("model")


def runs_of_one_process(processes, longer):
    """What the runs are compared with, and who computes it: plain PyTorch, or a `ParallelModel` in one process."""
    cases = [case.longer if longer else case for case in CASES[processes]]
    runs = [(case.alone, dtype, "plain") for case in cases for dtype in {"float64", case.dtype}]
    if processes == 2:
        runs += [(case.alone, case.dtype, "one") for case in cases if case.scheme == "ddp=2"]
    return sorted(set(runs))


def save_alone(run, folder):
    case, dtype, how = run
    arrays = train_alone(case, getattr(torch, dtype)) if how == "plain" else train(case, OneProcess())[0]
    np.savez(folder / f"{how}, {case.name}, in {dtype}.npz", **arrays)


def draws_of_dropout(scheme, team):
    """Each process's first random number after `seed`."""
    build(Case(scheme), team).seed(5)
    return team.gather(float(torch.rand(())))


def decisions(team):
    """What the team's own methods give."""

    def refuse_in(rank, error):
        def action():
            if team.rank == rank:
                raise error
            return team.rank

        return action

    def message_of(method, action):
        try:
            return method(action)
        except (InputError, RuntimeError, ZeroDivisionError) as error:
            return f"{type(error).__name__}: {error}"

    last = team.size - 1
    told = {
        "any": (team.any(False), team.any(team.rank == last)),
        "first_does": team.first_does(lambda: f"by {team.rank}"),
        "first_refuses": message_of(team.first_does, refuse_in(0, InputError("no such file"))),
        "first_fails": message_of(team.first_does, refuse_in(0, ZeroDivisionError("a bug"))),
        "agree": message_of(team.agree, refuse_in(-1, InputError("not said"))),
        "one_refuses": message_of(team.agree, refuse_in(last, InputError("no such file"))),
        "one_fails": message_of(team.agree, refuse_in(last, ZeroDivisionError("a bug"))),
    }
    return team.gather(told)


def after_a_death(team):
    """The last process is gone; how the others notice."""
    started = time.monotonic()
    if team.rank == team.size - 1:
        os._exit(0)
    try:
        with connected():
            team.any(True)
    except InputError as error:
        return {"noticed": str(error), "seconds": time.monotonic() - started}
    return {"noticed": None}


def take_part(rank, processes, port, folder, longer):
    """The work of one process of a group. It joins the others as torchrun's environment says."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    team = join(time_limit=TIME_LIMIT)
    facts = {"decisions": decisions(team)}
    for case in CASES[team.size]:
        run = case.longer if longer else case
        arrays, model, optimizer = train(run, team)
        if team.is_first:
            np.savez(folder / f"{run.name}.npz", **arrays)
        if case in SAVED:
            saved = save_while_training(folder, model, optimizer, run, team)
            np.savez(folder / f"saved-{team.size}-by-{team.rank}.npz", **saved)
    if team.size == 2:
        facts["draws"] = {scheme: draws_of_dropout(scheme, team) for scheme in ("ddp=2", "fsdp=2", "tp=2", "pp=2")}
    else:
        arrays, facts["values"] = load_as("fsdp=2,tp=2", folder, team)
        np.savez(folder / f"loaded-{team.size}-by-{team.rank}.npz", **arrays)
    for run in runs_of_one_process(team.size, longer)[team.rank :: team.size]:
        save_alone(run, folder)
    team.gather("all are done")
    facts["death"] = after_a_death(team)
    if team.is_first:
        (folder / f"facts-{team.size}.json").write_text(json.dumps(facts))
    os._exit(0)  # the group has lost a process, and cannot be left in order


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def run_group(processes, folder, longer):
    """Start the processes of a group and wait for them; whether all of them did their work."""
    forked = multiprocessing.get_context("fork")  # so that PyTorch is imported once
    given = processes, free_port(), folder, longer
    members = [forked.Process(target=take_part, args=(rank, *given)) for rank in range(processes)]
    for member in members:
        member.start()
    for member in members:
        member.join()
    return not any(member.exitcode for member in members)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(not all(run_group(processes, Path(sys.argv[1]), sys.argv[2:] == ["long"]) for processes in CASES))
