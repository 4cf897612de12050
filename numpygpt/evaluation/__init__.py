"""How well a model predicts: perplexity of a text, the last word of a passage, the right one of several endings."""
