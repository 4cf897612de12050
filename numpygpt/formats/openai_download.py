"""The released GPT-2, fetched: seven files, from OpenAI's own address or from the copy that the book keeps.

Each file is fetched into a folder that vanishes if anything goes wrong. It counts when it has the length that the
server states, and begins as such a file does. What is finished stays, and the next call fetches the rest. Nobody has
published hashes of these files. So the SHA-256 of each is written down in SHA256SUMS beside it when it has been
fetched, and every later call compares the file with it, as `sha256sum -c SHA256SUMS` does.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpygpt.errors import InputError
from numpygpt.files import locked, replacing, write_text
from numpygpt.reading import read_file

SIZES = ("124M", "355M", "774M", "1558M")
#: The files of each, and how they begin; None: like anything.
BEGINNINGS: dict[str, bytes | None] = {
    "checkpoint": b"model_checkpoint_path:",
    "encoder.json": b"{",
    "hparams.json": b"{",
    "model.ckpt.data-00000-of-00001": None,
    "model.ckpt.index": None,
    "model.ckpt.meta": None,
    "vocab.bpe": b"#version:",
}
ADDRESSES = (
    "https://openaipublic.blob.core.windows.net/gpt-2/models/{size}/{file}",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2/{size}/{file}",
)
#: How a page begins that a server, or a network that wants a password, sends instead of a file.
PAGES = (b"<!doctype", b"<html", b"<?xml")
#: How long a server may be silent.
SECONDS = 30
#: Bytes that are written at a time.
CHUNK = 2**20

HASHES = "SHA256SUMS"
MOST_BYTES_OF_HASHES = 2**16


class _UnusableError(Exception):
    """What an address gave is not the file. The message says why."""


def fetch(size: str, models_dir: str | os.PathLike[str]) -> Path:
    """The folder MODELS_DIR/SIZE with the seven files, of which those that are missing are fetched.

    A folder that is complete is left as it is, and the network is not used. A progress bar shows each file that is
    fetched.

    Raises InputError for an unknown size, a file that no address gives, a folder that cannot be written or that another
    process writes now, and a file that is not the one that was fetched.
    """
    if size not in SIZES:
        raise InputError(f"model_size is {size!r:.80}; expected one of: {', '.join(SIZES)}")
    folder = Path(models_dir) / size
    try:
        if _missing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                for file in _missing(folder):
                    _fetch_file(folder, size, file)
    except OSError as error:
        raise InputError(
            f"cannot fetch GPT-2 {size} to {folder}: {error.strerror or error}; make room, or name another folder: "
            f"what is finished is kept, and the next call fetches the rest"
        ) from error
    _refuse_other_files(folder)
    return folder


def _missing(folder: Path) -> list[str]:
    return [file for file in BEGINNINGS if not (folder / file).exists()]


def _fetch_file(folder: Path, size: str, file: str) -> None:
    """Fetch one file, from the first address that gives it."""
    hashes, reasons = _hashes(folder), []
    for address in ADDRESSES:
        url = address.format(size=size, file=file)
        try:
            with replacing(folder / file) as unfinished:
                _download(url, unfinished)
                _refuse_another_beginning(unfinished)
                digest = _sha256(unfinished)
                if digest != hashes.get(file, digest):
                    raise _UnusableError(f"what came has the SHA-256 {digest}, but {HASHES} says {hashes[file]}")
        except _UnusableError as reason:
            reasons.append(f"{url}: {reason}")
        else:
            _write_hashes(folder, hashes | {file: digest})
            return
    raise InputError(
        f"cannot fetch {file} of GPT-2 {size}; {'; '.join(reasons)}. What is finished is kept in {folder}: call again, "
        f"or put the file there yourself"
    )


def _download(url: str, path: Path) -> None:
    """Write to the path what the address gives, as long as its server states. Follows where it is sent."""
    from pooch import HTTPDownloader
    from requests import RequestException
    from tqdm import tqdm

    lengths: list[str | None] = []  # of the answers that lead elsewhere, and at last of the one that counts

    def note(answer: Any, **options: Any) -> None:
        lengths.append(answer.headers.get("Content-Length"))

    # pooch asks whether the bar is true, which tqdm answers by its total; then it sets the total itself.
    with tqdm(desc=path.name, total=1, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
        download = HTTPDownloader(
            bar, CHUNK, timeout=SECONDS, headers={"Accept-Encoding": "identity"}, hooks={"response": note}
        )
        try:
            download(url, str(path), None)
        except (RequestException, ValueError) as error:  # a ValueError for a length that is no number
            raise _UnusableError(_reason(error)) from error
    stated, found = lengths[-1], path.stat().st_size
    if stated != str(found):
        raise _UnusableError(f"{found} bytes came, but the server states a length of {stated or 'none'}")


def _reason(error: Exception) -> str:
    """Why a request failed, in a few words: the messages of `requests` are long."""
    from requests import exceptions

    match error:
        case exceptions.HTTPError(response=response) if response is not None:
            return f"the server answers {response.status_code} {response.reason}"
        case exceptions.Timeout():
            return f"no answer within {SECONDS} seconds"
        case exceptions.ChunkedEncodingError():
            return "the connection was cut"
        case exceptions.ConnectionError():
            return "no connection; is there a network?"
    return f"{type(error).__name__}: {' '.join(str(error).split()):.80}"


def _refuse_another_beginning(path: Path) -> None:
    """_UnusableError unless the file begins as the file of its name does."""
    with path.open("rb") as file:
        begin = file.read(100)
    expected = BEGINNINGS[path.name]
    if begin.lstrip().lower().startswith(PAGES) or not begin.startswith(expected or b""):
        raise _UnusableError(f"what came is another file: it begins {begin[:20]!r}")


# SHA-256


def _refuse_other_files(folder: Path) -> None:
    """InputError if a file is not the one that was fetched."""
    for file, expected in _hashes(folder).items():
        try:
            found = _sha256(folder / file)
        except OSError as error:
            raise InputError(f"cannot read {folder / file}: {error.strerror}") from error
        if found != expected:
            raise InputError(
                f"{folder / file} has the SHA-256 {found}, but {expected} was written down in {HASHES} when it was "
                f"fetched: remove the file, and the next call fetches it again"
            )


def _hashes(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of what was fetched. InputError if the file of them is damaged."""
    path = folder / HASHES
    if not path.exists():
        return {}
    lines = read_file(path, "list of SHA-256", MOST_BYTES_OF_HASHES).decode(errors="replace").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64})  (\S+)", line) for line in lines]
    if not all(match and match[2] in BEGINNINGS for match in found):
        raise InputError(
            f"{path} is damaged; expected a line for each file, with its SHA-256, two spaces and its name: remove it "
            f"if you trust the files"
        )
    return {match[2]: match[1] for match in found if match}


def _write_hashes(folder: Path, hashes: Mapping[str, str]) -> None:
    write_text(folder / HASHES, "".join(f"{digest}  {file}\n" for file, digest in sorted(hashes.items())))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
