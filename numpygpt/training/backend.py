"""What the training loop needs of a backend. A backend does the computing, in NumPy, PyTorch or something else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from numpygpt.data.tokenizer import Encoding
from numpygpt.model.config import GPTConfig
from numpygpt.sections import SavedSections, Section
from numpygpt.training.corpus import Learned
from numpygpt.training.options import Options
from numpygpt.training.step import StepTaken
from numpygpt.training.team import Team


class Task(NamedTuple):
    """What a backend works on: the options of the run, the model's configuration, and the token ids to learn from.

    directory   the folder of the run
    """

    options: Options
    config: GPTConfig
    tokenizer: Encoding
    corpus: Learned
    directory: Path = Path()


@runtime_checkable
class Backend(Protocol):
    """What computes a training run. It has the model, the optimizer, the batches and the random draws.

    The loop has everything else: which step it is, the learning rate of that step, when to evaluate, the history, what
    is saved and when to stop. So the loop is the same for all backends. If two backends write the same sections, each
    can continue a run that the other has begun.
    """

    @property
    def state_is_a_copy(self) -> bool:
        """Whether `state` gives arrays that no step changes, so that they can be written while steps go on."""

    def batches_in_an_epoch(self) -> int:
        """How many micro-batches the training part of the text makes."""

    def step(self, learning_rate: float) -> StepTaken:
        """Take one optimizer step on the next micro-batches.

        Raises InputError, with the weights as they were, if the loss or the norm of the gradients is not finite. It
        names the batch, and the gradient that was largest before.
        """

    def evaluate(self) -> tuple[float, float]:
        """The training and the validation loss over the options' `eval_batches`, in nats a token, without dropout."""

    def probe(self) -> float:
        """The loss of one validation batch, in nats a token, without dropout and without a random draw.

        It shows whether the weights still give a finite loss, and leaves the run as it was.
        """

    def sample(self, prompt: str) -> str:
        """The prompt and 50 more tokens, each the likeliest after those before it, on one line."""

    def state(self) -> Mapping[str, Section]:
        """Everything that the next step depends on, in the sections model, optimizer, random and data.

        The arrays may be the backend's own, which its next step changes, unless `state_is_a_copy`.
        """


@runtime_checkable
class Pending(Protocol):
    """Something that is being written."""

    def is_done(self) -> bool:
        """Whether this process has written its part."""

    def wait(self) -> None:
        """Wait until it is written; all processes together. InputError if it cannot be."""


@runtime_checkable
class WritesSlices(Protocol):
    """A backend of many processes, each of which can write what it holds."""

    @property
    def in_slices(self) -> bool:
        """Whether the checkpoints on the way are to be written so."""

    def start_slices(self, folder: Path, sections: Mapping[str, Mapping[str, Any]]) -> Pending:
        """Begin to write a checkpoint in slices (`numpygpt.formats.slices`); all processes together.

        sections   the values of sections that are not the backend's own
        """


@runtime_checkable
class Exports(Protocol):
    """A backend that can also write what it has trained for other programs."""

    def export(self, directory: Path) -> Path | None:
        """Write it in the folder of the run; returns the path, or None if there is nothing to write.

        Raises InputError if it cannot be written.
        """


@runtime_checkable
class Appraises(Protocol):
    """A backend that can tell more of the model than its losses."""

    def appraise(self) -> dict[str, float]:
        """What is worth telling of the validation batches, by name. It leaves the run as it was."""


@runtime_checkable
class TrainsSome(Protocol):
    """A backend of a model of which a part alone may be trained."""

    def num_trained(self) -> int:
        """How many values of the model, and of its adapter if it has one, are trained."""


@runtime_checkable
class Notes(Protocol):
    """A backend that has lines for a person after a step. Whoever shows them removes them."""

    notes: list[str]


@runtime_checkable
class Maker(Protocol):
    """What makes the backend of a run."""

    @property
    def program(self) -> str:
        """The program that trains with this backend: "numpygpt", for example."""

    @property
    def command(self) -> str:
        """The program's command that does: "train", for example."""

    @property
    def options_type(self) -> type[Options]:
        """The options that a run with this backend has."""

    @property
    def team(self) -> Team:
        """The processes that compute the run together."""

    def start(self, task: Task) -> Backend:
        """A backend with a new model, whose weights are drawn from the options' seed.

        Raises InputError for a task that it cannot do.
        """

    def load(self, task: Task, saved: SavedSections) -> Backend:
        """A backend in the state that was saved.

        Raises InputError for a task that it cannot do, and for a state that does not fit the task.
        """
