"""numpygpt tokenize: texts of any size as a file of token ids."""

import argparse
from contextlib import ExitStack
from pathlib import Path

from numpygpt.data.token_file import dtype_of, validation_path
from numpygpt.data.tokenizer import TOKENIZERS, get_tokenizer
from numpygpt.data.tokenizing import Part, characters, write_tokens
from numpygpt.errors import InputError
from numpygpt.files import check_writable, replacing
from numpygpt.parallel import number_of_threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("texts", type=Path, nargs="+", metavar="FILE", help="UTF-8 texts, plain or .gz, which are taken as one")
    add("--out", type=Path, required=True, metavar="FILE", help="the file of ids to write")
    add("--tokenizer", choices=TOKENIZERS, default="gpt2", help="how text becomes ids")
    add("--vocab", metavar="FILE", help="file of GPT-2's ranks, byte for byte the one that ships")
    add(
        "--validation",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the characters, the last ones, whose ids go to a file beside it, to validate with",
    )
    add("--processes", type=int, help="that encode at a time (default: one for each core)")
    add("--overwrite", action="store_true", help="replace files that are there")


def run(parsed: argparse.Namespace) -> int:
    """Write the token ids of texts to a file, and those of their last part to a file beside it."""
    from tqdm import tqdm

    processes = number_of_threads() if parsed.processes is None else parsed.processes
    if processes < 1:
        raise InputError(f"--processes is {processes}; expected 1 or more")
    if not 0 <= parsed.validation < 1:
        raise InputError(f"--validation is {parsed.validation}; expected a share from 0 to less than 1")
    tokenizer = get_tokenizer(parsed.tokenizer, parsed.vocab)
    targets = [parsed.out, validation_path(parsed.out)][: 2 if parsed.validation else 1]
    for target in targets:
        if target.exists() and not parsed.overwrite:
            raise InputError(f"{target} is already there; replace it with --overwrite, or name another --out")
        if target.exists() and any(text.exists() and target.samefile(text) for text in parsed.texts):
            raise InputError(f"{target} is one of the texts; name another --out")
        check_writable(target)
    length = sum(map(len, characters(parsed.texts)))
    end = int((1 - parsed.validation) * length)
    lengths = [end, length - end][: len(targets)]
    if 0 in lengths:
        raise InputError(f"the texts have {length} characters, and a part would be empty; give more text")
    size = sum(path.stat().st_size for path in parsed.texts)
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=size, unit="B", unit_scale=True, dynamic_ncols=True))
        unfinished = [stack.enter_context(replacing(target)) for target in targets]
        files = [stack.enter_context(path.open("wb")) for path in unfinished]  # closed before either takes its place
        counts = write_tokens(
            parsed.texts, list(map(Part, lengths, files)), parsed.tokenizer, parsed.vocab, processes, bar.update
        )
    for target, count in zip(targets, counts, strict=True):
        print(f"wrote {target}: {count:,} ids of {parsed.tokenizer}, {dtype_of(tokenizer.n_vocab).name}")
    return 0
