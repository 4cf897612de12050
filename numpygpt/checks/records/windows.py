"""`windows`: real mistakes in the targets."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.data import windows

_INIT = "data.windows:TokenWindows.__init__"

BUGS = (
    Bug(
        "labels_not_shifted",
        "the targets are the inputs",
        "transformers#404",
        "data.target_ids",
        ("data", "loader"),
        (Change(_INIT, "token_ids[1:]", "token_ids[:-1]"),),
    ),
    Bug(
        "labels_shifted_twice",
        "the targets are two tokens later",
        "transformers#37830",
        "data.target_ids",
        ("data", "loader"),
        (Change(_INIT, "token_ids[1:]", "token_ids[[*range(2, len(token_ids)), 0]]"),),
    ),
)

RECORD = BugsOnly(windows, "it cuts token ids, which have no gradient", BUGS)
