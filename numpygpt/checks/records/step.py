"""`step`: real mistakes in how micro-batches are put together."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import step

BUGS = (
    Bug(
        "norm_gradients_assigned",
        "over micro-batches the norms' gradients are assigned, not added",
        "llm.c#408",
        "micro_batches.trf_blocks.0.norm1.scale",
        ("micro_batches", "optimizer"),
        (Change("training.step:loss_and_grads_of", "if name in total:", 'if name in total and "norm" not in name:'),),
    ),
    Bug(
        "mean_of_means",
        "micro-batches of different numbers of targets weigh the same",
        "transformers#34191",
        "micro_batches.loss",
        ("micro_batches", "optimizer"),
        (Change("training.step:loss_and_grads_of", "count / max(1, sum(counts))", "1 / len(counts)"),),
    ),
)

RECORD = BugsOnly(step, "it adds the gradients of micro-batches", BUGS)
