"""How well a model predicts: perplexity of a text, the last word of a passage, the right one of several endings.

And what a tuned model has learned: answers, classes, the better of two answers, answers that are judged better.
"""
