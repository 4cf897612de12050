"""`freeze`: real mistakes in it."""

from importlib import import_module

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly

BUGS = (
    Bug(
        "freeze_trains_what_was_frozen",
        "freezing more makes what was frozen before trained again",
        "no public report known",
        "made.frozen.d_tok_emb.weight",
        ("freezing", "frozen_steps"),
        (Change("adapt.freeze:freeze", "model.frozen | matching(", "matching("),),
    ),
    Bug(
        "freeze_by_the_last_pattern",
        "of several patterns, the last one alone counts",
        "no public report known",
        "made.frozen.d_trf_blocks.0.att.W_query.weight",
        ("freezing", "frozen_steps"),
        (Change("adapt.freeze:matching", "found.update(matched)", "found = set(matched)"),),
    ),
    Bug(
        "unfreeze_freezes",
        "what is to be trained again is frozen",
        "no public report known",
        "made.frozen.d_trf_blocks.0.norm1.scale",
        ("freezing", "frozen_steps"),
        (Change("adapt.freeze:unfreeze", "model.frozen - matching(", "model.frozen | matching("),),
    ),
)

#: `numpygpt.adapt.freeze` is the function, which has the name of its module.
RECORD = BugsOnly(import_module("numpygpt.adapt.freeze"), "it makes models of models", BUGS)
