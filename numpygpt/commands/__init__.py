"""The commands of `numpygpt`, one a file: `add_arguments(parser)` declares the options, `run(parsed)` does the work.

`run` returns the exit status, and its docstring is the command's description in the help. A command that another
package brings has its line for `numpygpt --help` as HELP. Importing its module must be quick: what is slow to import is
imported in `run`.
"""
