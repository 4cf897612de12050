"""Every planted bug is caught by the properties it names, and names the first wrong tensor; equivalent changes pass."""

from contextlib import suppress
from functools import cache

import numpy as np
import pytest

from numpygpt.checks.bugs import BUGS, CONTROLS, Bug, planted
from numpygpt.decoding.generation import generate, stream
from numpygpt.decoding.sampling import keep_top_k
from numpygpt.ops import flash_attention
from numpygpt.shapes import Array
from numpygpt.training.adamw import AdamW
from numpygpt.training.clipping import clip_grad_norm
from numpygpt.training.step import loss_and_grads_of
from parity_tests import properties
from parity_tests.properties import CONFIG, INPUTS, PROPERTIES, TARGETS, TIED, B, T, masks, model_of, training_step

UNSEEN = "none"


def holds(name: str) -> bool:
    try:
        with np.errstate(all="ignore"):
            PROPERTIES[name]()
    except Exception:  # a crash is as good a catch as a failed comparison
        return False
    return True


def run(config: properties.GPTConfig, trace: dict[str, Array]) -> None:
    """A training step, the optimizer, an evaluation, decoding and data, tensor by tensor, in numpygpt.bugs' order."""
    model = model_of(config)
    trace |= {f"loaded.{name}": array.copy() for name, array in model.state_dict().items()}
    trace |= training_step(model)
    loss, grads = loss_and_grads_of(model, [(INPUTS[:1], TARGETS[:1]), (INPUTS[1:], TARGETS[1:])])
    trace["micro_batches.loss"] = np.array(loss)
    trace |= {f"micro_batches.{name}": gradient.copy() for name, gradient in grads.items()}
    clip_grad_norm(grads, 0.1)
    trace |= {f"clipped.{name}": gradient.copy() for name, gradient in grads.items()}
    optimizer = AdamW(model, lr=1e-2, weight_decay=0.3)
    for count in (1, 2):
        optimizer.step(grads)
        for moment in ("exp_avg", "exp_avg_sq"):
            trace |= {f"step{count}.{moment}.{n}": array.copy() for n, array in getattr(optimizer, moment).items()}
        trace |= {f"step{count}.{name}": array.copy() for name, array in model.named_parameters().items()}
    flash(trace)
    evaluate_and_decode(model_of(config), trace)


def flash(trace: dict[str, Array]) -> None:
    arguments, options = properties.flash_call()
    trace["flash.context"], saved = flash_attention.forward(*arguments.values(), **options)
    gradients = flash_attention.backward(trace["flash.context"], saved)._asdict()
    trace |= {f"flash.d_{name}": gradient for name, gradient in gradients.items()}


def evaluate_and_decode(model: properties.GPTModel, trace: dict[str, Array]) -> None:
    logits, saved = model.forward(INPUTS, masks=masks(model.config))
    model.backward(logits, saved)
    trace |= {f"second_backward.{name}": gradient for name, gradient in model.backward(logits, saved).items()}
    trace["evaluation.logits"] = model(INPUTS)
    later_masks = model.draw_dropout_masks(np.random.default_rng(11), B, T)
    model.forward(INPUTS, masks=later_masks, watch=lambda n, a: trace.setdefault(f"after_evaluation.{n}", np.array(a)))
    _, past = model.decode(INPUTS[:, :4])
    trace["decode.logits"], _ = model.decode(INPUTS[:, 4:5], past)
    trace["decode.continued_twice"], trace["decode.of_swapped_rows"] = properties.continuations(model)
    context_size = model.config.context_length
    trace["generation.token_ids"] = generate(model, INPUTS[:, :3], 4, context_size, eos_id=_an_eos())
    trace["second_generation.token_ids"] = generate(model, INPUTS[:, :2], 3, context_size)
    trace["generation.top_k"] = keep_top_k(np.array([[1.0, 3.0, 3.0, 3.0, 2.0]]), 2)
    dataset = properties.GPTDatasetV1("abcdefghij", properties.get_tokenizer("bytes"), max_length=4, stride=2)
    trace["data.target_ids"] = np.array(dataset.target_ids)


@cache
def _an_eos() -> int:
    """What row 0 chooses second, so that one of the rows stops early."""
    choices = stream(model_of(), INPUTS[:, :3], CONFIG.context_length)
    next(choices)
    return int(next(choices)[0])


@cache
def sound_run(config: properties.GPTConfig) -> dict[str, Array]:
    trace: dict[str, Array] = {}
    run(config, trace)
    return trace


def first_wrong(bug: Bug) -> str:
    """The first tensor the bug changes, in the untied model or else the tied; after a crash, the first not reached."""
    for config in (CONFIG, TIED):
        ours: dict[str, Array] = {}
        with planted(bug), np.errstate(all="ignore"), suppress(Exception):
            run(config, ours)
        for name, tensor in sound_run(config).items():
            zero_by_theory = name.endswith("W_key.bias") and not name.startswith("loaded")
            if name not in ours or (not zero_by_theory and properties.differs(ours[name], tensor)):
                return name
    return UNSEEN


@pytest.fixture(autouse=True, scope="module")
def references() -> None:
    """PyTorch's side and the sound run, before any bug is planted."""
    for config in (CONFIG, TIED):
        properties.reference(config)
        sound_run(config)
    properties.reference_model()
    _an_eos()


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_sound_code_has_every_property(name):
    PROPERTIES[name]()


@pytest.mark.parametrize("bug", BUGS.values(), ids=lambda bug: bug.name)
def test_each_planted_bug_is_caught_by_the_properties_it_names(bug):
    assert bug.properties
    with planted(bug):
        missed = [name for name in bug.properties if holds(name)]
    assert not missed


@pytest.mark.parametrize("bug", BUGS.values(), ids=lambda bug: bug.name)
def test_the_first_wrong_tensor_is_named_exactly(bug):
    assert first_wrong(bug) == bug.first_wrong


def test_nine_bugs_in_ten_are_caught_by_two_properties():
    twice = sum(len(bug.properties) >= 2 for bug in BUGS.values())
    assert twice >= 0.9 * len(BUGS)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_an_equivalent_change_passes_every_property(control):
    with planted(control):
        for name in PROPERTIES:
            PROPERTIES[name]()


def test_a_bug_whose_code_has_changed_is_reported():
    changed = BUGS["gelu_without_x"].changes[0]._replace(original="not in the code")
    with pytest.raises(LookupError, match="not once"), planted(BUGS["gelu_without_x"]._replace(changes=(changed,))):
        pass
