"""`sampling`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.decoding import sampling

_CHOOSE = "decoding.sampling:choose"

BUGS = (
    Bug(
        "top_k_keeps_ties",
        "all logits that equal the k-th are kept",
        "the book's own listing",
        "generation.top_k",
        ("sampling", "decoding"),
        (
            Change(
                "decoding.sampling:keep_top_k",
                "return kept",
                "return np.where(logits < np.sort(logits, axis=-1)[:, -k, np.newaxis], -np.inf, logits)",
            ),
        ),
    ),
    Bug(
        "temperature_zero_divides",
        "temperature 0 divides the logits by 0",
        "gemma#562",
        "generation.token_ids",
        ("sampling", "cache"),
        (
            Change(_CHOOSE, "if temperature == 0:", "if temperature < 0:"),
            Change("decoding.sampling:softmax_with_temperature", "not 0 < temperature", "not 0 <= temperature"),
            Change("decoding.sampling:softmax_with_temperature", "max(temperature, lowest)", "temperature"),
        ),
    ),
    Bug(
        "temperature_zero_means_one",
        "temperature 0 samples as temperature 1 does",
        "no public report known",
        "generation.token_ids",
        ("sampling", "cache"),
        (
            Change(_CHOOSE, "if temperature == 0:", "if temperature < 0:"),
            Change(_CHOOSE, "softmax_with_temperature(logits, temperature)",
                   "softmax_with_temperature(logits, temperature or 1)"),
        ),
    ),
)

RECORD = BugsOnly(sampling, "it chooses tokens, which have no gradient", BUGS)
