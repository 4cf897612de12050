"""Examples: the token ids of a text, and which of them a model learns to write.

    token_ids   (T)   of the whole text: prompt, answer and the token that ends the answer
    answer      (T)   True for the tokens of an answer and for the one that ends it
    targets     (T)   at each position the token that follows, if it belongs to an answer; IGNORE_INDEX elsewhere

    token_ids   p p p a a e          p: prompt, a: answer, e: the token that ends it
    targets     . . a a e .          . is IGNORE_INDEX

Nothing follows the last token, so its target never counts.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from numpygpt.errors import InputError
from numpygpt.shapes import IGNORE_INDEX, Array, Bool, Integer

#: What can happen to an example that is too long.
TOO_LONG = ("refuse", "drop", "truncate")


class Example(NamedTuple):
    """A text, as above."""

    token_ids: Integer[Array, "T"]
    answer: Bool[Array, "T"]

    @classmethod
    def without_answer(cls, token_ids: Integer[Array, "T"]) -> "Example":
        """A text of which no token is learned."""
        return cls(token_ids, np.zeros(len(token_ids), bool))

    @property
    def targets(self) -> Integer[Array, "T"]:
        """The token that follows each, where it belongs to an answer."""
        return following(self.token_ids, self.answer)

    def first(self, tokens: int) -> "Example":
        """Its first tokens."""
        return Example(self.token_ids[:tokens], self.answer[:tokens])


def following(token_ids: Integer[Array, "T"], counts: Bool[Array, "T"]) -> Integer[Array, "T"]:
    """The token that follows each, if it is one that counts; IGNORE_INDEX elsewhere, and after the last one."""
    targets = np.full(len(token_ids), IGNORE_INDEX)
    targets[:-1] = np.where(counts[1:], token_ids[1:], IGNORE_INDEX)
    return targets


class Kept(NamedTuple):
    """What was made of the records of a file.

    items       examples, pairs, labeled texts or prompts, in the order of the file
    dropped     how many records were left out because they are too long
    truncated   how many lost their end
    alike       how many pairs were left out because both answers are the same
    """

    items: list[Any]
    dropped: int
    truncated: int
    alike: int = 0

    @property
    def notes(self) -> list[str]:
        """Lines that tell a person what was left out; none if all is whole."""
        total = len(self.items) + self.dropped + self.alike
        told = {
            "left out {} of {} records, which are too long": self.dropped,
            "cut the end of {} of {} records, which are too long": self.truncated,
            "left out {} of {} pairs, whose two answers are the same": self.alike,
        }
        return [line.format(f"{count:,}", f"{total:,}") for line, count in told.items() if count]


class Limit:
    """How many tokens an example may have, and what happens to a longer one.

    tokens     the most: the model's context_length, or less
    too_long   "refuse": InputError, which names the record; "drop": it is left out; "truncate": its end is cut off,
               as the book's `custom_collate_fn` does with `allowed_max_length`. Then its last token ends no answer

    Raises InputError for another word than the three, and for fewer than two tokens.
    """

    def __init__(self, tokens: int, too_long: str = "refuse") -> None:
        if too_long not in TOO_LONG:
            raise InputError(f"too_long is {too_long!r}; expected one of: {', '.join(TOO_LONG)}")
        if tokens < 2:
            raise InputError(f"an example may have {tokens} tokens; expected at least 2, a token and one to predict")
        self._tokens, self._too_long = tokens, too_long
        self._dropped = self._truncated = 0

    def fitted(self, examples: Sequence[Example], place: str) -> list[Example] | None:
        """The examples of one record, each short enough; None if the record is left out.

        Raises InputError for a longer one that is to be refused, and for an example of whose answer nothing would be
        left.
        """
        longest = max(len(example.token_ids) for example in examples)
        if longest <= self._tokens:
            return list(examples)
        if self._too_long == "drop":
            self._dropped += 1
            return None
        for example in examples:
            self._refuse_long_prompt(example, place)
        if self._too_long == "refuse":
            raise InputError(
                f"{place} has {longest} tokens; expected at most {self._tokens}: shorten it, or have such records left "
                f"out (too_long 'drop') or cut off ('truncate')"
            )
        self._truncated += 1
        return [example.first(self._tokens) for example in examples]

    def kept(self, items: Iterable[Any], path: Any, *, alike: int = 0) -> Kept:
        """What was made of the records. InputError if they were all left out."""
        kept = Kept(list(items), self._dropped, self._truncated, alike)
        if not kept.items:
            raise InputError(f"of {path} no record is left: {'; '.join(kept.notes)}; the most is {self._tokens} tokens")
        return kept

    def _refuse_long_prompt(self, example: Example, place: str) -> None:
        if not example.answer.any():  # a text without an answer, to be classified
            return
        prompt = int(np.argmax(example.answer))
        if prompt >= self._tokens:
            raise InputError(
                f"{place} has a prompt of {prompt} tokens, which fills the context of {self._tokens}; expected room "
                f"for an answer: shorten the prompt, or have such records left out (too_long 'drop')"
            )
