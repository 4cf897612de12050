"""Objectives: each computes a loss from what a head gives, and the gradient of the loss with respect to it.

    next_token            the mean cross-entropy with the token that follows, at each position that counts
    weighted_next_token   the same with a weight for each token, smoothed labels, and a mean over tokens or sequences
    classification        the class of a text, from the logits at its last real token
    reward                of two answers, the better one has the higher score (Bradley-Terry)
    dpo                   a policy learns from pairs of answers, without a reward model; also IPO
    reinforce             a token is pushed by how much better it was than a baseline
    clipped_policy        the same over several steps, which the clip holds near the policy that drew (PPO, GRPO)
    clipped_value         the value head of PPO learns the return that is to come
    grpo                  `clipped_policy` and the divergence from a reference, in one loss
    distillation          a student learns a teacher's distribution, at a temperature, in either direction
    hidden_match          a student's last hidden state comes near a teacher's

Each has the contract of an operation (`numpygpt.ops`). Arguments that are no fields of its `Gradients` are constants:
labels, weights, advantages, what another model computed.

A batch that is cut into micro-batches has one loss. So each objective takes a `normalizer`, what the sum over the whole
batch is divided by: the losses and the gradients of the parts, each computed with the normalizer of the whole, add up
to those of the whole. The mean of the parts' own means is something else as soon as the parts differ in size. Only
`next_token` has none; `numpygpt.training.step` multiplies by the parts' shares instead.
"""
