"""The parts of reproduce_book.py: the book's figures, the report beside them, the record of a run, the two backends."""
