"""The commands of `numpygpt`, one in each file: `add_arguments(parser)` declares options, `run(parsed)` does the work.

`run` returns the exit status, and its docstring is the command's description in the help. If another package brings a
command, HELP in its module is the line for `numpygpt --help`. Importing such a module must be quick, so `run` imports
what is slow to import.
"""
