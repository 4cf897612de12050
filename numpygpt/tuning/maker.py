"""What makes NumPy's backend of a run that tunes a model: another one for each way of taking steps."""

from typing import ClassVar

from numpygpt.sections import SavedSections
from numpygpt.training.backend import Task
from numpygpt.training.options import Options
from numpygpt.training.team import OneProcess
from numpygpt.tuning.backend import FinetuneBackend
from numpygpt.tuning.options import FinetuneOptions
from numpygpt.tuning.policy_backend import PolicyBackend, PpoBackend


class FinetuneMaker:
    """A `numpygpt.training.backend.Maker`."""

    program, command = "numpygpt", "finetune"
    options_type: ClassVar[type[Options]] = FinetuneOptions
    team = OneProcess()

    @staticmethod
    def start(task: Task) -> FinetuneBackend:
        """See `Maker`."""
        backend = _kind_of(task).start(task)
        assert isinstance(backend, FinetuneBackend)
        return backend

    @staticmethod
    def load(task: Task, saved: SavedSections) -> FinetuneBackend:
        """See `Maker`."""
        backend = _kind_of(task).load(task, saved)
        assert isinstance(backend, FinetuneBackend)
        return backend


def _kind_of(task: Task) -> type[FinetuneBackend]:
    assert isinstance(task.options, FinetuneOptions)
    kinds: dict[str, type[FinetuneBackend]] = {"grpo": PolicyBackend, "ppo": PpoBackend}
    return kinds.get(task.options.objective, FinetuneBackend)
