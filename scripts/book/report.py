"""A report that prints figures beside the book's, each with a verdict."""

from tqdm import tqdm

DIFFERENT = 1


class Report:
    """Prints figures beside the book's, each with a verdict, and counts them.

    The verdicts are:

    same      the figures agree in every character
    close     they agree except for last digits, which depend on the order in which a machine sums float32 values
    DIFFERS   neither

    The attributes are:

    compared    how many figures were compared
    exact       {what: the figure here} for those that have to be the book's in every character
    different   the figures that differ
    """

    def __init__(self) -> None:
        self.compared = 0
        self.exact: dict[str, str] = {}
        self.different: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        tqdm.write(f"\n{text}\n{'verdict':<9}{'figure':<46}{'here':<27}the book")

    def figure(self, what: str, here: str, books: str, same: bool | None = None) -> None:
        """Print a figure here and in the book. `same` says whether they agree; None: if their texts are equal."""
        if same is None:
            same, self.exact[what] = here == books, here
        verdict = self._verdict(what, same)
        if same and here != books:
            verdict = "close"
        if max(len(here), len(books)) <= 26:
            tqdm.write(f"{verdict:<9}{what:<46}{here:<27}{books}")
        else:
            tqdm.write(f"{verdict:<9}{what}\n{'here':>17}  {here}\n{'the book':>17}  {books}")

    def line(self, here: str, books: str | None) -> None:
        """Print a line of the training log, and the book's line if it differs."""
        if books is None:
            tqdm.write(f"{here}  [beyond the book]")
        elif self._verdict(here, here == books) == "same":
            tqdm.write(f"{here}  [same as the book]")
        else:
            tqdm.write(f"{here}  [DIFFERS]\n{books}  [the book]")

    def conclude(self) -> int:
        """Print how many figures differ, and which; returns the exit status."""
        tqdm.write(f"\n{self.compared} figures compared with the book: {len(self.different) or 'none'} differ")
        for what in self.different:
            tqdm.write(f"  {what}")
        return DIFFERENT if self.different else 0

    def _verdict(self, what: str, same: bool) -> str:
        self.compared += 1
        if not same:
            self.different.append(what)
        return "same" if same else "DIFFERS"
