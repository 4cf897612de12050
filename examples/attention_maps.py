"""What each attention head of the tiny GPT of tiny_gpt.py reads, as tables and as a picture with a panel for each head.

A row is the word that reads, and a column is a word that it reads: itself or an earlier one. Each row sums to 1. The
word after the second "the" depends on who slept, so that "the" reads "dog". `numpygpt attention` draws such maps of any
checkpoint.
"""

from pathlib import Path

import numpy as np
from tiny_gpt import TOKEN_IDS, WORDS, trained

from numpygpt.pictures.attention import plot_attention
from numpygpt.shapes import Array

PICTURE = Path("runs") / "attention_maps.png"


def main() -> None:
    """Print and draw the attention weights of the first sentence."""
    model, _ = trained()
    token_ids = TOKEN_IDS[:1, :-1]
    activations: dict[str, Array] = {}
    model.forward(token_ids, watch=activations.__setitem__)
    attn_weights = activations["trf_blocks.0.att.attn_weights"][0]  # (H, T, T)
    words = [WORDS[token_id] for token_id in token_ids[0]]
    for head, weights in enumerate(attn_weights):
        print(f"head {head}" + "".join(f"{word:>8}" for word in words))
        for t, word in enumerate(words):
            print(f"{word:<6}" + "".join(f"{weight:>8.3f}" for weight in weights[t, : t + 1]))
    print(f"rows that sum to 1: {np.isclose(attn_weights.sum(axis=-1), 1).sum()} of {len(words) * len(attn_weights)}")
    PICTURE.parent.mkdir(exist_ok=True)
    plot_attention({0: attn_weights}, words, PICTURE)
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
