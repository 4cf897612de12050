"""Files of torch.save that somebody made, whatever is in them: refused in one line, in bounded time and memory."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.errors import InputError
from numpygpt.formats import book, nanogpt, torch_file
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import model_of
from parity_tests.command import python
from parity_tests.small_models import assert_equal
from parity_tests.small_models import model_of as random_model

CONFIG = GPTConfig(vocab_size=7, context_length=4, emb_dim=64, n_heads=1, n_layers=1, drop_rate=0.1, qkv_bias=True)
#: No refusal takes more memory than this.
MEMORY = 2**24


def outcome_of(path):
    """The model of a file of any kind, or the one line that refuses it."""
    try:
        contents = torch_file.load(path)
        model = nanogpt.model_in(path, contents) if nanogpt.holds_model(contents) else book.model_in(path, contents)
        return model_of(model)
    except InputError as error:
        return str(error)


def assert_refused(path, message=""):
    tracemalloc.start()
    try:
        line = outcome_of(path)
        assert isinstance(line, str)
        assert message in line
        assert str(path) in line
        assert "\n" not in line
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "model.pth"
    book.write_file(path, CONFIG, random_model(CONFIG, 0, np.float32).named_parameters())
    return path


def parts_of(path):
    """{name in the archive: bytes}."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, parts, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, contents in parts.items():
            archive.writestr(name, contents)


def with_pickle(path, sound, contents):
    write(path, {name: contents if name.endswith("/data.pkl") else part for name, part in parts_of(sound).items()})


# Programs


class Program:
    """What calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def programs(marker):
    """Ways to leave a file behind, if the pickle is run."""
    command = f"touch {marker}"
    return {
        "os.system": Program(os.system, command),
        "eval": Program(eval, f"__import__('os').system({command!r})"),
        "exec": Program(exec, f"open({str(marker)!r}, 'w').close()"),
        "open": Program(open, str(marker), "w"),
        "torch.load": Program(torch.load, str(marker)),
        "getattr": Program(getattr, "a text", "upper"),
        "a key": OrderedDict([("numpygpt", Program(os.mkdir, str(marker)))]),
    }


PROGRAMS = list(programs(""))
PLACES = {
    "alone": lambda program: program,
    "a weight": lambda program: {"tok_emb.weight": program},
    "an optimizer": lambda program: {"model_state_dict": {}, "optimizer_state_dict": program},
    "nanoGPT": lambda program: {"model": {}, "model_args": {}, "config": [program]},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_program_is_run(tmp_path, path, name, place):
    marker = tmp_path / "ran"
    torch.save(PLACES[place](programs(marker)[name]), path)
    assert_refused(path, "nothing of it was run")
    assert not marker.exists()
    torch.save(PLACES[place](programs(marker)[name]), path, _use_new_zipfile_serialization=False)
    assert_refused(path, "was written by a PyTorch before 1.6")
    path.write_bytes(pickle.dumps(PLACES[place](programs(marker)[name])))
    assert_refused(path, "no file of PyTorch's torch.save")
    assert not marker.exists()


def test_the_same_programs_do_run_in_pickles_own_load(tmp_path):
    """So that the test above can fail."""
    for name in ("os.system", "eval", "exec", "a key"):
        marker = tmp_path / name.replace(" ", "_")
        pickle.loads(pickle.dumps(programs(marker)[name]))
        assert marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_no_protocol_of_pickle_runs_a_program(tmp_path, path, sound, protocol):
    marker = tmp_path / "ran"
    with_pickle(path, sound, pickle.dumps(programs(marker)["os.system"], protocol))
    assert_refused(path)
    assert not marker.exists()


def test_a_whole_model_is_an_object_and_is_refused(path):
    torch.save(torch.nn.Linear(2, 3), path)
    assert_refused(path, "asks for __builtin__.set, torch.nn.modules")


@pytest.mark.parametrize(
    "program", [Program(bytearray, 10**11), Program(torch.UntypedStorage, 10**11), Program(torch.Tensor, 10**6, 10**6)]
)
def test_nothing_takes_memory_for_itself(path, program):
    """torch.load(weights_only=True) would have all three."""
    torch.save({"tok_emb.weight": program}, path)
    assert_refused(path, "nothing of it was run")


class WithMethods:
    """A state dict whose methods are texts, when it is unpickled."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __reduce__(self):
        methods = dict.fromkeys(("items", "keys", "get", "copy", "__contains__", "__iter__"), "no function")
        return OrderedDict, (), methods, None, iter(self.tensors.items())


def test_methods_that_a_file_puts_in_the_place_of_a_dicts_own_are_not_called(path):
    model = random_model(CONFIG, 0)
    torch.save(WithMethods(torch_file.state_dict_of(model.state_dict())), path)
    assert_equal(outcome_of(path).state_dict(), model.state_dict())


# Archives


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_bomb_is_not_unpacked(path, compression):
    parts = {"archive/data.pkl": bytes(2**22), "archive/data/0": bytes(2**23), "archive/version": b"3\n"}
    write(path, parts, compression)
    assert path.stat().st_size < 2**16
    assert_refused(path, "is compressed, which torch.save never does, and is not unpacked")


