"""Files that hold models."""
