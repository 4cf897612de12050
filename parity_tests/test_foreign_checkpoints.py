"""A checkpoint that somebody made loads or is an InputError, in little time and memory, whatever it claims."""

import copy
import inspect
import json
import math
import os
import re
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.data.loader import DataLoader
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.data.windows import GPTDatasetV1
from numpygpt.errors import InputError
from numpygpt.formats import load_model
from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint, write_checkpoint
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of, model_section, saved_tokenizer
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import Section, value_of
from numpygpt.training.adamw import AdamW
from numpygpt.training.groups import Group
from parity_tests.checkpoint_files import safetensors_of, sealed, taken_apart, with_hashes, with_length, write

CONFIG = GPTConfig(vocab_size=11, context_length=5, emb_dim=6, n_heads=2, n_layers=1, drop_rate=0.2, qkv_bias=False)
LOADER = DataLoader(GPTDatasetV1("a text of some length", get_tokenizer("bytes"), 4, 4), 2, rng=1)
#: No file here has more bytes than this, and no refusal takes more memory than a few copies of such a file.
LARGEST_FILE = 40_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The path of a checkpoint as it is meant to be."""
    model = GPTModel(CONFIG)
    optimizer = AdamW(model, groups=[Group(lambda name, array: array.ndim < 2, weight_decay=0.0)])
    ids = np.arange(10).reshape(2, 5)
    optimizer.step(model.loss_and_grads(ids, ids)[1])
    sections = {
        "model": model_section(model, "bytes"),
        "optimizer": optimizer.section(),
        "random": Section({}, {"generator": TorchGenerator(3).to_torch_state()}),
        "data": Section({"position": iter(LOADER).position}, {}),
    }
    path = write_checkpoint(tmp_path_factory.mktemp("sound"), sections)
    assert path.stat().st_size < LARGEST_FILE
    return path


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """Turn off the suite's check of types, which would refuse some configurations before GPTConfig does."""
    monkeypatch.setattr(GPTConfig, "__init__", inspect.unwrap(GPTConfig.__init__))


@pytest.fixture
def path(tmp_path):
    return tmp_path / FILE_NAME


def everything_of(path):
    """Everything that a resumed run reads, as bytes and texts."""
    checkpoint = read_checkpoint(path)
    model = model_of(checkpoint)
    optimizer = AdamW(model)
    optimizer.load_section(checkpoint)
    rng = TorchGenerator.from_torch_state(checkpoint.arrays("random").get("generator"))
    batches = LOADER.resume(value_of(checkpoint.values("data"), "position", dict))
    arrays = [*model.state_dict().values(), *optimizer.section().arrays.values(), rng.to_torch_state()]
    values = optimizer.section().values, saved_tokenizer(checkpoint), batches.position, model.config
    return [array.tobytes() for array in arrays], values


def outcome_of(path):
    """What was read, or the one line that refuses it."""
    try:
        return everything_of(path)
    except InputError as error:
        return str(error)


def assert_refused(path, message=""):
    line = outcome_of(path)
    assert isinstance(line, str)
    assert re.search(message, line)
    assert "\n" not in line


def test_a_checkpoint_that_is_put_together_by_hand_can_be_read(sound, path):
    write(path, *taken_apart(sound))
    assert everything_of(path) == everything_of(sound)


# What the header says, under a seal that fits

MISSING = object()
DEEP = json.loads("[" * 500 + "]" * 500)
KINDS = {"missing": MISSING, "null": None, "5": 5, "x": "x", "[]": [], "{}": {}, "true": True, "deep": DEEP}
TOK_EMB = "model/arrays/tok_emb.weight"
#: Each place in a header, and the KINDS that it accepts.
PLACES = {
    "": (),
    "model": (),
    "model/values": (),
    "model/arrays": (),
    TOK_EMB: (),
    f"{TOK_EMB}/dtype": (),
    f"{TOK_EMB}/shape": (),
    f"{TOK_EMB}/sha256": (),
    "model/values/tokenizer": ("null", "x"),
    "model/values/config": (),
    "model/values/config/vocab_size": (),
    "model/values/config/context_length": ("5",),
    "model/values/config/emb_dim": (),
    "model/values/config/n_heads": (),
    "model/values/config/n_layers": (),
    "model/values/config/drop_rate": (),
    "model/values/config/qkv_bias": (),
    "optimizer": (),
    "optimizer/values": (),
    "optimizer/values/step": ("5",),
    "optimizer/values/lr": ("5",),
    "optimizer/values/betas": (),
    "optimizer/values/eps": ("5",),
    "optimizer/values/weight_decay": ("5",),
    "optimizer/values/groups": ("[]",),
    "optimizer/values/groups/0": ("missing",),
    "optimizer/values/groups/0/names": ("[]",),
    "optimizer/values/groups/0/lr_scale": ("5",),
    "optimizer/values/groups/0/weight_decay": ("null", "5"),
    "optimizer/arrays": (),
    "random": (),
    "random/values": ("{}",),
    "random/arrays": (),
    "random/arrays/generator": (),
    "data": (),
    "data/values": (),
    "data/values/position": (),
    "data/values/position/batches_done": (),
    "data/values/position/order_seed": ("null",),
}


