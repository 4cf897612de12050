"""Softmax with temperature, and top-k, for the word after "every effort moves you", in a vocabulary of nine words.

    p = softmax(logits / temperature)

A temperature below 1 makes the likeliest word even likelier, and one above 1 makes the others likelier. Temperature 0
stands for the argmax.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from numpygpt.decoding.sampling import keep_top_k, print_sampled_tokens, softmax_with_temperature

WORDS = ("closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you")
LOGITS = np.array([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79], dtype=np.float32)
TEMPERATURES = (1.0, 0.1, 5.0)


def torch_probabilities() -> dict[float, list[float]]:
    """{temperature: probabilities}, by PyTorch."""
    import torch

    logits = torch.tensor(LOGITS)
    return {temperature: torch.softmax(logits / temperature, dim=0).tolist() for temperature in TEMPERATURES}


def print_probabilities(probabilities: Mapping[float, Sequence[float] | np.ndarray]) -> None:
    """Print a line for each word, with a column for each temperature."""
    print(" " * 8 + "".join(f"{f'T = {temperature:g}':>10}" for temperature in probabilities))
    for word, row in zip(WORDS, zip(*probabilities.values(), strict=True), strict=True):
        print(f"{word:<8}" + "".join(f"{probability:>10.4f}" for probability in row))


def main() -> None:
    """Print the greedy choice, the probabilities, the three likeliest words alone, and 1000 draws."""
    print(f"the likeliest word: {WORDS[LOGITS.argmax()]}")
    print("\nprobabilities at three temperatures")
    print_probabilities({temperature: softmax_with_temperature(LOGITS, temperature) for temperature in TEMPERATURES})
    print("\nthe same by PyTorch")
    try:
        print_probabilities(torch_probabilities())
    except ImportError:
        print("skipped: PyTorch is not installed")

    print("\nthe three likeliest words alone")
    top_three = softmax_with_temperature(keep_top_k(LOGITS[np.newaxis], 3)[0], 1.0)
    for word, probability in zip(WORDS, top_three, strict=True):
        if probability > 0:
            print(f"{word:<8}{probability:>10.4f}")

    print("\n1000 draws at temperature 1, PyTorch's of seed 123")
    print_sampled_tokens(softmax_with_temperature(LOGITS, 1.0), WORDS)


if __name__ == "__main__":
    main()
