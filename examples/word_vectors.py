"""The word vectors of the tiny GPT of tiny_gpt.py, drawn in two dimensions.

The vectors have 16 dimensions. The picture shows the two directions in which they differ most (principal component
analysis). The training is so short that much of their random start is left. `numpygpt embeddings` draws the vectors of
any checkpoint.
"""

from pathlib import Path

from tiny_gpt import WORDS, trained

from numpygpt.pictures.vectors import plot_word_vectors, principal_components

PICTURE = Path("runs") / "word_vectors.png"


def main() -> None:
    """Print the coordinates and draw the picture."""
    model, _ = trained()
    vectors = model.state_dict()["tok_emb.weight"]
    places, shares = principal_components(vectors)
    print(f"{'share of the variance':<24}{shares[0]:>8.3f}{shares[1]:>8.3f}")
    for word, (x, y) in zip(WORDS, places, strict=True):
        print(f"{word:<24}{x:>8.3f}{y:>8.3f}")
    PICTURE.parent.mkdir(exist_ok=True)
    plot_word_vectors(vectors, WORDS, PICTURE)
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
