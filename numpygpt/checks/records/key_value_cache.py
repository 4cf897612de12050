"""`key_value_cache`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.layers import key_value_cache

BUGS = (
    Bug(
        "cache_overwritten_by_another_continuation",
        "two continuations of one past write to the same place",
        "ours, met while the cache was written",
        "decode.continued_twice",
        ("cache", "purity"),
        (Change("layers.key_value_cache:KeyValueCache.extended", "buffer.used != start or stop", "stop"),),
    ),
    Bug(
        "cache_rows_not_reordered",
        "a beam search chooses its beams anew, and their caches stay as they were",
        "ours, met while the cache was written",
        "decode.of_swapped_rows",
        ("cache",),
        (
            Change(
                "layers.key_value_cache:KeyValueCache._copied",
                "self.buffer.keys_values[:, rows, :, : self.length]",
                "self.buffer.keys_values[:, :, :, : self.length]",
            ),
        ),
    ),
)

RECORD = BugsOnly(key_value_cache, "a memory of keys and values, which computes nothing", BUGS)
