"""`body`: calls of it, and real mistakes in it."""

from collections.abc import Mapping

import numpy as np

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import Call, Record
from numpygpt.checks.records.attention import SOME_SEEN
from numpygpt.checks.source import Only, Source, at_random, random_parameters
from numpygpt.layers import parameters as p
from numpygpt.model import body
from numpygpt.model.config import GPTConfig
from numpygpt.model.initialization import allocate

#: The table of a body that is given embeddings in the place of token ids.
NO_TABLE = p.Embedding._make([None])


def draw(source: Source) -> Call:
    """Draw ids or embeddings, positions of every kind, and every option except a past."""
    config = source.config()
    B, T, rate = source.size(3), source.size(config.context_length), config.drop_rate
    parameters = source.filled(allocate(config, np.float64).body)
    shape = B, T, config.emb_dim
    embeddings = source.yes()
    if embeddings:
        parameters = parameters._replace(tok_emb=NO_TABLE)
    positions_of = source.choose.one_of([None, (T,), (B, T)])
    return Call(
        {
            "inputs": source.normal(*shape) if embeddings else source.ids(config.vocab_size, (B, T)),
            "parameters": parameters,
        },
        {
            "n_heads": config.n_heads,
            "positions": None if positions_of is None else source.ids(config.context_length, positions_of),
            "visible": source.visible(T, T, B),
            "masks": body.DropoutMasks(
                source.keep(shape, rate),
                tuple(source.block_masks(shape, config.n_heads, rate) for _ in parameters.trf_blocks),
            ),
            "drop_rate": rate,
            "flash": source.yes(),
            "activation": config.activation,
            "norm_eps": config.norm_eps,
            "recompute": source.yes(),
            "wants_x": source.yes(),
            "trained": source.trained(parameters),
        },
    )


def _parameters(source: Source, position: str, n_layers: int, biases: bool = True) -> p.Body:
    config = GPTConfig(7, 6, 6, 3, n_layers, drop_rate=0.0, qkv_bias=biases, position=position, bias=biases)
    parameters: p.Body = random_parameters(source, allocate(config, np.float64).body)
    return parameters


def _call(
    source: Source,
    *,
    embeddings: bool = False,
    position: str = "learned",
    n_layers: int = 2,
    biases: bool = True,
    **options: object,
) -> Call:
    inputs = source.normal(2, 5, 6) if embeddings else source.rng.integers(0, 7, (2, 5))
    parameters = _parameters(source, position, n_layers, biases)
    masks = body.draw_masks(source.rng, (2, 5, 6), 3, n_layers, 0.3)
    if embeddings:
        parameters, options = parameters._replace(tok_emb=NO_TABLE), {"wants_x": True, **options}
    return Call(
        {"inputs": inputs, "parameters": parameters}, {"n_heads": 3, "masks": masks, "drop_rate": 0.3, **options}
    )


#: The positions of two sequences: the first holds two documents, and the second holds one that begins late.
POSITIONS = np.array([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])

#: Some trained leaves, with frozen ones before, between and after them.
SOME = Only({"pos_emb.weight", "trf_blocks.0.att.W_query.weight", "trf_blocks.0.att.W_value.weight"})
LAST = Only({"trf_blocks.1.norm2.scale", "final_norm.shift"})


def complex_step(source: Source) -> Mapping[str, Call]:
    """Ids at positions that differ between the sequences, embeddings in the place of ids, and most leaves frozen."""
    return {
        "": _call(source, positions=POSITIONS, visible=SOME_SEEN, n_layers=1),
        "embeddings": _call(source, embeddings=True, n_layers=1),
        "some trained": _call(source, trained=SOME, recompute=True),
    }


SPECIAL = {
    "one token": Call(
        {"inputs": np.array([[3]]), "parameters": _parameters(at_random(0), "learned", 1)}, {"n_heads": 3}
    ),
    "one position for all": _call(at_random(1), positions=np.full(5, 2)),
    "positions of each sequence": _call(at_random(2), positions=POSITIONS, visible=SOME_SEEN),
    "some trained, recomputed": _call(at_random(3), trained=SOME, recompute=True, flash=True),
    "the last leaves alone": _call(at_random(4), trained=LAST),
    "embeddings alone have a gradient": _call(
        at_random(5), embeddings=True, position="sinusoidal", trained=Only()
    ),
    "nothing has a gradient": _call(at_random(6), trained=Only()),
    "no biases, exact GELU, a large eps, recomputed": _call(
        at_random(7), biases=False, activation="gelu_erf", norm_eps=0.5, recompute=True
    ),
}

BUGS = (
    Bug(
        "position_restarts_with_cache",
        "with a cache, the new token gets position 0",
        "mlx-lm#93",
        "decode.logits",
        ("cache", "sampling"),
        (
            Change(
                "model.body:forward",
                "np.arange(T) + (past[0].length if past else 0)",
                "np.arange(T)",
            ),
        ),
    ),
    Bug(
        "position_gradient_not_summed",
        "the gradient of what a batch shares is not summed over the batch",
        "pytorch#13669",
        "d_pos_emb",
        ("gradients", "complex_step"),
        (Change("model.body:backward", "d_embedded.sum(axis=0)", "d_embedded[0]"),),
    ),
    Bug(
        "positions_of_each_sequence_summed",
        "positions that each sequence has for itself get the gradient of the whole batch",
        "no public report known",
        "packed.d_pos_emb",
        ("packing",),
        (
            Change(
                "model.body:backward",
                "if saved.pos_emb.ids.ndim == 1 else d_embedded",
                "if saved.pos_emb.ids.ndim == 1 else np.broadcast_to(d_embedded.sum(axis=0), d_embedded.shape)",
            ),
        ),
    ),
    Bug(
        "final_norm_with_an_eps_of_its_own",
        "the last norm keeps the default eps, and the blocks' have the model's",
        "no public report known",
        "final_norm",
        ("forward", "gradients"),
        (Change("model.body:forward", "x, *parameters.final_norm, eps=norm_eps,", "x, *parameters.final_norm,"),),
    ),
    Bug(
        "gradient_ends_at_a_frozen_block",
        "a block without trained parameters passes no gradient on to those below",
        "transformers#21381",
        "frozen.d_trf_blocks.1",
        ("frozen",),
        (Change("model.body:forward", "wants = wanted_here", "wants = any_trained(block, trained_block)"),),
    ),
)

RECORD = Record(body, draw, SPECIAL, complex_step, BUGS)
