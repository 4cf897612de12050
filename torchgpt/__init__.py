"""torchgpt: the PyTorch twin of numpygpt. The book's model and functions on tensors, with numpygpt's names.

    import torch
    from torchgpt import GPT_CONFIG_124M, GPTModel

    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M)              # the book's weights

`torchgpt.model` is the model, `torchgpt.generation` and `torchgpt.training` are the book's functions, and
`torchgpt.bridge` turns a numpygpt model into a torchgpt model and back.
"""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("torchgpt needs PyTorch, which is not installed: pip install 'numpygpt[torch]'") from error

from numpygpt.model.config import GPT_CONFIG_124M, GPTConfig
from torchgpt.bridge import dropout_masks, to_numpy, to_torch
from torchgpt.generation import (
    generate,
    generate_text_simple,
    print_sampled_tokens,
    softmax_with_temperature,
    text_to_token_ids,
    token_ids_to_text,
)
from torchgpt.model import GPTModel
from torchgpt.training import (
    calc_loss_batch,
    calc_loss_loader,
    create_dataloader_v1,
    evaluate_model,
    generate_and_print_sample,
    plot_losses,
    train_model_simple,
)

__all__ = [
    "GPT_CONFIG_124M",
    "GPTConfig",
    "GPTModel",
    "calc_loss_batch",
    "calc_loss_loader",
    "create_dataloader_v1",
    "dropout_masks",
    "evaluate_model",
    "generate",
    "generate_and_print_sample",
    "generate_text_simple",
    "plot_losses",
    "print_sampled_tokens",
    "softmax_with_temperature",
    "text_to_token_ids",
    "to_numpy",
    "to_torch",
    "token_ids_to_text",
    "train_model_simple",
]
