"""Templates: how the messages of a conversation become one text, and where the answers in it begin and end.

    alpaca   the text of Stanford's Alpaca (Taori et al. 2023), which the book's chapter 7 uses
    chatml   a special token before and after each message, as in OpenAI's chat markup language
    plain    the messages with a line end between them, and nothing else

    Below is an instruction that ...          <|im_start|>user                    Add 1 and 2.
                                              Add 1 and 2.<|im_end|>              3<|endoftext|>
    ### Instruction:                          <|im_start|>assistant
    Add 1 and 2.                              3<|im_end|>

    ### Response:
    3<|endoftext|>

A message is encoded as ordinary text. A special token in it stays text, so that nobody can end a message from within.
The prompt and the answer are encoded one by one. So the prompt has the same tokens whether an answer follows or not.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from numpygpt.data.examples import Example
from numpygpt.data.tokenizer import ENDOFTEXT, Encoding
from numpygpt.errors import InputError
from numpygpt.shapes import Array, Integer

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


class Message(NamedTuple):
    """What somebody says in a conversation; the role is one of ROLES."""

    role: str
    content: str


class Template(NamedTuple):
    """How messages are written.

    name     what the template is called
    before   {role: text before each message of that role}
    after    {role: text after it}; what follows an answer is not a part of it
    input    what stands between an instruction and its input
    end      what ends an answer. The model learns to write it
    tokens   the special tokens in these texts, which the tokenizer must have
    stops    where a chat cuts an answer whose end the model did not write
    system   the first message of a conversation that has no system message of its own; None: no such message
    """

    name: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    input: str
    end: str
    tokens: tuple[str, ...]
    stops: tuple[str, ...] = ()
    system: str | None = None

    def end_id(self, tokenizer: Encoding) -> int | None:
        """The id of the token that ends an answer; None if it is ordinary text. InputError for another tokenizer."""
        self._refuse_other(tokenizer)
        return tokenizer.encode_single_token(self.end) if self.end in self.tokens else None

    def encode(self, messages: Sequence[Message], tokenizer: Encoding, *, mask_prompts: bool = True) -> Example:
        """A conversation that ends with an answer, up to the token that ends it.

        mask_prompts   True: the answers alone are learned, each of them; False: all tokens are, as in the book

        Raises InputError for a tokenizer without one of the template's special tokens.
        """
        self._refuse_other(tokenizer)
        *whole, _ = self._pieces(messages)  # the last piece follows the last answer
        return self._encoded(whole, tokenizer, learn_all=not mask_prompts)

    def prompt(self, messages: Sequence[Message], tokenizer: Encoding) -> Integer[Array, "T"]:
        """The token ids of a conversation after which an answer begins. InputError as `encode`."""
        self._refuse_other(tokenizer)
        pieces = [*self._pieces(messages), _Piece(self.before[ASSISTANT], is_markup=True, is_answer=False)]
        return self._encoded(pieces, tokenizer, learn_all=False).token_ids

    def _pieces(self, messages: Sequence[Message]) -> Iterator["_Piece"]:
        if self.system is not None and messages[0].role != SYSTEM:
            messages = [Message(SYSTEM, self.system), *messages]
        for role, content in messages:
            answers = role == ASSISTANT
            yield _Piece(self.before[role], is_markup=True, is_answer=False)
            yield _Piece(content, is_markup=False, is_answer=answers)
            if answers:
                yield _Piece(self.end, is_markup=True, is_answer=True)
            yield _Piece(self.after[role], is_markup=True, is_answer=False)

    def _encoded(self, pieces: Sequence["_Piece"], tokenizer: Encoding, *, learn_all: bool) -> Example:
        """Neighbors without a special token between them are encoded together, but not a prompt and an answer."""
        parts = [part for piece in pieces for part in self._parts(piece)]
        token_ids: list[int] = []
        answer: list[bool] = []
        for (is_token, is_answer), group in groupby(parts, key=lambda part: part[1:]):
            texts = [text for text, _, _ in group]
            ids = [tokenizer.encode_single_token(text) for text in texts] if is_token else (
                tokenizer.encode_ordinary("".join(texts))
            )
            token_ids += ids
            answer += [is_answer or learn_all] * len(ids)
        return Example(np.array(token_ids, np.int64), np.array(answer, bool))

    def _parts(self, piece: "_Piece") -> Iterator[tuple[str, bool, bool]]:
        """The piece in parts: text, whether it is a special token, whether it belongs to an answer."""
        if not (piece.is_markup and self.tokens):
            yield piece.text, False, piece.is_answer
            return
        for text in re.split(f"({'|'.join(map(re.escape, self.tokens))})", piece.text):
            yield text, text in self.tokens, piece.is_answer

    def _refuse_other(self, tokenizer: Encoding) -> None:
        missing = [token for token in self.tokens if token not in tokenizer.special_tokens_set]
        if missing:
            raise InputError(
                f"the template {self.name!r} needs the special tokens {', '.join(missing)}, which the tokenizer "
                f"{tokenizer.name!r} does not have; expected the tokenizer {'+'.join([tokenizer.name, *missing])!r}"
            )


class _Piece(NamedTuple):
    """Text of a conversation: of the template, or of a message."""

    text: str
    is_markup: bool
    is_answer: bool


TEMPLATES: Mapping[str, Template] = {
    "alpaca": Template(
        "alpaca",
        before={SYSTEM: "", USER: "\n\n### Instruction:\n", ASSISTANT: "\n\n### Response:\n"},
        after=dict.fromkeys(ROLES, ""),
        input="\n\n### Input:\n",
        end=ENDOFTEXT,
        tokens=(ENDOFTEXT,),
        stops=("\n\n### Instruction:",),
        system=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request."
        ),
    ),
    "chatml": Template(
        "chatml",
        before={role: f"{IM_START}{role}\n" for role in ROLES},
        after={SYSTEM: f"{IM_END}\n", USER: f"{IM_END}\n", ASSISTANT: "\n"},
        input="\n\n",
        end=IM_END,
        tokens=(IM_START, IM_END),
    ),
    "plain": Template(
        "plain",
        before=dict.fromkeys(ROLES, ""),
        after=dict.fromkeys(ROLES, "\n"),
        input="\n",
        end=ENDOFTEXT,
        tokens=(ENDOFTEXT,),
    ),
}


def template_of(name: str) -> Template:
    """The template of this name. InputError if there is none."""
    if name not in TEMPLATES:
        raise InputError(f"template {name!r:.60} is unknown; expected one of: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
