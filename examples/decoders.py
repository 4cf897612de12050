"""Ways to choose the next word with the tiny GPT of tiny_gpt.py: greedy, by beam search, and at random.

Greedy decoding takes the likeliest word each time, and so can miss the likeliest sentence: after "the", "cat" is
likelier than "dog", but the words after "cat" are hard to predict. Beam search keeps several of the likeliest
beginnings, not only one.
"""

from typing import Any

import numpy as np
from tiny_gpt import CONFIG, TARGETS, WORDS, text, trained

from numpygpt import TorchGenerator, beam_search, generate, softmax_with_temperature

PROMPT = np.array([[WORDS.index("the")]])
NEW_WORDS, WINDOW = TARGETS.shape[1], CONFIG["context_length"]


def probability(token_ids: np.ndarray) -> float:
    """The model's probability of the words after the prompt: the product of that of each word after those before it."""
    model, _ = trained()
    inputs, targets = token_ids[np.newaxis, :-1], token_ids[1:]
    each = softmax_with_temperature(model(inputs)[0], 1.0)
    return float(np.take_along_axis(each, targets[:, np.newaxis], axis=1).prod())


def main() -> None:
    """Print what each decoder writes, and its probability by the model."""
    model, _ = trained()
    rng = TorchGenerator(123)
    sampling: dict[str, dict[str, Any]] = {
        "temperature 1": {"temperature": 1.0},
        "temperature 3": {"temperature": 3.0},
        "temperature 3, top-k 2": {"temperature": 3.0, "top_k": 2},
        "temperature 3, top-p 0.6": {"temperature": 3.0, "top_p": 0.6},
    }
    written = {"greedy": generate(model, PROMPT, NEW_WORDS, WINDOW)}
    for beams in (2, 4):
        written[f"beam search, {beams} beams"] = beam_search(model, PROMPT, NEW_WORDS, WINDOW, num_beams=beams)
    for name, options in sampling.items():
        written[name] = generate(model, PROMPT, NEW_WORDS, WINDOW, **options, rng=rng)
    for name, token_ids in written.items():
        print(f"{name:<26}{text(token_ids[0]):<30}{probability(token_ids[0]):.4f}")


if __name__ == "__main__":
    main()
