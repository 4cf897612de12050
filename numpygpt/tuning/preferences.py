"""The goal of DPO: the preferred of two answers becomes likelier than the other, measured from a reference.

A batch is a `PairBatch`. Both answers go through the model in one forward, and through the reference in another:

    (1)  log_probs = token_log_probs(logits, targets)      0 for a token of the prompt
    (2)  sums = sum over tokens of log_probs               log π of each answer
    (3)  loss = dpo(sums of the chosen and of the rejected, and the reference's)

In (2) each token of an answer gets the gradient of its answer's sum.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from numpygpt.data.batching import PairBatch, TokenBatch
from numpygpt.errors import InputError
from numpygpt.model.gpt import GPTModel
from numpygpt.objectives import dpo
from numpygpt.ops import token_log_probs
from numpygpt.shapes import IGNORE_INDEX, Array, Inexact
from numpygpt.tuning.through import OfLogits, logits_of


class Saved(NamedTuple):
    """What the objective and the log-probabilities saved."""

    dpo: dpo.Saved
    token_log_probs: token_log_probs.Saved


@dataclass(frozen=True)
class Preferences(OfLogits):
    """See `numpygpt.objectives.dpo`, whose words these are.

    reference   the model that training began with; None: the form without a reference
    """

    reference: GPTModel | None
    beta: float = 0.1
    form: str = "sigmoid"
    label_smoothing: float = 0.0

    def weight(self, batch: PairBatch) -> float:
        """How many pairs there are."""
        return float(len(batch.chosen.lengths))

    def rows(self, batch: PairBatch) -> TokenBatch:
        """See `OfLogits`."""
        return batch.both

    def forward(self, logits: Inexact[Array, "B T V"], batch: PairBatch) -> tuple[Any, Saved]:
        """See `OfLogits`."""
        rows = batch.both
        log_probs, scored = token_log_probs.forward(logits, rows.targets)  # (1)
        sums = np.split(log_probs.sum(axis=1), 2)  # (2)
        references = () if self.reference is None else np.split(sums_of(self.reference, rows), 2)
        loss, saved = dpo.forward(  # (3)
            *sums, *references, beta=self.beta, form=self.form, label_smoothing=self.label_smoothing,
            **self._lengths(batch),
        )  # fmt: skip
        return loss, Saved(saved, scored)

    def backward(self, d_loss: Any, saved: Saved) -> Inexact[Array, "B T V"]:
        """See `OfLogits`."""
        gradients = dpo.backward(d_loss, saved.dpo)  # undoes (3)
        d_sums = np.concatenate([gradients.chosen, gradients.rejected])
        d_log_probs = np.repeat(d_sums[:, np.newaxis], saved.token_log_probs.ids.shape[1], axis=1)  # undoes (2)
        return token_log_probs.backward(d_log_probs, saved.token_log_probs).logits  # undoes (1)

    def _lengths(self, batch: PairBatch) -> dict[str, Any]:
        """The lengths of the answers, by which IPO divides."""
        if self.form != "ipo":
            return {}
        return {f"{name}_lengths": answer_lengths(rows) for name, rows in zip(batch._fields, batch, strict=True)}


def answer_lengths(rows: TokenBatch) -> Array:
    """How many tokens of each row belong to its answer."""
    return np.count_nonzero(rows.targets != IGNORE_INDEX, axis=1)


def sums_of(model: GPTModel, rows: TokenBatch) -> Inexact[Array, "B"]:
    """The log-probability of each answer, the sum over its tokens, without dropout.

    Raises InputError for token ids outside the model's vocabulary.
    """
    refuse_another_vocabulary(model, rows, "reference")
    return token_log_probs.forward(logits_of(model, rows), rows.targets)[0].sum(axis=1)


def refuse_another_vocabulary(model: GPTModel, rows: Any, what: str) -> None:
    """InputError if the rows have token ids that the model does not know."""
    highest = int(rows.inputs.max())
    if highest >= model.config.vocab_size:
        raise InputError(
            f"the {what} has a vocabulary of {model.config.vocab_size} tokens, and the answers have the token id "
            f"{highest}; expected a {what} with the vocabulary of the model that is tuned"
        )
