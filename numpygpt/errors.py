"""The one exception for input that cannot be used, and the exit statuses of commands that do not finish."""

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
CLOSED_PIPE = 141  # 128 + SIGPIPE


class InputError(ValueError):
    """Input that cannot be used: one line that names it, what was found, what was expected and what to do.

    The command line prints the line and exits with status 2; a program can catch it as a ValueError.
    """
