"""`generation`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.decoding import generation

BUGS = (
    Bug(
        "cache_leaks",
        "a generation goes on from the keys and values of the one before",
        "burn-lm#53",
        "second_generation.token_ids",
        ("cache", "sampling"),
        (
            Change("decoding.generation:_stream", "past = None\n", "past = getattr(model, '_past', None)\n"),
            Change("decoding.generation:_stream", "chosen = choose", "model._past = past\n        chosen = choose"),
        ),
    ),
    Bug(
        "eos_of_any_row_ends_batch",
        "one row's eos stops all rows",
        "SOKE#7",
        "generation.token_ids",
        ("sampling", "decoding"),
        (Change("decoding.generation:generate", "stopped.all()", "stopped.any()"),),
    ),
)

RECORD = BugsOnly(generation, "it chooses tokens, which have no gradient", BUGS)
