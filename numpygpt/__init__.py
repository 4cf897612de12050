"""GPT in pure NumPy: every forward and every backward written by hand and readable as mathematics.

Start reading at `numpygpt.ops`, then `numpygpt.layers`, then `numpygpt.model`.
"""

from numpygpt.data.book_instructions import (
    InstructionDataset,
    SpamDataset,
    create_balanced_dataset,
    custom_collate_fn,
    format_input,
    random_split,
)
from numpygpt.data.loader import DataLoader, create_dataloader_v1
from numpygpt.data.tokenizer import get_tokenizer, text_to_token_ids, token_ids_to_text
from numpygpt.data.windows import GPTDatasetV1
from numpygpt.decoding.beams import beam_search
from numpygpt.decoding.generation import generate, generate_text_simple
from numpygpt.decoding.sampling import print_sampled_tokens, softmax_with_temperature
from numpygpt.errors import InputError
from numpygpt.formats import load_model
from numpygpt.formats.openai import assign, download_and_load_gpt2, load_weights_into_gpt
from numpygpt.model.config import GPT_CONFIG_124M, PRESETS, GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.pictures.losses import plot_losses
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.adagrad import Adagrad
from numpygpt.training.adam import Adam
from numpygpt.training.adamw import AdamW
from numpygpt.training.book import (
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    generate_and_print_sample,
    perplexity,
    train_model_simple,
)
from numpygpt.training.clipping import clip_grad_norm
from numpygpt.training.groups import Group
from numpygpt.training.lion import Lion
from numpygpt.training.muon import Muon
from numpygpt.training.rmsprop import RMSprop
from numpygpt.training.sgd import SGD

__version__ = "0.1.0"

__all__ = [
    "GPT_CONFIG_124M",
    "PRESETS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "DataLoader",
    "GPTConfig",
    "GPTDatasetV1",
    "GPTModel",
    "Group",
    "InputError",
    "InstructionDataset",
    "Lion",
    "Muon",
    "RMSprop",
    "SpamDataset",
    "TorchGenerator",
    "assign",
    "beam_search",
    "calc_loss_batch",
    "calc_loss_loader",
    "clip_grad_norm",
    "create_balanced_dataset",
    "create_dataloader_v1",
    "custom_collate_fn",
    "download_and_load_gpt2",
    "evaluate_model",
    "format_input",
    "generate",
    "generate_and_print_sample",
    "generate_text_simple",
    "get_tokenizer",
    "load_model",
    "load_weights_into_gpt",
    "perplexity",
    "plot_losses",
    "print_sampled_tokens",
    "random_split",
    "softmax_with_temperature",
    "text_to_token_ids",
    "token_ids_to_text",
    "train_model_simple",
]
