"""Checkpoints: what is saved comes back bit for bit, a resumed run is the same run, damage is found."""

import json
import os
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import numpygpt
from numpygpt.data.loader import create_dataloader_v1
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.errors import InputError
from numpygpt.formats import load_model
from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint, write_checkpoint
from numpygpt.formats.tensor_file import TensorFile
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of, model_section, saved_config, saved_tokenizer
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import Section
from numpygpt.training.adamw import AdamW
from parity_tests.command import python

CONFIG = GPTConfig(vocab_size=11, context_length=5, emb_dim=6, n_heads=2, n_layers=2, drop_rate=0.2, qkv_bias=True)
#: Options that older checkpoints do not name.
OTHER_WAYS = {"activation": "gelu_erf", "bias": False, "norm_eps": 0.1}
RUN = {"step": 7, "seed": 123, "losses": [2.5, 1 / 3, float("nan")], "name": 'élan "\\\n', "none": None}


@cache
def trained(config=CONFIG, dtype=np.float32, steps=1):
    """A model, its optimizer and their generator after a few steps on random ids. Tests share and only read them."""
    rng = TorchGenerator(5)
    model = GPTModel(config, seed=rng, dtype=dtype)
    optimizer = AdamW(model, lr=0.01, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.3)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (3, 5))
    for _ in range(steps):
        optimizer.step(model.loss_and_grads(ids[:, :-1], ids[:, 1:], rng=rng)[1])
    return model, optimizer, rng


def sections(**more):
    """Every section of a run."""
    model, optimizer, rng = trained(**more)
    return {
        "model": model_section(model, "bytes"),
        "optimizer": optimizer.section(),
        "random": Section({}, {"generator": rng.to_torch_state()}),
        "run": Section(RUN, {}),
    }


def saved(directory, **more):
    """The path of a checkpoint with everything in it."""
    return write_checkpoint(directory, sections(**more))


def assert_same_arrays(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        assert np.array_equal(ours[name], theirs[name]), name


# What is saved comes back


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ways", [{}, {"tie_weights": True}, OTHER_WAYS], ids=["plain", "tied", "other ways"])
def test_everything_comes_back_bit_for_bit(tmp_path, dtype, ways):
    config = GPTConfig.of({**CONFIG.to_dict(), **ways})
    path = saved(tmp_path / "new" / "folder", config=config, dtype=dtype)
    model, optimizer, rng = trained(config, dtype)
    for where in (path, str(path), path.parent):
        checkpoint = read_checkpoint(where)
        assert checkpoint.path == path
        assert checkpoint.names == ["model", "optimizer", "random", "run"]
        assert checkpoint.numpygpt_version == numpygpt.__version__
        assert (saved_config(checkpoint), saved_tokenizer(checkpoint)) == (config, "bytes")
        assert json.dumps(checkpoint.values("run")) == json.dumps(RUN)
        restored = model_of(checkpoint)
        assert restored.dtype == dtype
        assert_same_arrays(restored.state_dict(), model.state_dict())
        restored_optimizer = AdamW(restored)
        restored_optimizer.load_section(checkpoint)
        ours, theirs = restored_optimizer.state_dict(), optimizer.state_dict()
        for moments in ("exp_avg", "exp_avg_sq"):
            assert_same_arrays(ours.pop(moments), theirs.pop(moments))
        assert ours == theirs
        assert_same_arrays(checkpoint.arrays("random"), {"generator": rng.to_torch_state()})
    assert (restored.state_dict()["out_head.weight"] is restored.state_dict()["tok_emb.weight"]) == config.tie_weights


def test_a_checkpoint_from_before_an_option_was_there_loads_with_its_default(tmp_path):
    section = model_section(trained()[0])
    config = {name: value for name, value in CONFIG.to_dict().items() if name not in OTHER_WAYS}
    write_checkpoint(tmp_path, {"model": section._replace(values={**section.values, "config": config})})
    restored = load_model(tmp_path)
    assert restored.config == CONFIG
    assert_same_arrays(restored.state_dict(), trained()[0].state_dict())


def test_the_file_is_plain_safetensors_with_sections_and_pytorch_names(tmp_path):
    tensors = safetensors.numpy.load_file(saved(tmp_path))
    parameters = trained()[0].named_parameters()
    assert_same_arrays({name: tensors[f"model.{name}"] for name in parameters}, parameters)
    parts = ("model", "optimizer.exp_avg", "optimizer.exp_avg_sq")
    assert set(tensors) == {f"{part}.{name}" for part in parts for name in parameters} | {"random.generator"}


def test_tied_weights_are_stored_once(tmp_path):
    config = GPTConfig.of({**CONFIG.to_dict(), "tie_weights": True})
    assert "model.out_head.weight" not in safetensors.numpy.load_file(saved(tmp_path, config=config))


def test_equal_sections_make_equal_files(tmp_path):
    assert saved(tmp_path / "first").read_bytes() == saved(tmp_path / "second").read_bytes()


def test_saving_changes_nothing(tmp_path):
    before, after = sections(), sections()
    copies = {name: {key: array.copy() for key, array in part.arrays.items()} for name, part in before.items()}
    write_checkpoint(tmp_path, before)
    for name, part in after.items():
        assert_same_arrays(part.arrays, copies[name])
        assert json.dumps(before[name].values) == json.dumps(part.values)


def test_a_model_alone_can_be_saved_and_read_in_another_dtype(tmp_path):
    model, optimizer, _ = trained()
    write_checkpoint(tmp_path, {"model": model_section(model)})
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.names == ["model"]
    assert saved_tokenizer(checkpoint) is None
    wider = load_model(tmp_path, np.float64)
    assert wider.dtype == np.float64
    assert_same_arrays(wider.state_dict(), {k: v.astype(np.float64) for k, v in model.state_dict().items()})
    with pytest.raises(InputError, match="has no section 'optimizer', only: model"):
        optimizer.load_section(checkpoint)


ARRAYS = {
    "transposed": np.arange(6).reshape(2, 3).T,
    "every other": np.arange(9, dtype=np.uint32)[::2],
    "backwards": np.arange(5.0)[::-1],
    "big-endian": np.arange(5, dtype=">f4"),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 4)),
    "": np.array([True, False]),
    "half": np.arange(3, dtype=np.float16),
    "bytes": np.arange(7, dtype=np.uint8),
    "a.name.with.dots": np.array([-(2**63), 2**63 - 1]),
}