def changed(header, place, value):
    """The header with the value at a place in its sections, or without what is there."""
    node, key = header, "sections"
    for deeper in filter(None, place.split("/")):
        node, key = node[key], int(deeper) if deeper.isdigit() else deeper
    if value is MISSING:
        del node[key]
    else:
        node[key] = value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_missing_or_of_another_type_is_refused(sound, path, place, kind):
    header, tensors = taken_apart(sound)
    changed(header, place, KINDS[kind])
    write(path, header, tensors)
    if kind in PLACES[place]:
        everything_of(path)
    else:
        assert_refused(path)


HUGE = 10**400


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("model/values/config/vocab_size", [10**12, 2**31 - 1, HUGE, -1, 0, 11.0, 12]),
        ("model/values/config/context_length", [10**12, 2**31 - 1, 6]),
        ("model/values/config/emb_dim", [10**12, 2**31 - 2, 4, 8]),
        ("model/values/config/n_layers", [10**9, 2**31 - 1, HUGE, 2]),
        ("model/values/config/n_heads", [10**9, 4]),
        ("model/values/config/drop_rate", [math.nan, math.inf, 1, -0.1, HUGE, "0.1"]),
        ("model/values/config/tie_weights", [True]),
        ("model/values/config/position", ["sinusoidal", "rotary"]),
        ("model/values/config/activation", ["relu", "", 1, None, ["gelu_erf"]]),
        ("model/values/config/bias", [False, 0, None]),
        ("model/values/config/norm_eps", [0, -1e-5, math.nan, math.inf, HUGE, "1e-5", None]),
        ("model/values/config/more", [1]),
        ("optimizer/values/step", [-5, math.nan, 1.5, 2**63, HUGE, "5"]),
        ("optimizer/values/lr", [-1, math.nan, math.inf, HUGE, "0.1"]),
        ("optimizer/values/betas", [[2, 3], [0.9], [0.9, 0.9, 0.9], [0.9, math.nan], [0.9, "x"], [True, 0.9], "xx"]),
        ("optimizer/values/eps", [-1, math.nan]),
        ("optimizer/values/weight_decay", [-1, math.inf]),
        ("optimizer/values/more", [1]),
        ("optimizer/values/groups/0/names", [["unknown"], ["final_norm.scale"] * 2, [["final_norm.scale"]], [1]]),
        ("optimizer/values/groups/0/lr_scale", [-1, math.nan, "1"]),
        ("optimizer/values/groups/0/weight_decay", [-1, math.nan, "1"]),
        ("data/values/position/batches_done", [-1, 10**9, HUGE, 0.5]),
        ("data/values/position/order_seed", [1, "1"]),
        (f"{TOK_EMB}/dtype", ["BF16", "F8_E4M3", "float32", "F64", "I32"]),
        (f"{TOK_EMB}/shape", [[6, 11], [66], [-11, -6], [11.0, 6], [11, 6, 1], [2**70], [1] * 102, ["11", 6]]),
        (f"{TOK_EMB}/sha256", ["0" * 64, "é"]),
    ],
)
def test_impossible_values_are_refused(sound, path, place, values):
    for value in values:
        header, tensors = taken_apart(sound)
        changed(header, place, value)
        write(path, header, tensors)
        assert_refused(path)


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 2**31 - 1, "emb_dim": 2**31 - 2},
        {"n_layers": 2**31 - 1},
        {"context_length": 2**31 - 1},
        {"context_length": 2**31 - 1, "position": "sinusoidal", "emb_dim": 2**20},
    ],
    ids=repr,
)
def test_absurd_sizes_take_no_memory(sound, path, sizes):
    header, tensors = taken_apart(sound)
    header["sections"]["model"]["values"]["config"] |= sizes
    write(path, header, tensors)
    assert_takes_little_memory(path)


