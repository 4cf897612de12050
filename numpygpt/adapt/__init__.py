"""Models made of models: with adapters, with frozen parameters, with quantized weights.

Each function returns a new model, which shares the arrays that it does not change with the one it was given.
"""

from numpygpt.adapt.adapters import add_lora, merge_lora, remove_lora, unmerge_lora
from numpygpt.adapt.freeze import freeze, unfreeze

__all__ = ["add_lora", "freeze", "merge_lora", "remove_lora", "unfreeze", "unmerge_lora"]
