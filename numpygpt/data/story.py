"""What the book's chapter 5 learns from: "The Verdict" by Edith Wharton (1908, public domain), found or fetched."""

import os
from hashlib import sha256
from pathlib import Path

from numpygpt.errors import InputError
from numpygpt.files import replacing

VERDICT_FILE = "the-verdict.txt"
VERDICT_URL = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt"
VERDICT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"

#: Seconds without a byte after which a download is given up.
TIMEOUT = 30


def find_verdict(path: str | os.PathLike[str] | None = None) -> Path:
    """The file of the story, the same in every byte as the book's.

    It is `path`, where given; else `the-verdict.txt` in the folder that the environment variable NUMPYGPT_DATA names,
    if it is there; else the copy in the user's cache, which is first fetched from the book's repository.

    Raises InputError for a file that is missing or another text, and where the story would have to be fetched and
    cannot be.
    """
    if path is not None:
        return _checked(Path(path))
    folder = os.environ.get("NUMPYGPT_DATA")
    if folder and (Path(folder) / VERDICT_FILE).exists():
        return _checked(Path(folder) / VERDICT_FILE)
    cached = _cache_folder() / VERDICT_FILE
    if not cached.exists():
        _write(cached, _fetched())
    return _checked(cached)


def _checked(path: Path) -> Path:
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the book's text {path}: {error.strerror}; fetch {VERDICT_URL}") from error
    _check(contents, str(path))
    return path


def _check(contents: bytes, source: str) -> None:
    found = sha256(contents).hexdigest()
    if found != VERDICT_SHA256:
        raise InputError(
            f"{source} is damaged or another text than the book's: {len(contents)} bytes with sha256 {found}; "
            f"expected {VERDICT_SHA256}: fetch {VERDICT_URL} again"
        )


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numpygpt"


def _fetched() -> bytes:
    from urllib.request import urlopen

    try:
        with urlopen(VERDICT_URL, timeout=TIMEOUT) as response:
            contents: bytes = response.read()
    except OSError as error:
        raise InputError(
            f"the book's text could not be downloaded ({error}); fetch {VERDICT_URL} on a machine with a network, "
            f"save it as {VERDICT_FILE} and set NUMPYGPT_DATA to its folder"
        ) from error
    _check(contents, VERDICT_URL)
    return contents


def _write(path: Path, contents: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            unfinished.write_bytes(contents)
    except OSError as error:
        raise InputError(f"cannot keep the book's text as {path}: {error.strerror}") from error
