"""A GPT of one block learns nine sentences of seven words. The example prints its perplexity, in NumPy and in PyTorch.

    perplexity = exp(mean cross-entropy)

This is the number of equally likely words among which one would be as unsure. A model for which all words are equally
likely has a perplexity of 13, the size of the vocabulary. Before training it is larger, 16.02, because random weights
prefer some words to others. There is a lowest possible perplexity, the floor: no model can know which sentence comes,
but only how often each comes. If p(s) is the share of sentence s, and N words are predicted in each sentence,

    floor = exp(-sum of p(s) log p(s) / N)

Data, weights and order are fixed, so every run prints the same.
"""

import math
from collections import Counter
from functools import cache
from typing import Any

import numpy as np

from numpygpt import AdamW, GPTModel, perplexity

SENTENCES = [
    *(["the dog slept on the rug ."] * 4),
    "the cat slept on the sofa .",
    "the cat slept on the mat .",
    "the cat sat on the sofa .",
    "the cat sat on the mat .",
    "the cat ran to the door .",
]
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
TOKEN_IDS = np.array([[WORDS.index(word) for word in sentence.split()] for sentence in SENTENCES])  # (B, T + 1)
INPUTS, TARGETS = TOKEN_IDS[:, :-1], TOKEN_IDS[:, 1:]

CONFIG = {
    "vocab_size": len(WORDS),
    "context_length": TOKEN_IDS.shape[1],
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
STEPS, LEARNING_RATE = 60, 0.02
PRINTED = (0, 5, 10, 20, 40, 59)


def text(token_ids: Any) -> str:
    """The words of a row of token ids."""
    return " ".join(WORDS[token_id] for token_id in token_ids)


def new_model() -> GPTModel:
    """The model before training, in float64."""
    return GPTModel(CONFIG, seed=123, dtype=np.float64)


@cache
def trained() -> tuple[GPTModel, list[float]]:
    """The model after training, and the loss before each step."""
    model = new_model()
    optimizer = AdamW(model, lr=LEARNING_RATE)
    losses = []
    for _ in range(STEPS):
        loss, grads = model.loss_and_grads(INPUTS, TARGETS)
        losses.append(float(loss))
        optimizer.step(grads)
    return model, losses


def losses_by_torch() -> list[float]:
    """The same losses, by PyTorch's forward, backward and optimizer."""
    import torch

    from torchgpt import calc_loss_batch, to_torch

    model = to_torch(new_model())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for _ in range(STEPS):
        loss = calc_loss_batch(torch.tensor(INPUTS), torch.tensor(TARGETS), model, "cpu")
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def floor() -> float:
    """The lowest perplexity that a model can have on the sentences."""
    shares = [count / len(SENTENCES) for count in Counter(SENTENCES).values()]
    return math.exp(-sum(share * math.log(share) for share in shares) / TARGETS.shape[1])


def main() -> None:
    """Print the perplexity before some steps of the training, by numpygpt and by PyTorch, and the floor."""
    columns = {"numpygpt": trained()[1]}
    try:
        columns["by PyTorch"] = losses_by_torch()
    except ImportError:
        print("PyTorch is not installed: its column is skipped")
    print("step" + "".join(f"{name:>14}" for name in columns))
    for step in PRINTED:
        print(f"{step:>4}" + "".join(f"{perplexity(losses[step]):>14.4f}" for losses in columns.values()))
    print(f"floor {floor():>12.4f}")


if __name__ == "__main__":
    main()
