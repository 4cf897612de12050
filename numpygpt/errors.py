"""The only exception for input that cannot be used, and the exit statuses of commands that do not finish."""

from collections.abc import Sequence

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
CLOSED_PIPE = 141  # 128 + SIGPIPE


class InputError(ValueError):
    """Input cannot be used. The message is one line: the thing, what was found, what was expected, what to do.

    The command line prints the line and exits with status 2. A program can catch the error as a ValueError.
    """


def listed(names: Sequence[str], most: int) -> str:
    """The names with commas between them, for a message; of more than `most` names, the first, and how many are left.

    So a message stays a line that can be read.
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
