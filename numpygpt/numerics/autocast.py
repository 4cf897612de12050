"""Mixed precision: which operation of a GPT runs in which number format, by the tables of torch.autocast.

A training step in mixed precision keeps float32 parameters. An operation that runs in the lower format, bf16 or fp16,
reads its operands rounded to it, parameters too, and its result is rounded to it. Its backward does the same: it
receives the gradient of the result in that format, and gives the gradients of its operands in that format. They go on
as float32, because each cast goes backward as a cast.

TABLES has a rule for each operation, and there are three rules:

    LOWER     it runs in the lower format
    FLOAT32   it runs in float32
    WIDEST    autocast does not name it: it runs in the widest format of its operands

On the CPU autocast names less than on CUDA. There a softmax of scores in bf16 is computed in bf16, and a norm is
computed in the format of what it norms. In a GPT that is float32 on both: the embeddings are read from float32
parameters, and float32 plus bf16 is float32, so the residual stream stays in float32.

Source: PyTorch 2.13, aten/src/ATen/autocast_mode.h, the macros AT_FORALL_LOWER_PRECISION_FP and AT_FORALL_FP32, and
for the CPU aten/src/ATen/autocast_mode.cpp, the block TORCH_LIBRARY_IMPL(aten, AutocastCPU, m). The tests ask PyTorch
itself for the dtype of each operation's result. For CUDA they ask without a GPU, with tensors that have no memory, for
which PyTorch chooses the formats in the same way. What a GPU computes is compared where there is one; on an H200 with
PyTorch 2.11, a step in bf16 was within the rounding budget, and its tensors had these formats.
"""

from typing import Any, NamedTuple

from numpygpt.errors import InputError
from numpygpt.numerics.formats import Format, format_of

LOWER, FLOAT32, WIDEST = "lower", "float32", "widest"

#: {device: {operation, by PyTorch's name: rule}}.
TABLES: dict[str, dict[str, str]] = {
    "cuda": {
        "linear": LOWER,
        "matmul": LOWER,
        "scaled_dot_product_attention": LOWER,
        "softmax": FLOAT32,
        "layer_norm": FLOAT32,
        "cross_entropy": FLOAT32,
        "embedding": WIDEST,
        "gelu": WIDEST,
        "dropout": WIDEST,
        "add": WIDEST,
    },
    "cpu": {
        "linear": LOWER,
        "matmul": LOWER,
        "scaled_dot_product_attention": LOWER,
        "softmax": WIDEST,
        "layer_norm": WIDEST,
        "cross_entropy": FLOAT32,
        "embedding": WIDEST,
        "gelu": WIDEST,
        "dropout": WIDEST,
        "add": WIDEST,
    },
}

#: The lower formats, and float32 without any cast.
PRECISIONS = ("fp32", "bf16", "fp16")


class Precision(NamedTuple):
    """The format in which each operation of a GPT runs; None is float32, or whatever the operands have.

    dropout           on the output of a projection; that of the embeddings is not rounded
    dropout_weights   on attention's weights
    """

    linear: Format | None = None
    matmul: Format | None = None
    scaled_dot_product_attention: Format | None = None
    softmax: Format | None = None
    layer_norm: Format | None = None
    gelu: Format | None = None
    dropout: Format | None = None
    dropout_weights: Format | None = None
    cross_entropy: Format | None = None


#: Nothing is rounded.
EXACT = Precision()


def precision_of(name: str, device: str = "cuda") -> Precision:
    """The formats of a GPT's operations under torch.autocast on a device, "cuda" or "cpu".

    name   one of PRECISIONS

    Raises InputError for another name or device.
    """
    if name not in PRECISIONS:
        raise InputError(f"the precision is {name!r}; expected one of {', '.join(PRECISIONS)}")
    if device not in TABLES:
        raise InputError(f"autocast is for {device!r}; expected one of {', '.join(TABLES)}")
    if name == "fp32":
        return EXACT
    lower, table, residual = format_of(name), TABLES[device], None

    def runs_in(operation: str, operands: Format | None) -> Format | None:
        """The format of an operation whose widest operand has the format `operands`."""
        formats: dict[str, Any] = {LOWER: lower, FLOAT32: None, WIDEST: operands}
        return formats[table[operation]]

    projected, scores = runs_in("linear", residual), runs_in("matmul", residual)
    weights = runs_in("softmax", scores)
    return Precision(
        linear=projected,
        matmul=scores,
        scaled_dot_product_attention=runs_in("scaled_dot_product_attention", projected),
        softmax=weights,
        layer_norm=runs_in("layer_norm", residual),
        gelu=runs_in("gelu", projected),
        dropout=runs_in("dropout", projected),
        dropout_weights=runs_in("dropout", weights),
        cross_entropy=runs_in("cross_entropy", projected),
    )
