"""numpygpt embeddings: a picture of the word vectors."""

import argparse
import re
from pathlib import Path

from numpygpt.adapt.saving import model_of
from numpygpt.commands.trained import add_checkpoint_options, labels, picture_path, tokenizer_of
from numpygpt.data.tokenizer import Encoding, text_to_token_ids
from numpygpt.errors import InputError
from numpygpt.formats.kinds import read_model
from numpygpt.pictures.vectors import plot_word_vectors

#: How many tokens are drawn at most if none are named.
MOST_TOKENS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_checkpoint_options(parser)
    parser.add_argument(
        "--tokens",
        nargs="+",
        metavar="TEXT",
        help=f"texts of one token each, like ' the' (default: the {MOST_TOKENS} commonest words, or all characters)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture, PNG (default: embeddings.png in DIR)")


def run(parsed: argparse.Namespace) -> int:
    """Draw tokens as points in two dimensions, found from their word vectors by principal component analysis."""
    checkpoint = read_model(parsed.checkpoint)
    path = picture_path(parsed.out, checkpoint, "embeddings.png")
    tokenizer = tokenizer_of(checkpoint, parsed.vocab)
    ids = [_single_token(text, tokenizer) for text in parsed.tokens or []] or _common_tokens(tokenizer)
    vectors = model_of(checkpoint).state_dict()["tok_emb.weight"]
    if max(ids) >= len(vectors):
        raise InputError(f"token {max(ids)} has no vector: the model has {len(vectors)}, and another tokenizer")
    plot_word_vectors(vectors[ids], labels(ids, tokenizer), path)
    print(f"wrote {path}")
    return 0


def _single_token(text: str, tokenizer: Encoding) -> int:
    ids = text_to_token_ids(text, tokenizer)[0].tolist()
    if len(ids) != 1:
        raise InputError(f"{text!r} is {len(ids)} tokens of the tokenizer {tokenizer.name}; expected one")
    return ids[0]


def _common_tokens(tokenizer: Encoding) -> list[int]:
    """The first words among the tokens, or, if no token is a word, all characters.

    The first are the commonest, because byte-pair encoding gives the lower numbers to what is more common.
    """
    tokens = [tokenizer.decode_single_token_bytes(token_id) for token_id in range(tokenizer.n_vocab)]
    words = [token_id for token_id, token in enumerate(tokens) if re.fullmatch(rb" [A-Za-z]{3,}", token)]
    characters = [token_id for token_id, token in enumerate(tokens) if re.fullmatch(rb"[!-~]", token)]
    return words[:MOST_TOKENS] or characters
