"""`autocast`: real mistakes in which operation runs in which format."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.numerics import autocast

_PRECISION = "numerics.autocast:precision_of"
_UNKNOWN = "no public report known"
_CAUGHT = ("formats_of_tensors", "tables")

BUGS = (
    Bug(
        "layer_norm_in_bf16",
        "norms are computed in the lower format, which has 8 bits for the mean of the squares",
        _UNKNOWN,
        "bf16_cuda.trf_blocks.0.norm1",
        _CAUGHT,
        (Change(_PRECISION, 'runs_in("layer_norm", residual)', "lower"),),
    ),
    Bug(
        "softmax_in_bf16_on_cuda",
        "attention's weights are computed in the lower format by the table of CUDA, as on the CPU",
        _UNKNOWN,
        "bf16_cuda.trf_blocks.0.att.attn_weights",
        _CAUGHT,
        (Change(_PRECISION, 'runs_in("softmax", scores)', "scores"),),
    ),
    Bug(
        "loss_in_bf16",
        "the loss is computed in the format of the logits, in which losses of a long training are all the same",
        _UNKNOWN,
        "bf16_cuda.loss",
        _CAUGHT,
        (Change(_PRECISION, 'runs_in("cross_entropy", projected)', "projected"),),
    ),
)

RECORD = BugsOnly(autocast, "it is a table", BUGS)
