"""The parts of reproduce_book.py: the book's figures, the report on them, the record of a run, and the two backends."""
