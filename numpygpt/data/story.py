"""The text of the book's chapter 5: "The Verdict" by Edith Wharton (1908, public domain), which ships with numpygpt."""

import os
from pathlib import Path

from numpygpt.data.shipped import read_exactly, shipped

VERDICT_FILE = "the-verdict.txt"
VERDICT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
VERDICT_BYTES = 20_479


def find_verdict(path: str | os.PathLike[str] | None = None) -> Path:
    """The file of the story: `path`, or, if it is None, the file that ships with numpygpt, which is compressed.

    Either has the book's story, byte for byte, and `numpygpt.data.texts.read_text` reads either.

    Raises InputError if the file cannot be read or holds another text.
    """
    read_exactly(path, VERDICT_FILE, "story", VERDICT_SHA256, VERDICT_BYTES)
    return shipped(VERDICT_FILE) if path is None else Path(path)
