"""A model with another head: one that scores classes, or gives one number, in the place of tokens.

The body stays. A classifier (the book's chapter 6) reads the scores at a text's last token; a reward model and the
critic of PPO have a single score.
"""

from dataclasses import replace

import numpy as np

from numpygpt.adapt.adapters import paths_of
from numpygpt.errors import InputError
from numpygpt.layers import parameters as p
from numpygpt.model.gpt import GPTModel
from numpygpt.model.initialization import initialize
from numpygpt.random.torch_generator import TorchGenerator

#: The names of the head's parameters.
HEAD = ("out_head.weight", "out_head.bias")


def class_head(model: GPTModel, classes: int, *, seed: int | TorchGenerator = 123) -> GPTModel:
    """The model with a new head of `classes` rows and a bias, which is trained; the rest is trained as it was.

    Its logits are (B, T, classes). It shares the body's arrays. Its configuration has `classes`, and no tied weights.

    seed   of the head's values, which are those of `torch.nn.Linear(emb_dim, classes)`

    Raises InputError for fewer classes than one, and for a model with an adapter on its head.
    """
    if any(name == "out_head" for name, _ in paths_of(model)):
        raise InputError("the head has an adapter, which fits no other head; give it the head first, then the adapter")
    generator = seed if isinstance(seed, TorchGenerator) else TorchGenerator(seed)
    config = replace(model.config, classes=classes, tie_weights=False)  # InputError for a number that cannot be
    head = p.Linear(np.empty((classes, config.emb_dim), model.dtype), np.empty(classes, model.dtype))
    initialize(head, generator)
    parameters = model.parameters._replace(out_head=head)
    return model.with_parameters(parameters, frozen=model.frozen - set(HEAD), classes=classes, tie_weights=False)