def test_arrays_of_any_layout_and_dtype_are_saved_by_value(tmp_path):
    write_checkpoint(tmp_path, {"any": Section({}, ARRAYS), "none": Section({}, {})})
    checkpoint = read_checkpoint(tmp_path)
    found = checkpoint.arrays("any")
    assert {name: array.shape for name, array in found.items()} == {n: a.shape for n, a in ARRAYS.items()}
    assert_same_arrays(found, {name: array.astype(array.dtype.name) for name, array in ARRAYS.items()})
    assert checkpoint.layouts("any") == {name: (array.dtype.name, array.shape) for name, array in ARRAYS.items()}
    assert checkpoint.arrays("none") == {}


def test_what_was_read_is_the_callers_to_change(tmp_path):
    saved(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    checkpoint.values("run")["name"] = "another"
    checkpoint.values("model")["config"]["n_layers"] = 7
    for array in checkpoint.arrays("model").values():
        array[...] = 0
    assert checkpoint.values("run")["name"] == RUN["name"]
    assert_same_arrays(model_of(checkpoint).state_dict(), trained()[0].state_dict())


def test_generating_reads_no_optimizer_moments(tmp_path, monkeypatch):
    saved(tmp_path)
    read = []
    original = TensorFile.read
    monkeypatch.setattr(TensorFile, "read", lambda self, name: read.append(name) or original(self, name))
    model = load_model(tmp_path)
    assert read == [f"model.{name}" for name in model.named_parameters()]


def test_an_open_checkpoint_stays_whole_when_it_is_replaced(tmp_path):
    saved(tmp_path, steps=1)
    checkpoint = read_checkpoint(tmp_path)
    saved(tmp_path, steps=2)
    assert_same_arrays(model_of(checkpoint).state_dict(), trained(steps=1)[0].state_dict())
    assert_same_arrays(load_model(tmp_path).state_dict(), trained(steps=2)[0].state_dict())


LOADING = """
import sys
from pathlib import Path
from numpygpt import load_model
import safetensors.numpy
def most_memory():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = most_memory()
model = load_model(sys.argv[1])
print(most_memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process has had at most")
@pytest.mark.parametrize("threads", [1, 2])
def test_loading_takes_at_most_half_the_bytes_of_the_file_above_the_model(tmp_path, threads):
    """The file is not in memory beside the model, and neither is a copy of the model."""
    sizes = {"vocab_size": 2000, "context_length": 1024, "emb_dim": 256, "n_layers": 6}
    model = GPTModel.unfilled({**CONFIG.to_dict(), **sizes})
    for array in model.named_parameters().values():
        array.fill(1)
    size = write_checkpoint(tmp_path, {"model": model_section(model)}).stat().st_size
    assert size > 20 * 2**20
    environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))}
    done = python("-c", LOADING, tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    above = int(done.stdout) - sum(array.nbytes for array in model.named_parameters().values())
    assert above < size // 2


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
    """It stops before the first step, within an epoch (of five shuffled batches), or between two. There is dropout."""
    first_model, first_optimizer, first_loader, first_rng = new_run()
    before, batches = train(first_model, first_optimizer, first_loader, first_rng, iter(first_loader), stop)
    write_checkpoint(
        tmp_path,
        {
            "model": model_section(first_model),
            "optimizer": first_optimizer.section(),
            "random": Section({}, {"generator": first_rng.to_torch_state()}),
            "data": Section({"position": batches.position}, {}),
        },
    )

    checkpoint = read_checkpoint(tmp_path)
    resumed_model = model_of(checkpoint)
    resumed_optimizer = AdamW(resumed_model)
    resumed_optimizer.load_section(checkpoint)
    resumed_rng = TorchGenerator.from_torch_state(checkpoint.arrays("random")["generator"])
    resumed_loader = create_loader(resumed_rng)
    rest = resumed_loader.resume(checkpoint.values("data")["position"])
    after, _ = train(resumed_model, resumed_optimizer, resumed_loader, resumed_rng, rest, STEPS - stop)

    whole, model, rng = uninterrupted
    assert before + after == whole
    assert_same_arrays(resumed_model.state_dict(), model.state_dict())
    assert np.array_equal(resumed_rng.to_torch_state(), rng.to_torch_state())


# Damage


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    """The bytes of a small checkpoint, and everything that is read from it."""
    config = GPTConfig.of({**CONFIG.to_dict(), "n_layers": 1, "qkv_bias": False})
    path = saved(tmp_path_factory.mktemp("whole"), config=config)
    return path.read_bytes(), read_everything(path)


def read_everything(path):
    checkpoint = read_checkpoint(path)
    model = model_of(checkpoint)
    optimizer = AdamW(model)
    optimizer.load_section(checkpoint)
    arrays = [array for name in checkpoint.names for array in checkpoint.arrays(name).values()]
    arrays += [*model.state_dict().values(), *optimizer.section().arrays.values()]
    values = [json.dumps(checkpoint.values(name)) for name in checkpoint.names]
    return (checkpoint.names, values, optimizer.section().values), [array.tobytes() for array in arrays]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A path at which damaged copies are written, one after the other."""
    return tmp_path_factory.mktemp("damaged") / FILE_NAME


@given(data=st.data())
def test_a_truncated_or_extended_file_is_refused(whole_file, damaged, data):
    contents, _ = whole_file
    length = data.draw(st.integers(0, len(contents) - 1))
    for changed in (contents[:length], contents + contents[: length + 1], contents[length + 1 :]):
        damaged.write_bytes(changed)
        with pytest.raises(InputError, match="is truncated, damaged or no safetensors file"):
            read_checkpoint(damaged)


@given(data=st.data())
def test_every_flipped_bit_is_found(whole_file, damaged, data):
    """A flipped bit gives an InputError, or the same state (in safetensors' own JSON, which has no checksum)."""
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
    name = "model.trf_blocks.1.ff.layers.2.weight"
    contents = bytearray(path.read_bytes())
    contents[contents.index(tensors[name].tobytes()) + 5] ^= 4
    path.write_bytes(contents)
    with pytest.raises(InputError, match=f"is damaged: the bytes of {name} are not those that were saved"):
        load_model(path)


def test_an_edited_header_is_refused(tmp_path):
    path = saved(tmp_path)
    before = path.read_bytes()
    path.write_bytes(before.replace(rb"\"seed\":123", rb"\"seed\":124"))
    assert path.read_bytes() != before
    with pytest.raises(InputError, match=r"the header of the checkpoint .* is damaged: its seal does not fit"):
        read_checkpoint(path)


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
        ({"numpygpt": '{"format": "numpygpt checkpoint", "version": 9}'}, "version 9; expected .* version 1 or 2"),
        ({"numpygpt": '{"format": "numpygpt checkpoint", "version": 1}'}, "the header .* is damaged"),
        ({"numpygpt": '{"format": "numpygpt checkpoint", "version": 2}'}, "the header .* is damaged"),
    ],
)
def test_safetensors_files_of_other_kinds_are_refused(tmp_path, header, message):
    safetensors.numpy.save_file({"weight": np.ones(3)}, tmp_path / FILE_NAME, metadata=header)
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("contents", [b"", b"a page of text, no checkpoint\n" * 9, b"\x80\x04}", b"\0" * 64])
def test_other_files_are_refused(tmp_path, contents):
    (tmp_path / "model.pkl").write_bytes(contents)
    with pytest.raises(InputError, match=r"model\.pkl is truncated, damaged or no safetensors file"):
        read_checkpoint(tmp_path / "model.pkl")


