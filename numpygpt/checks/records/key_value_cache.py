"""`key_value_cache`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.layers import key_value_cache

_CACHE = "layers.key_value_cache:KeyValueCache"

BUGS = (
    Bug(
        "cache_shifted_by_one",
        "the values of a new token are written over those of the token before, too",
        "nanoGPT#613",
        "decode.logits",
        ("cache", "decoding", "padding"),
        (Change(f"{_CACHE}.extended", "[1, :, :, start:stop] = values", "[1, :, :, max(0, start - 1):stop] = values"),),
    ),
    Bug(
        "cache_stale",
        "the keys of new tokens are not written, so that they stay as they were: zero",
        "nanoGPT#613",
        "decode.logits",
        ("cache", "sampling", "decoding", "padding"),
        (
            Change(
                f"{_CACHE}.extended",
                "buffer.keys_values[0, :, :, start:stop] = keys",
                "buffer.keys_values[0, :, :, start:stop] = 0 if start else keys",
            ),
        ),
    ),
    Bug(
        "cache_overwritten_by_another_continuation",
        "two continuations of one past write to the same place",
        "ours, met while the cache was written",
        "decode.continued_twice",
        ("cache", "purity"),
        (Change(f"{_CACHE}.extended", "buffer.used != start or stop", "stop"),),
    ),
    Bug(
        "cache_rows_not_reordered",
        "a beam search chooses its beams anew, and their caches stay as they were",
        "ours, met while the cache was written",
        "decode.of_swapped_rows",
        ("cache",),
        (
            Change(
                f"{_CACHE}._copied",
                "self.buffer.keys_values[:, rows, :, : self.length]",
                "self.buffer.keys_values[:, :, :, : self.length]",
            ),
        ),
    ),
)

RECORD = BugsOnly(key_value_cache, "a memory of keys and values, which computes nothing", BUGS)
