"""What the training loop asks of a backend, which computes: NumPy's, PyTorch's, or another."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from numpygpt.data.tokenizer import Encoding
from numpygpt.model.config import GPTConfig
from numpygpt.sections import SavedSections, Section
from numpygpt.training.options import Options


class Task(NamedTuple):
    """What a backend works on: the options of the run, the model's configuration, and the two parts of the text."""

    options: Options
    config: GPTConfig
    tokenizer: Encoding
    training_text: str
    validation_text: str


@runtime_checkable
class Backend(Protocol):
    """The arithmetic of a training run. It owns the model, the optimizer, the batches and the random draws.

    The loop owns everything else: which step it is, the learning rate of that step, when to evaluate, the history, what
    is saved and when to stop. So the loop is the same for all backends, and where two backends write the same sections,
    a run that one of them has begun can be continued by the other.
    """

    @classmethod
    def start(cls, task: Task) -> "Backend":
        """With a new model, whose weights are drawn from the options' seed. InputError for a task it cannot do."""

    @classmethod
    def load(cls, task: Task, saved: SavedSections) -> "Backend":
        """As it was when it gave its `state`. InputError for a task it cannot do, or a state that does not fit."""

    def batches_in_an_epoch(self) -> int:
        """Micro-batches that the training part of the text makes."""

    def step(self, learning_rate: float) -> float:
        """One optimizer step on the next micro-batches; returns their loss, in nats a token.

        Raises InputError, with the weights as they were, if the loss or the gradients are not finite.
        """

    def evaluate(self) -> tuple[float, float]:
        """The training and the validation loss over the options' `eval_batches`, in nats a token, without dropout."""

    def probe(self) -> float:
        """The loss of one validation batch, in nats a token, without dropout and without a random draw.

        It tells whether the weights are good for anything, and the run goes on as if nobody had asked.
        """

    def sample(self, prompt: str) -> str:
        """The prompt and the likeliest 50 tokens after it, on one line."""

    def state(self) -> Mapping[str, Section]:
        """Everything that the next step depends on, by sections: model, optimizer, random, data.

        The arrays may be the backend's own, and change with its next step.
        """
