"""What a wrong tensor is in plain terms: a multiple, transposed, in another order, another tensor, a sum with one.

A relation is sought between a candidate's tensor and what its own inputs lead to. It needs no cause that was foreseen,
and it points at one: a tensor that is 12 times what it should be, where B T is 12, is a sum in the place of a mean.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from numpygpt.checks.budgets import FORMATS
from numpygpt.checks.compare import finite_norms
from numpygpt.checks.diff import compared
from numpygpt.checks.replay import Replay
from numpygpt.checks.trace import KEEP, Tensors, is_parameter
from numpygpt.checks.trace_file import Header
from numpygpt.checks.words import factor_in_words
from numpygpt.shapes import Array

#: An axis with more entries is not searched for another order, and so many numbers at most are searched for sums.
MOST_ENTRIES, MOST_NUMBERS = 512, 2**24
#: A factor this close to a number with a name is that number.
SAME_NUMBER = 1e-3
#: A tensor with fewer numbers is a multiple of any other, or nearly.
ENOUGH = 3


class Relation(NamedTuple):
    """What a tensor is, in words, and ‖tensor - that‖ / ‖tensor‖."""

    what: str
    distance: float


class _Tensor(NamedTuple):
    """A candidate's tensor, and what its inputs lead to; both with zeros where they are not finite."""

    name: str
    ours: Array
    expected: Array
    sound: Tensors
    replay: Replay

    def if_close(self, computed: Array, what: str) -> Iterator[Relation]:
        """The relation, if the tensor is this within its budget. What is not finite is as it is expected to be."""
        expected = self.sound[self.name]
        if computed.shape == expected.shape:
            computed = np.where(np.isfinite(expected), computed, expected)
        if self.replay.used(self.name, computed) <= 1:
            yield Relation(what, self.replay.distance(self.name, computed))

    def others(self) -> Iterator[tuple[str, str, Array]]:
        """Every other tensor of the candidate, or what leads to it, and what is given: name, what it is called, array.

        The candidate's own come first, and of each kind the latest.
        """
        for name, array in reversed(self.replay.arrays.items()):
            if name != self.name:
                yield name, f"your `{name}`", array
        for name, array in reversed(self.sound.items()):
            if _is_float(array):
                yield name, f"what leads to `{name}`", array
        for name, array in reversed(self.replay.given.items()):
            if array.dtype != bool:
                yield name, f"`{name}` as it is given", array.astype(float)

    def equals_in_the_reference(self, other: str) -> bool:
        """Whether the reference's two tensors are equal too: without dropout, what goes into it is what comes out."""
        reference = self.replay.reference
        if other not in reference.order or other == self.name:
            return False
        found = compared(
            self.name, reference.read(other), reference.read(self.name), reference.budget(self.replay.format, self.name)
        )
        return found.passed


