"""Checkpoints: what is saved comes back bit for bit, a resumed run is the same run, damage is found."""

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.data.loader import create_dataloader_v1
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.errors import InputError
from numpygpt.formats import checkpoint as checkpoint_module
from numpygpt.formats.checkpoint import FILE_NAME, load_checkpoint, load_model, save_checkpoint
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.adamw import AdamW

CONFIG = GPTConfig(vocab_size=11, context_length=5, emb_dim=6, n_heads=2, n_layers=2, drop_rate=0.2, qkv_bias=True)
TRAINING = {"step": 7, "seed": 123, "losses": [2.5, 1 / 3, float("nan")], "name": 'élan "\\\n', "none": None}


@cache
def trained(config=CONFIG, dtype=np.float32, steps=1):
    """A model, its optimizer and their generator after a few steps on random ids; shared, so only to be read."""
    rng = TorchGenerator(5)
    model = GPTModel(config, seed=rng, dtype=dtype)
    optimizer = AdamW(model, lr=0.01, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.3)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (3, 5))
    for _ in range(steps):
        optimizer.step(model.loss_and_grads(ids[:, :-1], ids[:, 1:], rng=rng)[1])
    return model, optimizer, rng


def saved(directory, **more):
    """The path of a checkpoint with everything in it."""
    model, optimizer, rng = trained(**more)
    return save_checkpoint(
        directory,
        model,
        optimizer=optimizer,
        random_states={"training": rng.to_torch_state()},
        tokenizer="bytes",
        training=TRAINING,
    )


def assert_same_arrays(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        assert np.array_equal(ours[name], theirs[name]), name


# What is saved comes back


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tie_weights", [False, True])
def test_everything_comes_back_bit_for_bit(tmp_path, dtype, tie_weights):
    config = GPTConfig.of({**CONFIG.to_dict(), "tie_weights": tie_weights})
    path = saved(tmp_path / "new" / "folder", config=config, dtype=dtype)
    model, optimizer, rng = trained(config, dtype)
    for where in (path, str(path), path.parent):
        checkpoint = load_checkpoint(where)
        assert (checkpoint.path, checkpoint.config, checkpoint.tokenizer) == (path, config, "bytes")
        assert json.dumps(checkpoint.training) == json.dumps(TRAINING)
        restored = checkpoint.model()
        assert restored.dtype == dtype
        assert_same_arrays(restored.state_dict(), model.state_dict())
        restored_optimizer = AdamW(restored)
        checkpoint.restore_optimizer(restored_optimizer)
        ours, theirs = restored_optimizer.state_dict(), optimizer.state_dict()
        for moments in ("exp_avg", "exp_avg_sq"):
            assert_same_arrays(ours.pop(moments), theirs.pop(moments))
        assert ours == theirs
        assert_same_arrays(checkpoint.random_states(), {"training": rng.to_torch_state()})
    assert (restored.state_dict()["out_head.weight"] is restored.state_dict()["tok_emb.weight"]) == tie_weights


def test_the_file_is_plain_safetensors_with_pytorch_names(tmp_path):
    tensors = safetensors.numpy.load_file(saved(tmp_path))
    model, _, _ = trained()
    parameters = model.named_parameters()
    assert_same_arrays({name: tensors[name] for name in parameters}, parameters)
    others = {f"optimizer.{moments}.{name}" for moments in ("exp_avg", "exp_avg_sq") for name in parameters}
    assert set(tensors) == set(parameters) | others | {"random.training"}


def test_tied_weights_are_stored_once(tmp_path):
    config = GPTConfig.of({**CONFIG.to_dict(), "tie_weights": True})
    assert "out_head.weight" not in safetensors.numpy.load_file(saved(tmp_path, config=config))


def test_equal_states_make_equal_files(tmp_path):
    assert saved(tmp_path / "first").read_bytes() == saved(tmp_path / "second").read_bytes()


def test_saving_changes_nothing(tmp_path):
    model, optimizer, rng = trained()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    state = {"training": rng.to_torch_state()}
    save_checkpoint(tmp_path, model, optimizer=optimizer, random_states=state, training=TRAINING)
    assert_same_arrays(model.state_dict(), before)
    assert_same_arrays({"training": rng.to_torch_state()}, state)


def test_a_model_alone_can_be_saved_and_read_in_another_dtype(tmp_path):
    model, optimizer, _ = trained()
    save_checkpoint(tmp_path, model)
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.tokenizer, checkpoint.training, checkpoint.random_states()) == (None, {}, {})
    wider = load_model(tmp_path, np.float64)
    assert wider.dtype == np.float64
    assert_same_arrays(wider.state_dict(), {k: v.astype(np.float64) for k, v in model.state_dict().items()})
    assert not checkpoint.has_optimizer
    with pytest.raises(InputError, match="holds no optimizer"):
        checkpoint.restore_optimizer(optimizer)