def test_parts_that_share_their_bytes_are_no_more_than_the_file(path):
    """A bomb that unpacks nothing: many entries of the archive's table for the same bytes."""
    write(path, {"archive/data.pkl": b"N.", "archive/data/0": bytes(2**20)})
    contents = path.read_bytes()
    end = contents.rindex(b"PK\x05\x06")
    (start,) = struct.unpack("<I", contents[end + 16 : end + 20])
    entries = contents[start:end]
    table = entries + entries[entries.rindex(b"PK\x01\x02") :] * 1000
    path.write_bytes(
        contents[:start] + table + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1002, 1002, len(table), start, 0)
    )
    assert_refused(path, "claims to hold more than its")


def test_a_long_pickle_is_not_read(path):
    write(path, {"archive/data.pkl": bytes(2**22 + 1)})
    assert_refused(path, "has more than 4194304 bytes; that of a model has fewer")


@pytest.mark.parametrize("names", [[], ["archive/data.pkl", "other/data.pkl"]])
def test_an_archive_has_one_pickle(path, names):
    write(path, {"archive/version": b"3\n"} | dict.fromkeys(names, b"N."))
    assert_refused(path, f"is a zip archive with {len(names)} data.pkl in it")


def test_a_tensor_of_more_numbers_than_the_file_has_is_refused(path, sound):
    """The pickle says how many numbers a tensor has."""
    parts = parts_of(sound)
    name = next(name for name in parts if name.endswith("/data.pkl"))
    numbers, shape = b"M" + struct.pack("<H", 7 * 64), b"K\x07K@\x86"
    assert parts[name].count(numbers) == parts[name].count(shape) == 2  # the embeddings and the head
    more = b"J" + struct.pack("<i", 60000 * 64), b"M" + struct.pack("<H", 60000) + b"K@\x86"
    parts[name] = parts[name].replace(numbers, more[0]).replace(shape, more[1])
    write(path, parts)
    assert_refused(path, "resize storage that is not resizable")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, sound, share):
    contents = sound.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    assert_refused(path, "is truncated, damaged, or no file of PyTorch's torch.save")


@pytest.mark.parametrize("contents", [b"", b"no zip", bytes(1000), b"PK\x03\x04" + bytes(100), b"<html>" * 50])
def test_other_files_are_refused(path, contents):
    path.write_bytes(contents)
    assert_refused(path, "is truncated, damaged, or no file of PyTorch's torch.save")


def test_folders_pipes_and_missing_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path, tmp_path / "pipe.pth", tmp_path / "none.pth"):
        assert_refused(path, "is no regular file; expected one that torch.save wrote")


def test_a_program_of_torchscript_is_refused(path, sound):
    write(path, {"model/constants.pkl": b"N.", **parts_of(sound)})
    assert_refused(path, "Cannot use ``weights_only=True`` with TorchScript archives")


@given(st.data())
def test_a_changed_pickle_is_a_model_or_one_line(sound, tmp_path_factory, data):
    parts = parts_of(sound)
    name = next(name for name in parts if name.endswith("/data.pkl"))
    contents = parts[name]
    start, length = data.draw(st.integers(0, len(contents))), data.draw(st.integers(0, 30))
    elsewhere = data.draw(st.integers(0, len(contents)))
    middle = data.draw(st.one_of(st.just(contents[elsewhere : elsewhere + length]), st.binary(max_size=8)))
    parts[name] = contents[:start] + middle + contents[start + length :]
    path = tmp_path_factory.mktemp("changed") / "model.pth"
    write(path, parts)
    outcome = outcome_of(path)
    assert not isinstance(outcome, str) or "\n" not in outcome


# Writing


def test_a_full_disk_leaves_the_older_file(path, sound, monkeypatch):
    path.write_bytes(b"older")

    def full(contents, file):
        file.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nmore")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"^cannot write .*model.pth: \[enforce fail.* more; name another$"):
        torch_file.save(path, {})
    assert path.read_bytes() == b"older"
    assert list(path.parent.iterdir()) == [path]


def test_a_read_only_array_can_be_written(path):
    array = np.arange(6.0).reshape(2, 3)
    array.setflags(write=False)
    torch_file.save(path, torch_file.state_dict_of({"x": array}))
    assert np.array_equal(torch.load(path, weights_only=True)["x"].numpy(), array)


def test_without_pytorch_there_is_the_line_that_installs_it(sound):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from numpygpt.errors import InputError; from numpygpt.formats import torch_file\n"
        "try: torch_file.load(Path(sys.argv[1]))\n"
        "except InputError as error: print(error)"
    )
    done = python("-c", code, sound)
    assert done.stdout.startswith("PyTorch is not installed, and its files (.pt, .pth) are read and written with it: ")
    assert done.stdout.endswith("pip install 'numpygpt[torch]'\n")
    assert not done.stderr
