"""Files that hold models."""

import os
from typing import Any

from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of


def load_model(path: str | os.PathLike[str], dtype: Any = None) -> GPTModel:
    """The model of a checkpoint (folder or file), in its own dtype or in `dtype`. InputError if it holds none."""
    return model_of(read_checkpoint(path), dtype)
