"""From logits to a loss, and back."""
