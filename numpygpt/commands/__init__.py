"""The commands of `numpygpt`, one a file: `add_arguments(parser)` declares the options, `run(parsed)` does the work.

`run` returns the exit status, and its docstring is the command's description in the help.
"""
