"""A conversation with a model: its messages, the tokens that a template makes of them, and the answers.

The template encodes the whole conversation before each answer. Usually the tokens only grow, and then the keys and
values of the earlier ones are still there.

Prompt and answer have to fit in the model's context. If they do not, the oldest turns are forgotten: a question and its
answer at a time, but never the message of the system.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from numpygpt.data.templates import ASSISTANT, SYSTEM, USER, Message, Template
from numpygpt.data.tokenizer import Encoding
from numpygpt.decoding.sampling import check_sampling, choose
from numpygpt.decoding.streaming import before_stops, token_bytes, whole_characters
from numpygpt.errors import InputError
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.model.gpt import GPTModel
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array, Inexact, Integer


class Memory:
    """A model, and the keys and values of the text that it has read last."""

    def __init__(self, model: GPTModel) -> None:
        self._model = model
        self._ids: Integer[Array, "T"] = np.zeros(0, np.int64)
        self._past: tuple[KeyValueCache, ...] = ()

    def logits_after(self, ids: Integer[Array, "T"]) -> Inexact[Array, "1 V"]:
        """The logits after a text of at least one token. Only what follows its common beginning with the last is read.

        Raises InputError as `GPTModel.decode`.
        """
        known = min(_common(ids, self._ids), len(ids) - 1)
        past = tuple(cache.first(known) for cache in self._past) if known else None
        logits, past = self._model.decode(ids[np.newaxis, known:], past)
        self._ids, self._past = ids, past
        return logits


def _common(first: Integer[Array, "_"], second: Integer[Array, "_"]) -> int:
    """How many tokens two texts have in common at their beginnings."""
    shorter = min(len(first), len(second))
    differ = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differ[0]) if differ.size else shorter


@dataclass(frozen=True)
class Answering:
    """How answers are written.

    max_new_tokens              the longest answer
    temperature, top_k, top_p   as `numpygpt.decoding.generation.generate` takes them
    stops                       texts that end an answer, beside those of the template

    Raises InputError for a number out of range, and for a stop that is empty.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p)
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; expected 1 or more")
        if "" in self.stops:
            raise InputError("a text that ends an answer is empty; expected at least one character")


class Conversation:
    """The messages so far, and the model that answers them.

    system   the message of the system; None: the template's own, if it has one
    rng      draws the tokens; None: a new generator from fresh entropy

    Raises InputError for a tokenizer without the template's special tokens, and for a message of the system that leaves
    no room for an answer.
    """

    def __init__(
        self,
        model: GPTModel,
        tokenizer: Encoding,
        template: Template,
        answering: Answering,
        *,
        system: str | None = None,
        rng: TorchGenerator | None = None,
    ) -> None:
        self._tokenizer, self._template, self._answering = tokenizer, template, answering
        self._room = model.config.context_length - answering.max_new_tokens
        self._rng = TorchGenerator() if rng is None else rng
        self._memory = Memory(model)
        self._ends = {tokenizer.encode_single_token(token) for token in tokenizer.special_tokens_set}
        self._before = [] if system is None else [Message(SYSTEM, system)]
        self.messages: list[Message] = []
        self._check_room([Message(USER, "?")], "what the template writes")

    def reset(self) -> None:
        """Forget all messages but that of the system."""
        self.messages = []

    def ask(self, content: str) -> int:
        """Add a message of the user. Returns how many of the oldest turns had to be forgotten.

        Raises InputError, and changes nothing, for a message that leaves no room for an answer even alone.
        """
        question = Message(USER, content)
        self._check_room([question], "the message")
        messages, forgotten = [*self.messages, question], 0
        while len(self._encoded(messages)) > self._room:
            messages, forgotten = messages[2:], forgotten + 1
        self.messages = messages
        return forgotten

    def answer(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """The answer to the last question, in pieces as they come. It joins the messages when the last piece has come.

        It ends before a special token of the tokenizer or a stop string, when it is as long as it may be, or when
        `stopped` says so, which is asked before each token.

        Raises InputError as `choose`, and for a token that the tokenizer does not know.
        """
        pieces: list[str] = []
        texts = whole_characters(self._bytes(stopped))
        for piece in before_stops(texts, (*self._template.stops, *self._answering.stops)):
            pieces.append(piece)
            yield piece
        self.messages.append(Message(ASSISTANT, "".join(pieces)))

    def _bytes(self, stopped: Callable[[], bool]) -> Iterator[bytes]:
        """The bytes of each new token."""
        how, ids = self._answering, self._encoded(self.messages)
        for _ in range(how.max_new_tokens):
            if stopped():
                return
            logits = self._memory.logits_after(ids)
            chosen = choose(logits, how.temperature, how.top_k, how.top_p, self._rng)
            if int(chosen[0]) in self._ends:
                return
            yield token_bytes(int(chosen[0]), self._tokenizer)
            ids = np.concatenate([ids, chosen])

    def _encoded(self, messages: Sequence[Message]) -> Integer[Array, "T"]:
        return self._template.prompt([*self._before, *messages], self._tokenizer)

    def _check_room(self, messages: Sequence[Message], what: str) -> None:
        tokens = len(self._encoded(messages))
        if tokens > self._room:
            longest = self._answering.max_new_tokens
            raise InputError(
                f"{what} has {tokens} tokens with the template around it, and an answer may have {longest}; together "
                f"they may have {self._room + longest}, the model's context: shorten the text, or the longest answer"
            )