def test_arrays_of_any_layout_are_saved_by_value(tmp_path):
    states = {
        "transposed": np.arange(6).reshape(2, 3).T,
        "every other": np.arange(9, dtype=np.uint32)[::2],
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 4)),
    }
    save_checkpoint(tmp_path, trained()[0], random_states=states)
    restored = load_checkpoint(tmp_path).random_states()
    assert {name: array.shape for name, array in restored.items()} == {n: a.shape for n, a in states.items()}
    assert_same_arrays(restored, states)


def test_generating_reads_no_optimizer_moments(tmp_path, monkeypatch):
    read = []
    original = checkpoint_module._TensorFile.read
    monkeypatch.setattr(
        checkpoint_module._TensorFile, "read", lambda self, name: read.append(name) or original(self, name)
    )
    saved(tmp_path)
    model = load_model(tmp_path)
    assert read == list(model.named_parameters())


def test_an_open_checkpoint_stays_whole_when_it_is_replaced(tmp_path):
    saved(tmp_path, steps=1)
    checkpoint = load_checkpoint(tmp_path)
    saved(tmp_path, steps=2)
    assert_same_arrays(checkpoint.model().state_dict(), trained(steps=1)[0].state_dict())
    assert_same_arrays(load_model(tmp_path).state_dict(), trained(steps=2)[0].state_dict())


# Resume


TOKENIZER = get_tokenizer("bytes")
TEXT = "A cat may look at a king, and a king may look away."
RESUME_CONFIG = GPTConfig(
    vocab_size=256, context_length=7, emb_dim=6, n_heads=3, n_layers=1, drop_rate=0.1, qkv_bias=False
)


def create_loader(rng):
    return create_dataloader_v1(TEXT, 2, 7, 4, tokenizer=TOKENIZER, rng=rng)


def new_run():
    rng = TorchGenerator(3)
    model = GPTModel(RESUME_CONFIG, seed=rng)
    return model, AdamW(model, lr=0.02), create_loader(rng), rng


def train(model, optimizer, loader, rng, batches, steps):
    """`steps` steps that begin with the rest of an epoch; returns their losses and the epoch they end in."""
    losses = []
    for _ in range(steps):
        if len(batches) == 0:
            batches = iter(loader)
        loss, grads = model.loss_and_grads(*next(batches), rng=rng)
        optimizer.step(grads)
        losses.append(float(loss))
    return losses, batches


STEPS = 8


@pytest.fixture(scope="module")
def uninterrupted():
    """The losses, the model and the generator of a whole run."""
    model, optimizer, loader, rng = new_run()
    losses, _ = train(model, optimizer, loader, rng, iter(loader), STEPS)
    return losses, model, rng


@pytest.mark.parametrize("stop", [0, 2, 5, 7])
def test_a_resumed_run_is_bit_identical(tmp_path, uninterrupted, stop):
    """Stops before the first step, within an epoch (five shuffled batches), between two; dropout is on."""
    first_model, first_optimizer, first_loader, first_rng = new_run()
    before, batches = train(first_model, first_optimizer, first_loader, first_rng, iter(first_loader), stop)
    save_checkpoint(
        tmp_path,
        first_model,
        optimizer=first_optimizer,
        random_states={"training": first_rng.to_torch_state()},
        training={"position": batches.position},
    )

    checkpoint = load_checkpoint(tmp_path)
    resumed_model = checkpoint.model()
    resumed_optimizer = AdamW(resumed_model)
    checkpoint.restore_optimizer(resumed_optimizer)
    resumed_rng = TorchGenerator.from_torch_state(checkpoint.random_states()["training"])
    resumed_loader = create_loader(resumed_rng)
    rest = resumed_loader.resume(checkpoint.training["position"])
    after, _ = train(resumed_model, resumed_optimizer, resumed_loader, resumed_rng, rest, STEPS - stop)

    whole, model, rng = uninterrupted
    assert before + after == whole
    assert_same_arrays(resumed_model.state_dict(), model.state_dict())
    assert np.array_equal(resumed_rng.to_torch_state(), rng.to_torch_state())


# Damage


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    """The bytes of a small checkpoint, and what reading all of it gives."""
    config = GPTConfig.of({**CONFIG.to_dict(), "n_layers": 1, "qkv_bias": False})
    path = saved(tmp_path_factory.mktemp("whole"), config=config)
    return path.read_bytes(), read_everything(path)


