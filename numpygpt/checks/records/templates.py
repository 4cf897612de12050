"""`templates`: real mistakes in where answers end."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.data import templates

BUGS = (
    Bug(
        "end_not_learned",
        "the token that ends an answer is not learned, so a chat goes on without end",
        "trl#734",
        "alpaca.answer",
        ("answers_learned", "pairs_by_hand"),
        (
            Change(
                "data.templates:Template._pieces",
                "yield _Piece(self.end, is_markup=True, is_answer=True)",
                "yield _Piece(self.end, is_markup=True, is_answer=False)",
            ),
        ),
    ),
    Bug(
        "headers_learned",
        "what stands before an answer is learned with it",
        "LLMDet#55",
        "alpaca.answer",
        ("answers_learned", "prompts_begin_examples"),
        (
            Change(
                "data.templates:Template._pieces",
                "yield _Piece(self.before[role], is_markup=True, is_answer=False)",
                "yield _Piece(self.before[role], is_markup=True, is_answer=answers)",
            ),
        ),
    ),
    Bug(
        "messages_hold_special_tokens",
        "a special token in a message ends it, so that a user can speak for others",
        "transformers#29279",
        "chatml.token_ids",
        ("texts_by_hand", "pairs_by_hand"),
        (
            Change(
                "data.templates:Template._pieces",
                "yield _Piece(content, is_markup=False,",
                "yield _Piece(content, is_markup=True,",
            ),
        ),
    ),
    Bug(
        "header_after_answers",
        "after the last answer comes what stands before another one",
        "mlx-lm-lora#83",
        "alpaca.token_ids",
        ("texts_by_hand", "prompts_begin_examples"),
        (
            Change(
                "data.templates:Template.encode",
                "*whole, _ = self._pieces(messages)",
                "whole = [*self._pieces(messages), _Piece(self.before[ASSISTANT], is_markup=True, is_answer=False)]",
            ),
        ),
    ),
)

RECORD = BugsOnly(templates, "it writes texts, which have no gradient", BUGS)
