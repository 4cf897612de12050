"""GPT-2's files are fetched from a server of ours on this machine, which does what servers do when they fail."""

import errno
import hashlib
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest

from numpygpt.errors import InputError
from numpygpt.files import locked
from numpygpt.formats import openai_download
from numpygpt.formats.openai_download import BEGINNINGS, HASHES, fetch

FILES = {
    "checkpoint": b'model_checkpoint_path: "model.ckpt"\n',
    "encoder.json": b'{"!": 0}',
    "hparams.json": b'{"n_vocab": 13}',
    "model.ckpt.data-00000-of-00001": b"<" + os.urandom(3 * 2**20),  # some chunks; it may begin like anything
    "model.ckpt.index": os.urandom(1000),
    "model.ckpt.meta": os.urandom(100),
    "vocab.bpe": "#version: 0.2\nĠ t\n".encode(),
}
DATA = "model.ckpt.data-00000-of-00001"


# What a server answers


def sends(contents, *, stated=None, status=200, **headers):
    """An answer with this body; by default it states the body's length."""

    def answer(handler):
        handler.send_response(status)
        length = str(len(contents)) if stated is None else stated
        for name, value in ({"Content-Length": length} | headers).items():
            if value is not None:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(contents)
        handler.close_connection = True

    return answer


def goes_to(place):
    return sends(b"", status=302, Location=place)


