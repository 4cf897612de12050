"""GPT in pure NumPy: every forward and every backward written by hand and readable as mathematics.

Start reading at `numpygpt.ops`, then `numpygpt.layers`, then `numpygpt.model`.
"""

from numpygpt.config import GPT2_SIZES, GPT_CONFIG_124M, GPTConfig
from numpygpt.data import GPTDatasetV1, create_dataloader_v1
from numpygpt.errors import InputError
from numpygpt.generation import (
    beam_search,
    generate,
    generate_text_simple,
    print_sampled_tokens,
    softmax_with_temperature,
)
from numpygpt.model import GPTModel
from numpygpt.optim import AdamW, clip_grad_norm
from numpygpt.plots import plot_losses
from numpygpt.random import TorchGenerator
from numpygpt.tokenizer import get_tokenizer, text_to_token_ids, token_ids_to_text
from numpygpt.training import (
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    generate_and_print_sample,
    perplexity,
    train_model_simple,
)

__version__ = "0.1.0"

__all__ = [
    "GPT2_SIZES",
    "GPT_CONFIG_124M",
    "AdamW",
    "GPTConfig",
    "GPTDatasetV1",
    "GPTModel",
    "InputError",
    "TorchGenerator",
    "beam_search",
    "calc_loss_batch",
    "calc_loss_loader",
    "clip_grad_norm",
    "create_dataloader_v1",
    "evaluate_model",
    "generate",
    "generate_and_print_sample",
    "generate_text_simple",
    "get_tokenizer",
    "perplexity",
    "plot_losses",
    "print_sampled_tokens",
    "softmax_with_temperature",
    "text_to_token_ids",
    "token_ids_to_text",
    "train_model_simple",
]
