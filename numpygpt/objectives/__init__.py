"""Objectives: each computes a loss from the logits, and the gradient of the loss with respect to the logits."""
