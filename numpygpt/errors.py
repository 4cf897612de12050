"""The one exception for input that cannot be used."""


class InputError(ValueError):
    """Input that cannot be used: one line that names it, what was found, what was expected and what to do.

    The command line prints the line and exits with status 2; a program can catch it as a ValueError.
    """