def test_a_sinusoidal_table_beyond_the_machines_memory_is_refused(sound, path):
    """The table is the only part of a model that is not in the file, whose size says nothing about it."""
    header, tensors = taken_apart(sound)
    header["sections"]["model"]["values"]["config"] |= {"position": "sinusoidal", "context_length": 2**31 - 1}
    tensors = {key: tensor for key, tensor in tensors.items() if "pos_emb" not in key}
    for section in ("model", "optimizer"):
        arrays = header["sections"][section]["arrays"]
        for name in [name for name in arrays if "pos_emb" in name]:
            del arrays[name]
    write(path, header, tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("numpygpt.model.sizes.machine_memory", lambda: 2**34)
        assert_takes_little_memory(path, "the model needs at least .* GiB of memory")


def assert_takes_little_memory(path, message=""):
    tracemalloc.start()
    try:
        assert_refused(path, message)
        assert tracemalloc.get_traced_memory()[1] < 100 * LARGEST_FILE
    finally:
        tracemalloc.stop()


# What the tensors are, under hashes that fit


@pytest.mark.parametrize(
    ("key", "dtype"),
    [
        ("model.tok_emb.weight", "I32"),
        ("model.tok_emb.weight", "U32"),
        ("optimizer.exp_avg.tok_emb.weight", "I32"),
        ("optimizer.exp_avg_sq.final_norm.scale", "U32"),
        ("random.generator", "BOOL"),
    ],
)
def test_a_relabeled_dtype_is_refused(sound, path, key, dtype):
    """The seal may be the old one, which then does not fit, or a new one; then the array's hash does not fit."""
    header, tensors = taken_apart(sound)
    tensors[key][0] = dtype
    write(path, header, tensors)
    with pytest.raises(InputError, match=rf"is damaged: {re.escape(key)} is \w+ \(.*\), but \w+ \(.*\) was saved"):
        read_checkpoint(path)
    section, _, name = key.partition(".")
    header["sections"][section]["arrays"][name]["dtype"] = dtype
    write(path, header, tensors)
    not_saved = f"the bytes of {key} are not those that were saved"
    assert_refused(path, f"{not_saved}|not floating-point: tok_emb.weight|of another dtype")
    write(path, with_hashes(header, tensors), tensors)
    assert_refused(path)


def spoiled(tensor, index, value):
    dtype, shape, data = tensor
    array = np.frombuffer(data, np.float32).copy()
    array[index] = value
    return [dtype, shape, array.tobytes()]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ["model.final_norm.scale", "optimizer.exp_avg.final_norm.scale"])
def test_values_that_are_not_finite_are_refused(sound, path, key, value):
    header, tensors = taken_apart(sound)
    tensors[key] = spoiled(tensors[key], 2, value)
    write(path, with_hashes(header, tensors), tensors)
    assert_refused(path, f"holds values that are not finite in {re.escape(key)}")


def test_a_negative_mean_of_squares_is_refused(sound, path):
    header, tensors = taken_apart(sound)
    key = "optimizer.exp_avg_sq.final_norm.scale"
    tensors[key] = spoiled(tensors[key], 2, -1e-30)
    write(path, with_hashes(header, tensors), tensors)
    assert_refused(path, r"exp_avg_sq of \['final_norm\.scale'\] cannot be")


def test_weights_of_several_dtypes_are_refused_unless_one_is_asked_for(sound, path):
    header, tensors = taken_apart(sound)
    shape = tensors["model.final_norm.scale"][1]
    tensors["model.final_norm.scale"] = ["F64", shape, np.arange(6.0).tobytes()]
    write(path, with_hashes(header, tensors), tensors)
    assert_refused(path, "the weights are of several dtypes, float32, float64; say in which to load them")
    assert load_model(path, np.float64).state_dict()["final_norm.scale"].tolist() == list(range(6))


