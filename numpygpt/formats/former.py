"""The face that checkpoints had before they had sections, for callers that have not changed yet."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpygpt.formats.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of, model_section, saved_config, saved_tokenizer
from numpygpt.sections import Section
from numpygpt.shapes import Array
from numpygpt.training.adamw import AdamW


def save_checkpoint(
    directory: str | os.PathLike[str],
    model: GPTModel,
    *,
    optimizer: AdamW | None = None,
    random_states: Mapping[str, Array] | None = None,
    tokenizer: str | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """`write_checkpoint` of the usual sections."""
    run = dict(training or {})
    data = {"position": run.pop("position")} if "position" in run else {}
    sections = {"model": model_section(model, tokenizer)}
    if optimizer is not None:
        sections["optimizer"] = optimizer.section()
    sections["random"] = Section({}, random_states or {})
    sections["data"] = Section(data, {})
    sections["run"] = Section(run, {})
    return write_checkpoint(directory, sections)


class FormerCheckpoint:
    """A checkpoint with its former attributes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.path = checkpoint, checkpoint.path
        self.config: GPTConfig = saved_config(checkpoint)
        self.tokenizer: str | None = saved_tokenizer(checkpoint)
        self.training: dict[str, Any] = {}
        for name in ("run", "data"):
            self.training |= checkpoint.values(name) if name in checkpoint else {}

    def model(self, dtype: Any = None, **options: Any) -> GPTModel:
        """The model."""
        return model_of(self.checkpoint, dtype, **options)

    def restore_optimizer(self, optimizer: AdamW) -> None:
        """Load the optimizer's section."""
        optimizer.load_section(self.checkpoint)

    def random_states(self) -> dict[str, Array]:
        """The arrays of the section "random"."""
        return self.checkpoint.arrays("random") if "random" in self.checkpoint else {}


def load_checkpoint(path: str | os.PathLike[str]) -> FormerCheckpoint:
    """`read_checkpoint`."""
    return FormerCheckpoint(read_checkpoint(path))
