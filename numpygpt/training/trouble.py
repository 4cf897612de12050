"""What a person is told about a step that could not be taken."""

from collections.abc import Mapping, Sequence

from numpygpt.errors import InputError


def not_finite(loss: float, step: int, lr: float) -> InputError:
    """The error for a loss that is not finite, in the optimizer step of this number."""
    return InputError(
        f"the loss is {loss} at optimizer step {step}; the weights are those before that step: "
        f"lower the learning rate (now {lr:g}) or clip the gradients"
    )


def described(error: InputError, batches: Sequence[int], norms: Mapping[str, float]) -> InputError:
    """The error with the batch of the step and the largest gradient of the step before it.

    batches   the number of each micro-batch in its epoch, counted from 1
    norms     the norm of each gradient of the step before, by name; empty if there was none
    """
    numbers = " and ".join(map(str, batches)) if len(batches) < 3 else f"{batches[0]} to {batches[-1]}"
    said = f"{error}; its batch was number {numbers} of the epoch"
    if norms:
        largest = max(norms, key=lambda name: norms[name])
        said += f"; the largest gradient of the step before was that of {largest}, of norm {norms[largest]:.3g}"
    return InputError(said)
