"""Files that hold models: our checkpoints, and those of other programs."""

import os
from typing import Any

from numpygpt.formats.kinds import read_model
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of


def load_model(path: str | os.PathLike[str], dtype: Any = None) -> GPTModel:
    """The model in a folder or file of any known kind, in its own dtype or in `dtype`. InputError if it holds none."""
    return model_of(read_model(path), dtype)
