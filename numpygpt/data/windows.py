"""Windows of token ids, cut from a text or from a file of token ids.

A window is an input and its targets. Both have max_length token ids, and the targets are the input shifted by one:

    token ids          a b c d e f g        max_length 3, stride 2
    inputs, targets    a b c -> b c d
                       c d e -> d e f
                       (e f g has no next token)
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from numpygpt.data.tokenizer import Encoding, text_to_token_ids
from numpygpt.errors import InputError
from numpygpt.shapes import Array, Integer


class TokenWindows:
    """Windows of `max_length` token ids, one every `stride` tokens.

    token_ids               (N,) of any integer type; it may lie in a file that is larger than the memory
    input_ids, target_ids   (windows, max_length) of that type, read-only views of the token ids

    Raises InputError for a max_length or stride that is not positive, and for token ids too few for one window.
    """

    unit = "windows"
    input_ids: Integer[Array, "N T"]
    target_ids: Integer[Array, "N T"]

    def __init__(self, token_ids: Integer[Array, "N"], max_length: int, stride: int) -> None:
        check_positive(max_length=max_length, stride=stride)
        if len(token_ids) <= max_length:
            raise InputError(
                f"the text has {len(token_ids)} tokens; expected at least {max_length + 1}, "
                f"max_length {max_length} and a next token: give more text or a smaller max_length"
            )
        self.input_ids = sliding_window_view(token_ids[:-1], max_length)[::stride]
        self.target_ids = sliding_window_view(token_ids[1:], max_length)[::stride]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, window: int) -> tuple[Array, Array]:
        """One window: inputs and targets, (max_length,) each."""
        return self.input_ids[window], self.target_ids[window]

    def batch(self, numbers: Integer[Array, "B"]) -> tuple[Integer[Array, "B T"], Integer[Array, "B T"]]:
        """The windows of these numbers: inputs and targets, as new int64 arrays."""
        inputs, targets = self.input_ids[numbers], self.target_ids[numbers]
        return np.asarray(inputs, np.int64), np.asarray(targets, np.int64)


class GPTDatasetV1(TokenWindows):
    """The book's dataset: the windows of a text, as int64. Raises InputError as `TokenWindows` does."""

    def __init__(self, txt: str, tokenizer: Encoding, max_length: int, stride: int) -> None:
        super().__init__(text_to_token_ids(txt, tokenizer)[0], max_length, stride)


def check_positive(**sizes: int) -> None:
    """Raise InputError, which names the size, if one of the sizes is not positive."""
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} is {size}; expected a positive integer")