def test_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(InputError, match=f"there is no checkpoint {tmp_path}/nowhere"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"there is no checkpoint {tmp_path}/{FILE_NAME}"):
        read_checkpoint(tmp_path)


# Atomic writes


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def crash(*_arguments, **_keywords):
    raise KeyboardInterrupt


def fail(*_arguments, **_keywords):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "function",
    ["pathlib.Path.replace", "os.fsync", "safetensors.numpy.save_file", "pathlib.Path.chmod", "tempfile.mkdtemp"],
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


def flip_the_last_bit(tensors, path, metadata, save=safetensors.numpy.save_file):
    save(tensors, path, metadata=metadata)
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)


def write_a_part(tensors, path, metadata, save=safetensors.numpy.save_file):
    save(tensors, path, metadata=metadata)
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("write", [flip_the_last_bit, write_a_part])
def test_what_reads_back_differently_does_not_replace_the_previous_checkpoint(tmp_path, monkeypatch, write):
    before = saved(tmp_path, steps=1).read_bytes()
    monkeypatch.setattr(safetensors.numpy, "save_file", write)
    with pytest.raises(InputError, match=r"cannot write the checkpoint .*: what was written reads back differently"):
        saved(tmp_path, steps=2)
    assert files_in(tmp_path) == [FILE_NAME]
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_a_file_is_on_disk_before_it_takes_the_place_of_the_previous(tmp_path, monkeypatch):
    """It is read back between the two, from the disk and not from what the system remembers of it."""
    calls = []
    fsync, replace, read = os.fsync, Path.replace, TensorFile.read

    def watched_fsync(descriptor):
        calls.append(("fsync", Path(f"/dev/fd/{descriptor}").resolve() if sys.platform == "linux" else None))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: calls.append(("forget", None)), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr(TensorFile, "read", lambda *names: calls.append(("read", None)) or read(*names))
    monkeypatch.setattr(Path, "replace", lambda *paths: calls.append(("replace", None)) or replace(*paths))
    write_checkpoint(tmp_path, {"part": Section({}, {"array": np.ones(2)})})
    assert [name for name, _ in calls] == ["fsync", "forget", "read", "replace", "fsync"]
    if sys.platform == "linux":
        assert calls[0][1].name == FILE_NAME
        assert calls[-1][1] == tmp_path.resolve()


