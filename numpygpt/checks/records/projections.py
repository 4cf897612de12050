"""`projections`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.layers import projections

BUGS = (
    Bug(
        "lora_drops_nothing",
        "the masks of the paths are drawn and never reach them",
        "no public report known",
        "adapted.trf_blocks.0.att.queries",
        ("adapters",),
        (Change("layers.projections:with_masks", "if not masks:", "if True:"),),
    ),
)

RECORD = BugsOnly(projections, "it finds and replaces nodes of a tree", BUGS)