@pytest.mark.parametrize("dtype", ["F16", "complex64", "no dtype"])
def test_a_model_of_another_dtype_is_refused(sound, path, dtype):
    header, tensors = taken_apart(sound)
    if dtype == "F16":
        for key, (_, shape, data) in tensors.items():
            if key.startswith("model."):
                tensors[key] = ["F16", shape, np.frombuffer(data, np.float32).astype(np.float16).tobytes()]
    write(path, with_hashes(header, tensors), tensors)
    if dtype == "F16":
        assert_refused(path, "dtype is float16; expected")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["exp_avg"], r"arrays are named \['exp_avg'\]; expected exp_avg.NAME or exp_avg_sq.NAME"),
        (["momentum.final_norm.scale"], r"arrays are named \['momentum\.final_norm\.scale'\]"),
        (["exp_avg.", "exp_avg_sq.extra"], r"exp_avg do not fit the parameters: unexpected \[''\]"),
    ],
)
def test_moments_of_other_names_are_refused(sound, path, names, message):
    header, tensors = taken_apart(sound)
    tensors |= {f"optimizer.{name}": ["F32", [1], bytes(4)] for name in names}
    write(path, with_hashes(header, tensors), tensors)
    assert_refused(path, message)


@pytest.mark.parametrize("name", ["tok_emb.weight", "final_norm.scale"])
def test_missing_and_misshaped_arrays_are_all_listed(sound, path, name):
    header, tensors = taken_apart(sound)
    for section, prefix in (("model", ""), ("optimizer", "exp_avg."), ("optimizer", "exp_avg_sq.")):
        del tensors[f"{section}.{prefix}{name}"], header["sections"][section]["arrays"][f"{prefix}{name}"]
        tensors[f"{section}.{prefix}extra"] = ["F32", [2], bytes(8)]
        tensors[f"{section}.{prefix}final_norm.shift"] = ["F32", [7], bytes(28)]
    write(path, with_hashes(header, tensors), tensors)
    with pytest.raises(InputError, match="the weights do not fit the configuration") as refused:
        load_model(path)
    for fault in (f"missing: {name}", "unexpected: extra", "misshaped: final_norm.shift (7,), expected (6,)"):
        assert fault in str(refused.value)
    optimizer = AdamW(GPTModel(CONFIG))
    with pytest.raises(InputError, match="exp_avg do not fit the parameters") as refused:
        optimizer.load_section(read_checkpoint(path))
    for fault in (f"missing ['{name}']", "unexpected ['extra']", "misshaped ['final_norm.shift (7,), expected (6,)']"):
        assert fault in str(refused.value)


@pytest.mark.parametrize("state", [np.zeros(5056, np.uint8), np.zeros(3, np.uint8), np.ones(5056, np.int8)])
def test_random_states_that_no_generator_has_are_refused(sound, path, state):
    header, tensors = taken_apart(sound)
    tensors["random.generator"] = [{"uint8": "U8", "int8": "I8"}[state.dtype.name], list(state.shape), state.tobytes()]
    write(path, with_hashes(header, tensors), tensors)
    assert_refused(path, "PyTorch random state")


# What is no safetensors file, or one of another kind


def one_tensor(dtype, shape, offsets):
    header = {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}, "__metadata__": {"numpygpt": "{}"}}
    return with_length(json.dumps(header).encode()) + bytes(16)


