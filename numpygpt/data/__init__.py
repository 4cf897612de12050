"""From text to token ids, and from these to windows and batches."""
