"""Text as token ids in windows and batches."""
