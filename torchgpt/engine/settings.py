"""How a run computes in PyTorch: the options of `torchgpt train` beside those that `numpygpt train` has, too.

They say how a run is computed, and not what is trained, so a resumed run may change each of them. A checkpoint keeps
them in its section "torch" (`torchgpt.engine.backend`), and a resumed run goes on with those that it does not change.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from reprlib import repr as shortened
from typing import Any

from numpygpt.errors import InputError
from numpygpt.training.declared import check_options, option
from numpygpt.training.options import PRECISIONS
from torchgpt.model import KERNEL_KINDS

DEVICES = ("auto", "cuda", "cpu", "mps", "meta")


@dataclass(frozen=True)
class Settings:
    """The options of a run that only PyTorch has. InputError, which names the option, for an unusable value."""

    device: str = option(
        "auto", "what computes; auto: cuda or mps if there is one; meta: only say what each process would hold",
        choices=DEVICES,
    )  # fmt: skip
    precision: str | None = option(
        None, "format of the products, by autocast; weights stay in --dtype (default: --dtype)", choices=PRECISIONS
    )
    kernels: str = option("fused", "layer norm and GELU: fused, PyTorch's; book, written out", choices=KERNEL_KINDS)
    compile: bool = option(False, "let torch.compile make the model's code; the first steps take minutes")
    parallel: str | None = option(
        None, "how processes share the run: ddp, fsdp, tp, pp, or a product such as fsdp=4,tp=2 (default: ddp)"
    )
    sharded: bool = option(False, "each process saves its own slices; the last checkpoint is whole")
    log_every: int = option(10, "steps between lines with loss, speed, gradient norm and memory; 0: none", smallest=0)
    verify_every: int = option(
        0, "steps between those that NumPy computes in float64, too, to say how far off they are; 0: none", smallest=0
    )
    tensorboard: bool = option(False, "write TensorBoard events to DIR/tensorboard")
    time_limit: int = option(600, "seconds after which a process gives up waiting for the others", smallest=1)

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Settings":
        """The settings that `to_dict` wrote; a missing one has its default. InputError for any other name."""
        unexpected = [name for name in saved if name not in {field.name for field in fields(cls)}]
        if unexpected:
            raise InputError(f"{shortened(unexpected)} are no settings of a run in PyTorch")
        return cls(**saved)

    def to_dict(self) -> dict[str, Any]:
        """The settings in types that JSON has."""
        return asdict(self)
