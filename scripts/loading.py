"""Time and memory of loading a model, beside the least that it takes.

    python scripts/loading.py                        # GPT-2 124M, about a minute and 1 GB of the disk
    python scripts/loading.py --preset gpt2-medium

A model with random weights is written as a checkpoint of ours and as a folder of Hugging Face's. Each is loaded by
`numpygpt.load_model`, in turn with the peer: safetensors' own `load_file`, one copy of the arrays, and their SHA-256.
The times are the least of several turns. The memory is the most that a process of its own has at any time (on Linux),
above what it has before, as a multiple of the weights: 1 is the model itself.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpygpt
from numpygpt.commands.tables import print_table
from numpygpt.formats import hugging_face
from numpygpt.formats.checkpoint import write_checkpoint
from numpygpt.model.config import PRESETS
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_section

TURNS = 5
#: Where Linux says how much memory the process has had at most, in KiB. A process keeps the figure of who started it
#: in its resource usage, but not here.
STATUS = Path("/proc/self/status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="gpt2")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.load:
        print(memory_of_loading(parsed.load))
        return
    with TemporaryDirectory() as made:
        folders = write_both(Path(made), parsed.preset)
        rows = [(kind, *figures(folder, file)) for kind, (folder, file) in folders.items()]
    print_table("lrrrr", rows, head=("", "load_model", "the peer", "ratio", "memory"))


def write_both(folder: Path, preset: str) -> dict[str, tuple[Path, Path]]:
    """{kind: (folder, file of the weights)}."""
    model = GPTModel(PRESETS[preset])
    ours, theirs = folder / "ours", folder / "theirs"
    file = write_checkpoint(ours, {"model": model_section(model, "gpt2")})
    hugging_face.write_folder(theirs, model.config, model.named_parameters(), "gpt2")
    return {"numpygpt": (ours, file), "Hugging Face": (theirs, theirs / hugging_face.WEIGHTS)}


def figures(folder: Path, file: Path) -> tuple[str, str, str, str]:
    turns = [(seconds(lambda: numpygpt.load_model(folder)), seconds(lambda: least(file))) for _ in range(TURNS)]
    ours, peer = map(min, zip(*turns, strict=True))
    alone = subprocess.run(
        [sys.executable, __file__, "--load", str(folder)], check=True, capture_output=True, text=True
    )
    return f"{ours:.2f} s", f"{peer:.2f} s", f"{ours / peer:.2f}", f"{float(alone.stdout):.2f}"


def least(file: Path) -> None:
    """Load the arrays of a file, copy them, and hash them."""
    from safetensors.numpy import load_file

    arrays = load_file(file)
    copies = [array.copy() for array in arrays.values()]
    for array in copies:
        sha256(array.data).digest()


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def memory_of_loading(folder: Path) -> float:
    """The most memory of this process while it loads the model, above that of before, over that of the weights."""
    import safetensors  # noqa: F401  # its own memory counts as that of before

    before = most_memory()
    model = numpygpt.load_model(folder)
    return (most_memory() - before) / sum(array.nbytes for array in model.named_parameters().values())


def most_memory() -> int:
    """Bytes."""
    (line,) = (line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