def _is_float(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def relations(name: str, ours: Array, sound: Tensors, replay: Replay) -> Iterator[Relation]:
    """What the candidate's tensor is, in terms of what its inputs lead to, or of its other tensors.

    name    of the tensor
    ours    the candidate's tensor of this name, with or without the expected shape
    sound   {name: array} of what the candidate's own inputs lead to
    """
    if not finite_norms(ours).tensor:
        yield Relation("is zero", 0.0)
        return
    tensor = _Tensor(name, _finite(ours), _finite(sound[name]), sound, replay)
    if ours.shape != sound[name].shape:
        yield from _of_other_shape(tensor)
        return
    with np.errstate(all="ignore"):  # a factor that overflows explains nothing
        yield from _multiple(tensor)
        yield from list(_mask(tensor, ours)) or _other_mask(tensor, ours)
        yield from _other_rows(tensor)
        yield from _transposed(tensor)
        yield from _reordered(tensor)
        yield from _summed_into_one(tensor)
        yield from _another(tensor)
        yield from _product(tensor)
        yield from _sum(tensor)
        yield from _difference(tensor)
        yield from _shuffled(tensor)


def _finite(array: Array) -> Array:
    return np.where(np.isfinite(array), array, 0)


# A factor


def _multiple(tensor: _Tensor) -> Iterator[Relation]:
    size = finite_norms(tensor.expected).tensor
    if not size:
        return
    factor = float((tensor.ours / size * (tensor.expected / size)).sum())
    named = _named(factor, tensor.replay.reference.header)
    if (tensor.ours.size < ENOUGH and not named) or abs(factor - 1) <= FORMATS[tensor.replay.format]:
        return
    words = factor_in_words(factor)
    meaning = f"; {words} is {' or '.join(named)}" if named else ""
    yield from tensor.if_close(factor * tensor.expected, f"is {words} times what its inputs lead to{meaning}")


def _named(factor: float, header: Header) -> list[str]:
    """What the factor is, in terms of sizes and settings; empty if it is none of them."""
    return [words for words, number in _numbers(header).items() if abs(factor - number) <= SAME_NUMBER * abs(number)]


def _numbers(header: Header) -> dict[str, float]:
    config, settings = header.config, header.settings
    B, T, D, K = settings.batch_size, settings.tokens, config.emb_dim, config.head_dim
    sizes = {
        "B": B, "T": T, "B T": B * T, "D": D, "K": K, "H": config.n_heads, "V": config.vocab_size,
        "L": config.n_layers, "the number of steps": settings.steps,
        "sqrt(D)": math.sqrt(D), "sqrt(K)": math.sqrt(K), "1 - drop_rate": 1 - config.drop_rate,
        "1 - beta1": 1 - settings.beta1, "1 - beta2": 1 - settings.beta2, "ln 2": math.log(2),
    }  # fmt: skip
    found = {"-1, another sign": -1.0}
    for words, number in sizes.items():
        if number not in (0, 1):
            found |= {words: number, f"1 / ({words})" if " " in words else f"1 / {words}": 1 / number}
    return found


def _mask(tensor: _Tensor, ours: Array) -> Iterator[Relation]:
    """Another number where -inf is expected."""
    expected = tensor.sound[tensor.name]
    masked = np.isneginf(expected)
    there = ours[masked]
    if not masked.any() or not np.isfinite(there).all() or not (there == there[0]).all():
        return
    computed = np.where(masked, there[0], expected)
    if tensor.replay.used(tensor.name, computed) <= 1:
        what = f"has {there[0]:.6g} where a score is masked and -inf is expected"
        yield Relation(what, tensor.replay.distance(tensor.name, computed))


def _other_mask(tensor: _Tensor, ours: Array) -> Iterator[Relation]:
    """-inf in other places than where it is expected, and the right numbers elsewhere."""
    expected = tensor.sound[tensor.name]
    hidden, masked = np.isneginf(ours), np.isneginf(expected)
    if ours.ndim < 2 or not masked.any() or (hidden == masked).all():
        return
    computed = np.where(hidden == masked, expected, ours)
    if tensor.replay.used(tensor.name, computed) <= 1:
        what = _mask_in_words(hidden, masked)
        yield Relation(what, tensor.replay.distance(tensor.name, computed))


def _mask_in_words(hidden: Array, masked: Array) -> str:
    """What is wrong with a mask that hides these scores, where these should be masked; queries and keys come last."""
    if not hidden.any():
        return "masks nothing: every query sees all keys, those of later tokens too"
    shown, concealed = masked & ~hidden, hidden & ~masked
    rows = hidden[..., 0].size
    words = []
    if shown.any():
        a_place_late = f"shows the next token to {shown.sum()} of {rows} queries: the mask begins one key too late"
        counted = f"shows {shown.sum()} scores of later tokens, which should be masked"
        words.append(a_place_late if _distances(shown) == {1} else counted)
    if concealed.any():
        own = f"hides their own token from {concealed.sum()} of {rows} queries: the mask begins one key too early"
        counted = f"masks {concealed.sum()} scores of tokens that should be seen"
        words.append(own if _distances(concealed) == {0} else counted)
    return ", and ".join(words)


def _distances(chosen: Array) -> set[int]:
    """How many places after its query each of the chosen keys is."""
    *_, queries, keys = np.nonzero(chosen)
    return set((keys - queries).tolist())


# Another order


def _of_other_shape(tensor: _Tensor) -> Iterator[Relation]:
    expected = tensor.sound[tensor.name]
    for axes in permutations(range(expected.ndim)):
        turned = expected.transpose(axes)
        if turned.shape == tensor.ours.shape:
            yield from tensor.if_close(turned, f"has its axes in the order {', '.join(map(str, axes))}")
    if tensor.ours.size == expected.size:
        what = f"has the shape {tensor.ours.shape}, not {expected.shape}, and is right except for that"
        yield from tensor.if_close(expected.reshape(tensor.ours.shape), what)


def _transposed(tensor: _Tensor) -> Iterator[Relation]:
    shape = tensor.expected.shape
    for one, other in combinations(reversed(range(len(shape))), 2):
        if shape[one] == shape[other] > 1:
            last_two = (one, other) == (len(shape) - 1, len(shape) - 2)
            which = "its last two axes" if last_two else f"its axes {other} and {one}"
            yield from tensor.if_close(tensor.expected.swapaxes(one, other), f"has {which} exchanged")


def _reordered(tensor: _Tensor) -> Iterator[Relation]:
    """The entries along one axis are those of other places."""
    for axis, entries in enumerate(tensor.expected.shape):
        if not 1 < entries <= MOST_ENTRIES:
            continue
        ours, expected = (np.moveaxis(array, axis, 0).reshape(entries, -1) for array in tensor[1:3])
        squares = (ours**2).sum(axis=1)[:, None] + (expected**2).sum(axis=1) - 2 * ours @ expected.T
        taken = squares.argmin(axis=1)
        if (taken != np.arange(entries)).any():
            what = _order_in_words(taken.tolist(), _axis(axis, tensor.expected.ndim))
            yield from tensor.if_close(tensor.expected.take(taken, axis), what)


def _axis(axis: int, axes: int) -> str:
    """What the entries along an axis are called."""
    names = {1: ("numbers",), 2: ("rows", "columns"), 3: ("sequences", "tokens", "features")}
    return names.get(axes, ("sequences", "heads", "rows", "columns"))[axis]


def _order_in_words(taken: list[int], entries: str) -> str:
    places = list(range(len(taken)))
    if taken == places[::-1]:
        return f"has its {entries} in the reverse order"
    for shift in (1, -1):
        if taken == [(place - shift) % len(places) for place in places]:
            return f"has its {entries} {'later' if shift > 0 else 'earlier'} by one"
    if len(set(taken)) == 1:
        return f"has the same in all its {entries}: that of {entries} {taken[0]}"
    shown = ", ".join(map(str, taken[:12])) + (", ..." if len(taken) > 12 else "")
    return f"has its {entries} in the order {shown}"


def _other_rows(tensor: _Tensor) -> Iterator[Relation]:
    """Each row is one of a table's rows, but not the right one."""
    if tensor.ours.ndim < 2 or not tensor.ours.size:
        return
    rows = tensor.ours.reshape(-1, tensor.ours.shape[-1])
    for what, table in _terms(tensor).items():
        if table.ndim != 2 or table.shape[1] != rows.shape[1] or len(table) > MOST_ENTRIES:
            continue
        taken = ((table**2).sum(axis=1) - 2 * rows @ table.T).argmin(axis=1)
        shown = ", ".join(map(str, taken[:6])) + (", ..." if len(taken) > 6 else "")
        yield from tensor.if_close(table[taken].reshape(tensor.ours.shape), f"has the rows {shown} of {what}")


def _summed_into_one(tensor: _Tensor) -> Iterator[Relation]:
    """All the entries along an axis are added up in one place, and zero elsewhere."""
    for axis, entries in enumerate(tensor.expected.shape):
        ours = np.moveaxis(tensor.ours, axis, 0).reshape(entries, -1)
        (filled,) = np.nonzero(ours.any(axis=1))
        if entries > 1 and len(filled) == 1:
            computed = np.zeros_like(tensor.expected)
            where = (slice(None),) * axis + (filled[0],)
            computed[where] = tensor.expected.sum(axis=axis)
            what = (
                f"has the sum of all its {_axis(axis, tensor.expected.ndim)} in number {filled[0]}, and zero elsewhere"
            )
            yield from tensor.if_close(computed, what)


def _shuffled(tensor: _Tensor) -> Iterator[Relation]:
    computed = np.empty(tensor.expected.size)
    order = np.argsort(tensor.ours, axis=None, kind="stable")
    computed[order] = np.sort(tensor.expected, axis=None)
    what = "has the right numbers in another order: look at reshapes, transpositions and the order of loops"
    if tensor.ours.size >= ENOUGH and np.unique(tensor.expected).size >= ENOUGH:
        yield from tensor.if_close(computed.reshape(tensor.expected.shape), what)


# Other tensors


def _another(tensor: _Tensor) -> Iterator[Relation]:
    for name, what, array in tensor.others():
        if array.shape != tensor.ours.shape:
            continue
        found = list(tensor.if_close(_finite(array), f"equals {what}"))
        if found and not tensor.equals_in_the_reference(name):
            yield found[0]
            return


def _product(tensor: _Tensor) -> Iterator[Relation]:
    """Multiplied or divided by another tensor, such as a scale or a mask that should not be there, or is missing."""
    if tensor.ours.size < ENOUGH:
        return
    masks = {f"`{name}`": array.astype(float) for name, array in tensor.replay.given.items() if name.startswith(KEEP)}
    for what, array in {**_terms(tensor), **masks}.items():
        if not array.any() or array.size < ENOUGH or not _fits(array, tensor):
            continue
        for words, computed in (
            ("is multiplied by", tensor.expected * array),
            ("is divided by", tensor.expected / array),
        ):
            if np.isfinite(computed).all():
                yield from tensor.if_close(computed, f"is what its inputs lead to, but {words} {what}")


def _sum(tensor: _Tensor) -> Iterator[Relation]:
    """Another tensor is missing from it, or added to it."""
    gap = tensor.ours - tensor.expected
    for what, array in _terms(tensor).items():
        if tensor.ours.size < ENOUGH or not array.any() or not _fits(array, tensor):
            continue
        term = np.broadcast_to(array, gap.shape)
        times = float((gap * term).sum() / (term * term).sum())
        found = list(
            tensor.if_close(tensor.expected + times * term, f"is what its inputs lead to, {_with(times, what)}")
        )
        if found:
            yield found[0]
            return


def _with(times: float, what: str) -> str:
    if abs(times + 1) < SAME_NUMBER:
        return f"but lacks {what}"
    return f"plus {what}" if abs(times - 1) < SAME_NUMBER else f"plus {times:.6g} times {what}"


def _difference(tensor: _Tensor) -> Iterator[Relation]:
    """One tensor is added in the place of another."""
    terms = {what: array for what, array in _terms(tensor).items() if array.shape == tensor.ours.shape and array.any()}
    if tensor.ours.size < ENOUGH or len(terms) ** 2 * tensor.ours.size > MOST_NUMBERS or len(terms) < 2:
        return
    names = list(terms)
    stacked = np.stack([array.reshape(-1) for array in terms.values()])
    gap = (tensor.ours - tensor.expected).reshape(-1)
    products, with_gap = stacked @ stacked.T, stacked @ gap
    squares = np.diag(products)
    left = squares[:, None] + squares - 2 * products - 2 * (with_gap[:, None] - with_gap)
    added, lacking = np.unravel_index(left.argmin(), left.shape)
    computed = tensor.expected + terms[names[added]] - terms[names[lacking]]
    yield from tensor.if_close(computed, f"adds {names[added]} where {names[lacking]} belongs")


def _terms(tensor: _Tensor) -> Tensors:
    """What may have been added or multiplied: the candidate's parameters, and what it computed before."""
    order, replay = tensor.replay.reference.order, tensor.replay
    own: Mapping[str, Array] = {
        **{other: array for other, array in replay.own.items() if is_parameter(other) and other != tensor.name},
        **{other: replay.arrays[other] for other in order[: order.index(tensor.name)] if other in replay.arrays},
    }
    return {f"your `{other}`": _finite(array) for other, array in own.items() if array.size > 1}


def _fits(array: Array, tensor: _Tensor) -> bool:
    """Whether it has the tensor's shape, or that of its last axes, as a bias or the table of positions has."""
    shape = tensor.ours.shape
    return 0 < array.ndim <= len(shape) and array.shape == shape[len(shape) - array.ndim :]
