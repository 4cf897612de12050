"""What makes PyTorch's backend of a run that tunes a model: another one for each way of taking steps."""

from dataclasses import dataclass

from numpygpt.training.backend import Task
from numpygpt.training.options import Options
from numpygpt.tuning.options import FinetuneOptions
from torchgpt.engine.backend import Maker, TorchBackend
from torchgpt.engine.finetuning import FinetuneBackend
from torchgpt.engine.policies import PolicyBackend, PpoBackend


@dataclass(frozen=True)
class FinetuneMaker(Maker):
    """Makes backends that tune a model."""

    command: str = "finetune"
    options_type: type[Options] = FinetuneOptions

    def kind_of(self, task: Task) -> type[TorchBackend]:
        """See `Maker`."""
        assert isinstance(task.options, FinetuneOptions)
        kinds: dict[str, type[FinetuneBackend]] = {"grpo": PolicyBackend, "ppo": PpoBackend}
        return kinds.get(task.options.objective, FinetuneBackend)
