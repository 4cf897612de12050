"""Tables of text. On a terminal they are colored and fit its width; elsewhere they are plain lines of full length."""

import sys
from collections.abc import Container, Iterable, Sequence

#: How many spaces are between two columns.
GAP = 3


def print_table(
    columns: str, rows: Iterable[Sequence[str]], *, head: Sequence[str] = (), wrong: Container[int] = ()
) -> None:
    """Print rows of cells.

    columns   a letter for each column: l for text, aligned to the left; r for numbers, aligned to the right
    rows      the texts of the cells, row by row
    head      the names of the columns
    wrong     the rows, counted from 0, that a terminal shows in red
    """
    from rich.console import Console
    from rich.table import Table

    sys.stdout.flush()  # rich would do it, and end the process if the reader of the output has closed it
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_header=bool(head))
    for letter, name in zip(columns, head or [""] * len(columns), strict=True):
        table.add_column(name, justify="right" if letter == "r" else "left", overflow="fold")
    for index, cells in enumerate(rows):
        table.add_row(*cells, style="bold red" if index in wrong else None)
    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    if not sys.stdout.isatty():
        console.width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))
