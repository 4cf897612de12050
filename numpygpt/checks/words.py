"""What is wrong with a gradient, in words."""

import numpy as np

from numpygpt.shapes import Array

#: How close two arrays are, relative to the norm of the second, that are called the same in words.
ALIKE = 1e-6
#: What part of a difference a factor may leave unexplained.
SMALL_PART = 1e-2


def in_words(ours: Array, right: Array) -> str:
    """How a wrong gradient differs from the right one of the same shape: "is 2 times the right one"."""
    if ours.ndim == 2 and ours.shape[0] == ours.shape[1] and _alike(ours, right.T) and not _alike(ours, right):
        return "is the transpose of the right one"
    return _as_a_whole(ours, right) or _rows_in_words(ours, right) or _elements_in_words(ours, right)


def in_words_of_samples(ours: Array, right: Array, elements: Array, shape: tuple[int, ...]) -> str:
    """The same of a gradient of this shape of which only some products with directions are known.

    ours, right   the values of these elements first, and then the products with random directions
    elements      the flat indices of the elements
    """
    as_a_whole = _as_a_whole(ours, right)
    if as_a_whole:
        return as_a_whole
    differences = np.abs(ours - right)[: len(elements)]
    worst = int(differences.argmax())
    if differences[worst] <= ALIKE * np.abs(right[worst]):
        return f"differs along random directions, and in none of the {len(elements)} sampled elements"
    where = ", ".join(map(str, np.unravel_index(int(elements[worst]), shape)))
    return f"at [{where}] is {ours[worst]:.10g}, and should be {right[worst]:.10g}"


def _as_a_whole(ours: Array, right: Array) -> str:
    """What is wrong with all elements at once; empty if it is nothing of the kind."""
    if not np.isfinite(ours).all():
        return f"has values that are NaN or infinite: {np.count_nonzero(~np.isfinite(ours))} of {ours.size}"
    if not ours.any():
        return "is zero everywhere"
    square = (right * right).sum()
    factor = (ours * right).sum() / square if square else 0.0
    if factor and np.linalg.norm(ours - factor * right) <= SMALL_PART * np.linalg.norm(ours - right):
        return f"is {factor_in_words(factor)} times the right one"
    return ""


def factor_in_words(factor: float) -> str:
    """The number, or how far from 1 it is if it is close to that."""
    return f"1 {'-' if factor < 1 else '+'} {abs(factor - 1):.1e}" if abs(factor - 1) < 1e-3 else f"{factor:.6g}"


def _alike(a: Array, b: Array) -> bool:
    return bool(np.linalg.norm(a - b) <= ALIKE * np.linalg.norm(b))


def _rows_in_words(ours: Array, right: Array) -> str:
    """What is wrong with the rows along the first axis: zeros where there should be none, or a sum of all in one."""
    if ours.ndim < 2 or len(ours) < 2:
        return ""
    ours, right = ours.reshape(len(ours), -1), right.reshape(len(right), -1)
    empty = [str(row) for row in range(len(ours)) if right[row].any() and not ours[row].any()]
    if not empty:
        return ""
    total = right.sum(axis=0)
    sums = [str(row) for row in range(len(ours)) if _alike(ours[row], total)]
    there = f"; row {', '.join(sums)} holds the sum of all" if sums else ""
    return f"is zero in row {', '.join(empty[:5])}{', ...' * (len(empty) > 5)} of {len(ours)}{there}"


def _elements_in_words(ours: Array, right: Array) -> str:
    """Where the largest difference is, and how many elements differ."""
    differences = np.abs(ours - right)
    largest = np.unravel_index(int(differences.argmax()), ours.shape)
    where = f" at [{', '.join(map(str, largest))}]" if ours.ndim else ""
    wrong = np.count_nonzero(differences > ALIKE * differences.max())
    return (
        f"differs in {wrong} of {ours.size} elements, most{where}: "
        f"it is {ours[largest]:.10g}, and should be {right[largest]:.10g}"
    )
