"""`adamw`: real mistakes in the optimizer."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import adamw

_UPDATE = "training.adamw:AdamW.update"

BUGS = (
    Bug(
        "tied_weight_stepped_twice",
        "the optimizer sees a tied weight under both its names",
        "entrenar#314",
        "d_out_head.weight",
        ("optimizer", "closed_form"),
        (
            Change("training.optimizer:_arrays_of", "model.named_parameters()", "model.state_dict()"),
            Change(
                "model.gpt:GPTModel.backward",
                'gradients["tok_emb.weight"] += gradients.pop("out_head.weight")',
                'gradients["tok_emb.weight"] += gradients["out_head.weight"]\n'
                '        gradients["out_head.weight"] = gradients["tok_emb.weight"]',
            ),
        ),
    ),
    Bug(
        "adam_eps_before_correction",
        "eps is added before the correction of v, which therefore scales it",
        "tensorflow#35102, nanochat#304",
        "step1.tok_emb.weight",
        ("optimizer", "closed_form"),
        (
            Change(
                _UPDATE,
                "denominator /= correction2\n    denominator += self.eps",
                "denominator += self.eps\n    denominator /= correction2",
            ),
        ),
    ),
    Bug(
        "coupled_weight_decay",
        "the decay is part of the gradient, as in Adam with L2",
        "Loshchilov & Hutter 2019, the reason for AdamW",
        "step1.exp_avg.tok_emb.weight",
        ("optimizer", "closed_form"),
        (Change(_UPDATE, "p *= 1 - rates.lr * rates.weight_decay", "g = g + rates.weight_decay * p"),),
    ),
    Bug(
        "decay_without_lr",
        "the decay is not multiplied by the learning rate",
        "no public report known",
        "step1.tok_emb.weight",
        ("optimizer", "closed_form"),
        (Change(_UPDATE, "1 - rates.lr * rates.weight_decay", "1 - rates.weight_decay"),),
    ),
    Bug(
        "bias_correction_off_by_one",
        "the corrections are those of the next step",
        "no public report known",
        "step1.tok_emb.weight",
        ("optimizer", "closed_form"),
        (
            Change(_UPDATE, "beta1**self.steps", "beta1 ** (self.steps + 1)"),
            Change(_UPDATE, "beta2**self.steps", "beta2 ** (self.steps + 1)"),
        ),
    ),
    Bug(
        "copied_apart_from_its_model",
        "the optimizer keeps views of the model's arrays, and copies of both have views of nothing",
        "ours, met when both were copied together",
        "copied.trf_blocks.0.att.W_query.weight",
        ("copies",),
        (
            Change(
                "training.optimizer:Optimizer.__init__",
                "dict(model) if isinstance(model, Mapping) else model",
                "dict(model if isinstance(model, Mapping) else model.named_parameters())",
            ),
            Change("training.optimizer:Optimizer.__getstate__", "refuse_parts_of_arrays(self.parameters)", "pass"),
        ),
    ),
    Bug(
        "norms_decay_after_all",
        "a group's weight decay of 0 counts as none given, so norms and biases decay like matrices",
        "transformers#4360",
        "groups.trf_blocks.0.att.W_query.bias",
        ("optimizer", "closed_form"),
        (
            Change(
                "training.optimizer:Optimizer.rates_of",
                "self.weight_decay if group.weight_decay is None else group.weight_decay",
                "group.weight_decay or self.weight_decay",
            ),
        ),
    ),
)

RECORD = BugsOnly(adamw, "an optimizer has no gradient", BUGS)