def test_a_checkpoint_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    assert saved(tmp_path).stat().st_mode == (tmp_path / "any").stat().st_mode


# What cannot be saved


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_not_finite_never_replace_finite_ones(tmp_path, dtype, value):
    before = saved(tmp_path).read_bytes()
    spoiled = {"good": np.ones(3, dtype), "bad": np.array([[1, value]], dtype), "worse": np.array(value, dtype)}
    with pytest.raises(InputError) as refused:
        write_checkpoint(tmp_path, {**sections(), "more": Section({}, spoiled)})
    assert "not finite in more.bad, more.worse; " in str(refused.value)
    assert "good" not in str(refused.value)
    assert files_in(tmp_path) == [FILE_NAME]
    assert (tmp_path / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, np.longdouble, object, "U3", "M8[s]"])
def test_other_dtypes_are_refused_by_name(tmp_path, dtype):
    with pytest.raises(InputError, match=r"part\.array is of dtype .*, which a checkpoint cannot hold"):
        write_checkpoint(tmp_path, {"part": Section({}, {"array": np.zeros(2, dtype)})})
    assert files_in(tmp_path) == []


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [np.float32(1), np.ones(2), {1}, b"bytes", deep(100_000)], ids=lambda value: type(value).__name__
)
def test_values_that_are_no_json_are_refused(tmp_path, value):
    with pytest.raises(InputError, match=r"the values of a checkpoint are no JSON: "):
        write_checkpoint(tmp_path, {"part": Section({"value": value}, {})})
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("name", ["", "a.b", "."])
def test_the_name_of_a_section_has_no_dot(tmp_path, name):
    with pytest.raises(InputError, match=f"the name of a section is '{name}'; expected a text without a dot"):
        write_checkpoint(tmp_path, {name: Section({}, {})})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "inside", tmp_path / ("long" * 100)):
        with pytest.raises(InputError, match=f"cannot write the checkpoint {directory}"):
            saved(directory)
    assert (tmp_path / "file").read_bytes() == b""