def read_everything(path):
    checkpoint = load_checkpoint(path)
    model = checkpoint.model()
    optimizer = AdamW(model)
    checkpoint.restore_optimizer(optimizer)
    arrays = [*model.state_dict().values(), *optimizer.exp_avg.values(), *optimizer.exp_avg_sq.values()]
    arrays += checkpoint.random_states().values()
    numbers = (optimizer.steps, optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay)
    contents = (checkpoint.config, checkpoint.tokenizer, json.dumps(checkpoint.training), numbers)
    return contents, [array.tobytes() for array in arrays]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A path for damaged copies, one after the other."""
    return tmp_path_factory.mktemp("damaged") / FILE_NAME


@given(data=st.data())
def test_a_truncated_or_extended_file_is_refused(whole_file, damaged, data):
    contents, _ = whole_file
    length = data.draw(st.integers(0, len(contents) - 1))
    for changed in (contents[:length], contents + contents[: length + 1], contents[length + 1 :]):
        damaged.write_bytes(changed)
        with pytest.raises(InputError, match="is truncated, damaged or no safetensors file"):
            load_checkpoint(damaged)


@given(data=st.data())
def test_every_flipped_bit_is_found(whole_file, damaged, data):
    """Anywhere in the file: an InputError, or (JSON can spell a character in several ways) the same state."""
    contents, everything = whole_file
    header_length = 8 + int.from_bytes(contents[:8], "little")
    in_header, in_tensors = st.integers(0, header_length - 1), st.integers(header_length, len(contents) - 1)
    bits = st.tuples(in_header | in_tensors, st.integers(0, 7))
    for position, bit in data.draw(st.lists(bits, min_size=6, max_size=6)):
        changed = bytearray(contents)
        changed[position] ^= 1 << bit
        damaged.write_bytes(changed)
        try:
            found = read_everything(damaged)
        except InputError:
            continue
        assert position < header_length
        assert found == everything


def test_a_flipped_bit_names_its_tensor(tmp_path):
    path = saved(tmp_path)
    tensors = safetensors.numpy.load_file(path)
    name = "trf_blocks.1.ff.layers.2.weight"
    contents = bytearray(path.read_bytes())
    contents[contents.index(tensors[name].tobytes()) + 5] ^= 4
    path.write_bytes(contents)
    with pytest.raises(InputError, match=f"is damaged: the bytes of {name} are not those that were saved"):
        load_model(path)


def rewritten(path, tensors=None, edit=lambda header: None):
    """The checkpoint with other tensors, and its header edited and sealed again."""
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["numpygpt"])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    contents = header["contents"]
    if tensors is not None:
        stored = tensors(stored)
        contents["sha256"] = {name: hashlib.sha256(array).hexdigest() for name, array in stored.items()}
    edit(contents)
    header["sha256"] = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    safetensors.numpy.save_file(stored, path, metadata={"numpygpt": json.dumps(header)})


def test_wrong_names_and_shapes_are_all_listed(tmp_path):
    path = saved(tmp_path)

    def spoil(tensors):
        del tensors["pos_emb.weight"], tensors["final_norm.shift"]
        extra = {"extra.weight": np.ones(2), "more.bias": np.ones(3)}
        return {**tensors, **extra, "final_norm.scale": np.ones(4), "out_head.weight": np.ones((11, 7))}

    rewritten(path, spoil)
    with pytest.raises(InputError, match="cannot be used") as refused:
        load_model(path)
    misshaped = ("final_norm.scale (4,)", "out_head.weight (11, 7)")
    for fault in ("pos_emb.weight", "final_norm.shift", "extra.weight", "more.bias", *misshaped):
        assert fault in str(refused.value)


def test_moments_that_do_not_fit_are_all_listed(tmp_path):
    path = saved(tmp_path)

    def spoil(tensors):
        del tensors["optimizer.exp_avg.pos_emb.weight"]
        return {
            **tensors,
            "optimizer.exp_avg.extra": np.ones(2),
            "optimizer.exp_avg.final_norm.scale": np.ones(4),
        }

    rewritten(path, spoil)
    checkpoint = load_checkpoint(path)
    optimizer = AdamW(checkpoint.model())
    with pytest.raises(InputError, match="cannot be used") as refused:
        checkpoint.restore_optimizer(optimizer)
    for fault in ("pos_emb.weight", "extra", "final_norm.scale (4,)"):
        assert fault in str(refused.value)


def test_a_header_that_lists_other_tensors_is_refused(tmp_path):
    path = saved(tmp_path)

    def rename(contents):
        contents["sha256"]["gone"] = contents["sha256"].pop("random.training")

    rewritten(path, edit=rename)
    with pytest.raises(InputError, match=r"tensors missing \['gone'\], unexpected \['random\.training'\]"):
        load_checkpoint(path)


def test_an_edited_header_is_refused(tmp_path):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes().replace(rb"\"seed\": 123", rb"\"seed\": 124"))
    with pytest.raises(InputError, match=r"the header of the checkpoint .* is damaged"):
        load_checkpoint(path)


# Files of other kinds


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "is no numpygpt checkpoint"),
        ({"format": "pt"}, "is no numpygpt checkpoint"),
        ({"numpygpt": "no JSON"}, "is no numpygpt checkpoint"),
        ({"numpygpt": "[]"}, "is no numpygpt checkpoint"),
        ({"numpygpt": "{}"}, "is no numpygpt checkpoint"),
        ({"numpygpt": '{"format": "numpygpt trace", "version": 1}'}, "has format 'numpygpt trace' version 1"),
        ({"numpygpt": '{"format": "numpygpt checkpoint", "version": 9}'}, "version 9; expected .* version 1"),
        ({"numpygpt": '{"format": "numpygpt checkpoint", "version": 1}'}, "the header .* is damaged"),
    ],
)
def test_safetensors_files_of_other_kinds_are_refused(tmp_path, header, message):
    safetensors.numpy.save_file({"weight": np.ones(3)}, tmp_path / FILE_NAME, metadata=header)
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("contents", [b"", b"a page of text, no checkpoint\n" * 9, b"\x80\x04}", b"\0" * 64])
def test_other_files_are_refused(tmp_path, contents):
    (tmp_path / "model.pkl").write_bytes(contents)
    with pytest.raises(InputError, match=r"model\.pkl is truncated, damaged or no safetensors file"):
        load_checkpoint(tmp_path / "model.pkl")


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(InputError, match=f"there is no checkpoint {tmp_path}/nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"there is no checkpoint {tmp_path}/{FILE_NAME}"):
        load_model(tmp_path)


# Atomic writes


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def crash(*_arguments, **_keywords):
    raise KeyboardInterrupt


def fail(*_arguments, **_keywords):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "function", ["pathlib.Path.replace", "os.fsync", "safetensors.numpy.save_file", "pathlib.Path.chmod"]
)
@pytest.mark.parametrize(("failure", "raised"), [(crash, KeyboardInterrupt), (fail, InputError)])
def test_a_save_that_fails_leaves_the_previous_checkpoint(tmp_path, monkeypatch, function, failure, raised):
    before = saved(tmp_path, steps=1).read_bytes()
    monkeypatch.setattr(function, failure)
    with pytest.raises(raised):
        saved(tmp_path, steps=2)
    monkeypatch.undo()
    assert files_in(tmp_path) == [FILE_NAME]
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_library_failure_is_an_input_error(tmp_path, monkeypatch):
    def refuse(*_arguments, **_keywords):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", refuse)
    with pytest.raises(InputError, match=r"cannot write the checkpoint .*: I/O error: No space left"):
        saved(tmp_path)
    assert files_in(tmp_path) == []


def test_a_file_is_on_disk_before_it_takes_the_place_of_the_previous(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor):
        calls.append(("fsync", Path(f"/dev/fd/{descriptor}").resolve() if sys.platform == "linux" else None))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", lambda *paths: calls.append(("replace", None)) or replace(*paths))
    saved(tmp_path)
    assert [name for name, _ in calls] == ["fsync", "replace", "fsync"]
    if sys.platform == "linux":
        assert calls[0][1].name == FILE_NAME
        assert calls[2][1] == tmp_path.resolve()


def test_a_killed_save_leaves_the_previous_checkpoint_and_the_next_one_cleans_up(tmp_path):
    before = saved(tmp_path, steps=1).read_bytes()
    program = f"""
import os
from pathlib import Path
from numpygpt.formats.checkpoint import save_checkpoint
from numpygpt.model.gpt import GPTModel
Path.replace = lambda *paths: os._exit(9)
save_checkpoint({str(tmp_path)!r}, GPTModel({CONFIG.to_dict()!r}, seed=4))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 9
    assert files_in(tmp_path) == [f".{FILE_NAME}.unfinished", FILE_NAME]
    assert (tmp_path / FILE_NAME).read_bytes() == before
    saved(tmp_path, steps=2)
    assert files_in(tmp_path) == [FILE_NAME]


def test_a_checkpoint_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    assert saved(tmp_path).stat().st_mode == (tmp_path / "any").stat().st_mode


# What cannot be saved


def test_a_complex_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="a model of complex128 cannot be saved"):
        save_checkpoint(tmp_path, GPTModel(CONFIG, dtype=np.complex128))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(InputError, match=f"cannot write the checkpoint {directory}"):
            saved(directory)
    assert (tmp_path / "file").read_bytes() == b""
