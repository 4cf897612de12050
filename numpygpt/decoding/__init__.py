"""From a prompt to text: one token at a time, or by beam search."""