PAGE = b"\n<!DOCTYPE html><html>Sign in to this network</html>"
NO_LENGTH = {"Content-Length": None}
#: What can be wrong with a file, and how the reason reads.
TROUBLE = {
    "404": (sends(b"none", status=404), "the server answers 404 Not Found"),
    "500": (sends(b"none", status=500), "the server answers 500 Internal Server Error"),
    "cut": (sends(FILES[DATA][:9000], stated=str(len(FILES[DATA]))), "the connection was cut"),
    "no length": (sends(FILES[DATA], **NO_LENGTH), "bytes came, but the server states a length of none"),
    "no number": (sends(FILES[DATA], stated="many"), "ValueError: invalid literal"),
    "negative": (sends(FILES[DATA], stated="-5"), "bytes came, but the server states a length of -5"),
    "empty page": (sends(b"", stated="7"), "the connection was cut"),
    "page": (sends(PAGE, Content_Type="text/html"), "what came is another file: it begins b'\\n<!DOCTYPE html><h"),
    "circle": (goes_to("/first/124M/" + DATA), "TooManyRedirects"),
    "to nowhere": (goes_to("http://127.0.0.1:1/"), "no connection; is there a network?"),
    "to a file": (goes_to("file:///etc/passwd"), "InvalidSchema"),
    "hangs up": (lambda handler: None, "no connection; is there a network?"),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.answers.get(self.path, sends(b"", status=404))(self)

    def log_message(self, *arguments):
        pass


@contextmanager
def serving():
    """A server on the loopback device, with `answers`, {path: answer}, and `asked`, the paths in their order."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(monkeypatch):
    """It has the seven files of the size 124M at two addresses."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        here = f"http://127.0.0.1:{server.server_port}"
        addresses = (here + "/first/{size}/{file}", here + "/second/{size}/{file}")
        monkeypatch.setattr(openai_download, "ADDRESSES", addresses)
        for address in ("first", "second"):
            server.answers |= {f"/{address}/124M/{file}": sends(contents) for file, contents in FILES.items()}
        yield server


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def sums_of(files):
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


COMPLETE = FILES | {HASHES: sums_of(FILES)}


def assert_refused(models_dir, *parts):
    with pytest.raises(InputError) as refused:
        fetch("124M", models_dir)
    line = str(refused.value)
    assert "\n" not in line
    for part in parts:
        assert part in line
    return line


# What is fetched


def test_the_seven_files_are_fetched_from_the_first_address_with_a_bar_each(server, tmp_path, capsys):
    assert fetch("124M", tmp_path / "models") == tmp_path / "models" / "124M"
    assert contents_of(tmp_path / "models" / "124M") == COMPLETE
    assert list(FILES) == list(BEGINNINGS)
    assert server.asked == [f"/first/124M/{file}" for file in FILES]
    told = capsys.readouterr()
    assert not told.out
    assert all(f"{file}: 100%" in told.err for file in FILES)


def test_a_complete_folder_is_left_as_it_is_without_a_network(server, tmp_path):
    folder = fetch("124M", tmp_path)
    server.asked.clear()
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    fetch("124M", str(tmp_path))
    assert not server.asked
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_a_folder_that_somebody_else_fetched_is_left_as_it_is(server, tmp_path, monkeypatch):
    """The book's own script writes no SHA-256."""
    folder = tmp_path / "124M"
    folder.mkdir()
    for name, contents in FILES.items():
        (folder / name).write_bytes(contents)
    monkeypatch.setattr(openai_download, "locked", None)  # a lock is a file: the folder may be read-only
    assert fetch("124M", tmp_path) == folder
    assert contents_of(folder) == FILES
    assert not server.asked


def test_only_what_is_missing_is_fetched(server, tmp_path):
    folder = fetch("124M", tmp_path)
    server.asked.clear()
    (folder / "vocab.bpe").unlink()
    fetch("124M", tmp_path)
    assert server.asked == ["/first/124M/vocab.bpe"]
    assert contents_of(folder) == COMPLETE


@pytest.mark.parametrize("kind", TROUBLE)
def test_where_the_first_address_fails_the_second_gives_the_file(server, tmp_path, kind):
    answer, _ = TROUBLE[kind]
    server.answers[f"/first/124M/{DATA}"] = answer
    fetch("124M", tmp_path)
    assert contents_of(tmp_path / "124M") == COMPLETE
    assert server.asked[-4:] == [f"/second/124M/{DATA}", *(f"/first/124M/{file}" for file in list(FILES)[4:])]


@pytest.mark.parametrize("kind", TROUBLE)
def test_where_both_fail_what_is_finished_stays_and_the_next_call_fetches_the_rest(server, tmp_path, kind):
    answer, reason = TROUBLE[kind]
    for address in ("first", "second"):
        server.answers[f"/{address}/124M/{DATA}"] = answer
    line = assert_refused(tmp_path, f"cannot fetch {DATA} of GPT-2 124M; ", "is kept in", reason)
    assert all(f"{server.server_port}/{address}/124M/{DATA}: " in line for address in ("first", "second"))
    finished = {name: FILES[name] for name in ("checkpoint", "encoder.json", "hparams.json")}
    assert contents_of(tmp_path / "124M") == finished | {HASHES: sums_of(finished)}
    assert not [path for path in (tmp_path / "124M").iterdir() if path.is_dir()]

    server.asked.clear()
    server.answers[f"/second/124M/{DATA}"] = sends(FILES[DATA])
    fetch("124M", tmp_path)
    assert contents_of(tmp_path / "124M") == COMPLETE
    assert not [path for path in server.asked if path.endswith(tuple(finished))]


@pytest.mark.parametrize("file", FILES)
def test_a_page_is_no_file(server, tmp_path, file):
    for address in ("first", "second"):
        server.answers[f"/{address}/124M/{file}"] = sends(PAGE)
    assert_refused(tmp_path, f"cannot fetch {file} of", "what came is another file")
    assert not (tmp_path / "124M" / file).exists()


@pytest.mark.parametrize("file", [file for file, begin in BEGINNINGS.items() if begin])
def test_a_text_begins_as_its_name_says(server, tmp_path, file):
    for address in ("first", "second"):
        server.answers[f"/{address}/124M/{file}"] = sends(b"[404, 'no such file']")
    assert_refused(tmp_path, f"cannot fetch {file} of", "what came is another file: it begins b\"[404, 'no")


def test_a_redirect_is_followed(server, tmp_path):
    server.answers["/elsewhere"] = sends(FILES[DATA])
    server.answers["/there"] = goes_to("/elsewhere")
    server.answers[f"/first/124M/{DATA}"] = goes_to("/there")
    fetch("124M", tmp_path)
    assert contents_of(tmp_path / "124M") == COMPLETE
    assert server.asked[3:7] == [f"/first/124M/{DATA}", "/there", "/elsewhere", "/first/124M/model.ckpt.index"]


def test_a_compressed_answer_is_not_asked_for(server, tmp_path):
    """Its length would be another than the file's."""
    asked = []

    def answer(handler):
        asked.append(handler.headers["Accept-Encoding"])
        sends(FILES["encoder.json"])(handler)

    server.answers["/first/124M/encoder.json"] = answer
    fetch("124M", tmp_path)
    assert asked == ["identity"]


# What is refused


@pytest.mark.parametrize("size", ["124m", "", "../..", "gpt2"])
def test_an_unknown_size_lists_the_known_ones(tmp_path, size):
    with pytest.raises(InputError, match=r"model_size is .*; expected one of: 124M, 355M, 774M, 1558M$"):
        fetch(size, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_network_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        port = server.server_port  # free when the server has ended
    monkeypatch.setattr(openai_download, "ADDRESSES", (f"http://127.0.0.1:{port}/{{size}}/{{file}}",) * 2)
    reason = f"http://127.0.0.1:{port}/124M/checkpoint: no connection; is there a network?"
    assert_refused(tmp_path, f"cannot fetch checkpoint of GPT-2 124M; {reason}; {reason}. What is finished is kept")


def test_a_server_that_says_nothing_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(openai_download, "SECONDS", 0.05)
    released = threading.Event()
    server.answers["/first/124M/checkpoint"] = lambda handler: released.wait(5)  # much longer than that
    server.answers["/second/124M/checkpoint"] = sends(b"", status=404)
    assert_refused(tmp_path, "/first/124M/checkpoint: no answer within 0.05 seconds")
    released.set()


def test_the_published_addresses_are_https_and_name_size_and_file():
    for address in openai_download.ADDRESSES:
        assert address.startswith("https://")
        assert address.endswith("/{size}/{file}")


def test_a_file_that_was_changed_is_refused_and_fetched_again_once_it_is_removed(server, tmp_path):
    folder = fetch("124M", tmp_path)
    changed = FILES[DATA][:-1] + b"x"
    (folder / DATA).write_bytes(changed)
    server.asked.clear()
    hashes = [hashlib.sha256(contents).hexdigest() for contents in (changed, FILES[DATA])]
    assert_refused(tmp_path, f"{folder / DATA} has the SHA-256 {hashes[0]}, but {hashes[1]} was written down", "remove")
    assert (folder / DATA).read_bytes() == changed
    assert not server.asked
    (folder / DATA).unlink()
    fetch("124M", tmp_path)
    assert contents_of(folder) == COMPLETE


def test_a_file_that_was_fetched_before_cannot_come_back_as_another(server, tmp_path):
    folder = fetch("124M", tmp_path)
    (folder / DATA).unlink()
    for address in ("first", "second"):
        server.answers[f"/{address}/124M/{DATA}"] = sends(b"another")
    found = hashlib.sha256(b"another").hexdigest()
    expected = hashlib.sha256(FILES[DATA]).hexdigest()
    assert_refused(tmp_path, f"what came has the SHA-256 {found}, but {HASHES} says {expected}")
    assert not (folder / DATA).exists()


@pytest.mark.parametrize("contents", [b"nonsense", b"0" * 64 + b"  ../other\n", b"0" * 64 + b" checkpoint\n", b"\xff"])
def test_a_damaged_list_of_hashes_is_refused(server, tmp_path, contents):
    folder = fetch("124M", tmp_path)
    (folder / HASHES).write_bytes(contents)
    assert_refused(tmp_path, f"{folder / HASHES} is damaged; expected a line for each file")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_what_is_finished_stays(server, tmp_path, monkeypatch, number):
    whole = pooch.HTTPDownloader.__call__

    def until_full(self, url, output_file, pooch, check_only=False):
        whole(self, url, output_file, pooch, check_only)
        if url.endswith(DATA):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", until_full)
    line = assert_refused(tmp_path, f"cannot fetch GPT-2 124M to {tmp_path / '124M'}: {os.strerror(number)}; make room")
    assert "second" not in line
    assert not [path for path in server.asked if "second" in path], "another address makes no room"
    finished = {name: FILES[name] for name in ("checkpoint", "encoder.json", "hparams.json")}
    assert contents_of(tmp_path / "124M") == finished | {HASHES: sums_of(finished)}


def test_an_interrupted_call_leaves_no_part_of_a_file(server, tmp_path, monkeypatch):
    def interrupted(self, url, output_file, pooch, check_only=False):
        Path(output_file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("124M", tmp_path)
    assert not list((tmp_path / "124M").iterdir())


@pytest.mark.usefixtures("server")
def test_two_do_not_fetch_into_one_folder(tmp_path):
    (tmp_path / "124M").mkdir()
    with locked(tmp_path / "124M"):
        assert_refused(tmp_path, "is in use by process")


@pytest.mark.usefixtures("server")
def test_a_file_that_cannot_be_read_is_named(tmp_path):
    folder = fetch("124M", tmp_path)
    (folder / DATA).unlink()
    (folder / DATA).mkdir()
    assert_refused(tmp_path, f"cannot read {folder / DATA}: Is a directory")


@pytest.mark.usefixtures("server")
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "models").write_bytes(b"a file")
    assert_refused(tmp_path / "models", "cannot fetch GPT-2 124M to")
