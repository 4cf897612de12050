"""`step`: real mistakes in how micro-batches are put together."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import step

_SUM, _STEP = "training.step:loss_and_grads_of", "training.step:training_step"

BUGS = (
    Bug(
        "norm_gradients_assigned",
        "over micro-batches the norms' gradients are assigned, not added",
        "llm.c#408",
        "micro_batches.trf_blocks.0.norm1.scale",
        ("micro_batches", "optimizer"),
        (Change(_SUM, "if name in total:", 'if name in total and "norm" not in name:'),),
    ),
    Bug(
        "mean_of_means",
        "micro-batches of different numbers of targets weigh the same",
        "transformers#34191",
        "micro_batches.loss",
        ("micro_batches", "optimizer"),
        (Change(_SUM, "count / (sum(counts) or 1)", "1 / len(counts)"),),
    ),
    Bug(
        "clipped_before_unscaling",
        "the gradients are clipped while they still have the scale of the loss, and so to almost nothing",
        "Lightning#9599, apex#1512",
        "fp16.norm",
        ("unscaled", "unscaled_norms"),
        (
            Change(_STEP, "    _unscale(grads, scale.value)\n    taken", "    taken"),
            Change(_STEP, "optimizer.step(grads)", "_unscale(grads, scale.value)\n    optimizer.step(grads)"),
        ),
    ),
    Bug(
        "norm_of_scaled_gradients",
        "the norm is taken before the gradients lose the scale of the loss, and the clipping goes by it",
        "no public report known",
        "fp16.norm",
        ("unscaled", "unscaled_norms"),
        (
            Change(
                _STEP,
                "    _unscale(grads, scale.value)\n    taken = StepTaken(loss, gradient_norms(grads))",
                "    taken = StepTaken(loss, gradient_norms(grads))\n    _unscale(grads, scale.value)",
            ),
        ),
    ),
    Bug(
        "step_taken_on_overflow",
        "the scale is halved, and the step with gradients that are not finite is taken",
        "no public report known",
        "overflow.steps",
        ("skipped_steps", "halved_once"),
        (
            Change(_STEP, "scale.overflowed()\n        return taken", "scale.overflowed()"),
            Change(_STEP, "    common_norm(taken.norms)  # InputError if it is not finite\n", ""),
        ),
    ),
    Bug(
        "scale_is_halved_for_each_gradient",
        "an overflow halves the scale once for each gradient that is not finite, and once for the step",
        "no public report known",
        "overflow.scale",
        ("skipped_steps", "halved_once"),
        (Change(_STEP, "scale.overflowed()\n", "scale.overflowed()\n        scale.overflowed()\n"),),
    ),
    Bug(
        "weights_rounded_after_the_step",
        "no float32 weights are kept, and an update that is small beside its weight is lost",
        "arXiv:1710.03740, section 3.1",
        "bf16_cuda.step1.tok_emb.weight",
        ("small_updates", "master_weights"),
        (
            Change(
                _STEP,
                "    optimizer.step(grads)\n",
                "    optimizer.step(grads)\n"
                "    from numpygpt.numerics.formats import rounded\n"
                "    for array in model.named_parameters().values():\n"
                "        array[...] = rounded(array, model.precision.linear) if model.precision.linear else array\n",
            ),
        ),
    ),
    Bug(
        "gradients_accumulated_in_bf16",
        "the sum of the micro-batches' gradients is kept in the format of the products, and small parts are lost",
        "no public report known",
        "bf16_cuda.micro_batches.tok_emb.weight",
        ("accumulation", "formats_of_sums"),
        (
            Change(
                _SUM,
                "total[name] += share * gradient",
                "from numpygpt.numerics.casting import _in_format\n"
                "                low = model.precision.linear\n"
                "                total[name] += share * gradient\n"
                "                total[name] = _in_format(total[name], low) if low else total[name]",
            ),
        ),
    ),
)

RECORD = BugsOnly(step, "it adds the gradients of micro-batches", BUGS)