FILES = {
    "empty": b"",
    "shorter than a length": bytes(7),
    "a header of no bytes": bytes(8),
    "a header longer than the file": struct.pack("<Q", 100) + b"{}",
    "a header of 99 MB": struct.pack("<Q", 99_999_999) + b"{}",
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 2**64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header that is no JSON": with_length(b"{"),
    "a header that is no UTF-8": with_length(b'{"\xff": 1}'),
    "a deep header": with_length(b'{"a":' * 100_000),
    "no metadata": with_length(b"{}"),
    "metadata that is no text": with_length(b'{"__metadata__": {"numpygpt": 5}}'),
    "deep metadata": safetensors_of({}, {"numpygpt": "[" * 100_000 + "]" * 100_000}),
    "deep and sealed metadata": safetensors_of({}, {"numpygpt": sealed({"format": "numpygpt checkpoint"})}),
    "half a character": safetensors_of({}, {"numpygpt": "\ud800"}),
    "a number of many digits": safetensors_of({}, {"numpygpt": "9" * 30_000}),
    "another format": safetensors_of({}, {"numpygpt": json.dumps({"format": DEEP, "version": {}})}),
    "BF16": one_tensor("BF16", [8], [0, 16]),
    "F8_E4M3": one_tensor("F8_E4M3", [16], [0, 16]),
    "F8_E5M2": one_tensor("F8_E5M2", [16], [0, 16]),
    "F4": one_tensor("F4", [32], [0, 16]),
    "C64": one_tensor("C64", [2], [0, 16]),
    "no dtype": one_tensor("X", [2], [0, 16]),
    "102 axes": one_tensor("F32", [1] * 101 + [4], [0, 16]),
    "an axis of 2**63": one_tensor("F32", [0, 2**63], [0, 0])[:-16],
    "more elements than fit": one_tensor("F32", [2**62, 2**62, 0], [0, 0])[:-16],
    "offsets past the end": one_tensor("F32", [8], [0, 32]),
    "offsets that leave a gap": one_tensor("F32", [2], [8, 16]),
    "negative offsets": one_tensor("F32", [4], [-16, 0]),
    "offsets the wrong way round": one_tensor("F32", [4], [16, 0]),
    "offsets of 2**64": one_tensor("F32", [4], [0, 2**64]),
    "another shape": one_tensor("F32", [5], [0, 16]),
    "tensors that overlap": safetensors_of({"a": ["F32", [2], bytes(8)], "b": ["F32", [2], bytes(8)]}, {}).replace(
        b"[8, 16]", b"[4, 12]"
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_kinds_take_no_memory(path, name):
    path.write_bytes(FILES[name])
    assert_takes_little_memory(path)


def link_to(target):
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    "make",
    [os.mkdir, os.mkfifo, link_to("/dev/zero"), link_to("nowhere"), link_to(FILE_NAME), link_to("fifo")],
    ids=["a folder", "a pipe", "a device", "a link to nothing", "a link to itself", "a link to a pipe"],
)
@pytest.mark.parametrize("named", ["the file", "its folder"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, make, named):
    os.mkfifo(tmp_path / "fifo")
    make(tmp_path / FILE_NAME)
    assert_refused(tmp_path / FILE_NAME if named == "the file" else tmp_path)


@pytest.mark.parametrize("name", ["n" * 256, "\0", "a/b", FILE_NAME + "/b"])
def test_paths_that_cannot_be_are_refused(tmp_path, name):
    (tmp_path / FILE_NAME).touch()
    assert_refused(tmp_path / name)


def test_a_link_to_a_checkpoint_is_a_checkpoint(sound, path):
    path.symlink_to(sound)
    assert everything_of(path) == everything_of(sound)


# At random


def subtrees(node, place=()):
    """The path to every part of a JSON value."""
    yield place
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in entries:
        yield from subtrees(child, (*place, key))


def at(node, place):
    for key in place:
        node = node[key]
    return node


LEAVES = st.sampled_from([None, True, -1, 0, 1, 2**31, 10**12, 0.5, math.nan, "", "F32", "x", [], {}, [1], {"a": 1}])


@given(data=st.data())
def test_a_header_with_anything_in_another_place_is_refused_or_loads(sound, tmp_path_factory, data):
    """A part of the header is replaced by another part or by a leaf, or is missing; the seal fits."""
    header, tensors = taken_apart(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        places = list(subtrees(header))[1:]
        *way, last = data.draw(st.sampled_from(places))
        node = at(header, way)
        if data.draw(st.booleans()):
            node[last] = copy.deepcopy(data.draw(LEAVES | st.sampled_from(places).map(lambda p: at(header, p))))
        else:
            del node[last]
    path = tmp_path_factory.mktemp("spliced") / FILE_NAME
    write(path, header, tensors)
    assert "\n" not in outcome_of(path)


@given(data=st.data())
def test_bytes_that_are_cut_out_repeated_or_changed_are_found(sound, tmp_path_factory, data):
    """The file is refused, or the same is loaded, because only safetensors' own header is under no hash."""
    contents = sound.read_bytes()
    start, length = data.draw(st.integers(0, len(contents))), data.draw(st.integers(0, 40))
    elsewhere = data.draw(st.integers(0, len(contents)))
    middle = data.draw(st.sampled_from([b"", contents[elsewhere : elsewhere + length], b"0" * length, b"[" * length]))
    changed = contents[:start] + middle + contents[start + length :]
    path = tmp_path_factory.mktemp("cut") / FILE_NAME
    path.write_bytes(changed)
    outcome = outcome_of(path)
    assert outcome == everything_of(sound) or isinstance(outcome, str)
