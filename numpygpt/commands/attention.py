"""numpygpt attention: a picture of what each attention head reads."""

import argparse
from pathlib import Path

from numpygpt.adapt.saving import model_of
from numpygpt.commands.trained import add_checkpoint_options, encoded, labels, picture_path, tokenizer_of
from numpygpt.errors import InputError
from numpygpt.formats.kinds import read_model
from numpygpt.pictures.attention import plot_attention
from numpygpt.shapes import Array
from numpygpt.tree import nothing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_checkpoint_options(parser)
    parser.add_argument("--prompt", required=True, help="text to read")
    parser.add_argument("--layer", type=int, metavar="N", help="of this transformer block only, counted from 0")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the picture, PNG (default: attention.png in DIR)")


def run(parsed: argparse.Namespace) -> int:
    """Draw how much each token of a text reads of the others, one panel an attention head."""
    checkpoint = read_model(parsed.checkpoint)
    path = picture_path(parsed.out, checkpoint, "attention.png")
    tokenizer = tokenizer_of(checkpoint, parsed.vocab)
    idx = encoded(parsed.prompt, tokenizer)
    model = model_of(checkpoint)
    layers = range(model.config.n_layers)
    if parsed.layer is not None and parsed.layer not in layers:
        raise InputError(f"--layer is {parsed.layer}; the model has layers 0 to {layers[-1]}")
    seen: dict[str, Array] = {}
    model.forward(idx, trained=nothing, watch=seen.__setitem__)
    attn_weights = {
        layer: seen[f"trf_blocks.{layer}.att.attn_weights"][0] for layer in layers if parsed.layer in (None, layer)
    }
    plot_attention(attn_weights, labels(idx[0].tolist(), tokenizer), path)
    print(f"wrote {path}")
    return 0
