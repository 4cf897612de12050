"""Every planted bug is caught by the properties that it names, and names the first wrong tensor; controls pass."""

import copy
from contextlib import ExitStack
from functools import cache

import numpy as np
import pytest

from numpygpt.checks.planting import Bug, planted
from numpygpt.checks.records import BUGS, CONTROLS
from numpygpt.decoding.generation import decode_after, generate, stream
from numpygpt.decoding.prompts import checked_prompts
from numpygpt.decoding.sampling import keep_top_k
from numpygpt.ops import flash_attention
from numpygpt.shapes import Array
from numpygpt.training.adamw import AdamW
from numpygpt.training.clipping import clip_grad_norm
from numpygpt.training.step import loss_and_grads_of
from numpygpt.watch import Watch
from parity_tests import (
    adapted_properties,
    adapter_properties,
    instruction_properties,
    numeric_properties,
    objective_properties,
    optimizer_properties,
    precision_properties,
    properties,
    text2sql_properties,
    tuning_properties,
)
from parity_tests.adapter_properties import watch_adapters
from parity_tests.properties import (
    CONFIG,
    INPUTS,
    TARGETS,
    TIED,
    B,
    T,
    masks,
    model_of,
    watch_training_step,
)

UNSEEN = "none"
PROPERTIES = {
    **properties.PROPERTIES,
    **adapter_properties.PROPERTIES,
    **adapted_properties.PROPERTIES,
    **optimizer_properties.PROPERTIES,
    **numeric_properties.PROPERTIES,
    **precision_properties.PROPERTIES,
    **instruction_properties.PROPERTIES,
    **objective_properties.PROPERTIES,
    **tuning_properties.PROPERTIES,
    **text2sql_properties.PROPERTIES,
}


def holds(name: str) -> bool:
    try:
        with np.errstate(all="ignore"):
            PROPERTIES[name]()
    except Exception:  # a crash catches the bug as well as a failed comparison
        return False
    return True


# One run through everything, tensor by tensor, in the order that `numpygpt.checks.records` describes


def run(config: properties.GPTConfig, watch: Watch) -> None:
    instruction_properties.tell(watch)
    tell_all("loaded.", model_of(config).state_dict(), watch)
    watch_training_step(model_of(config), watch)
    optimize(model_of(config), watch)
    ways_of_training(model_of(config), watch)
    watch_adapters(model_of(config), watch)
    flash(watch)
    evaluate_and_decode(model_of(config), watch)
    dataset = properties.GPTDatasetV1("abcdefghij", properties.get_tokenizer("bytes"), max_length=4, stride=2)
    watch("data.target_ids", np.array(dataset.target_ids))
    optimizer_properties.tell(watch)
    numeric_properties.tell(watch)
    precision_properties.tell(watch)
    objective_properties.tell(watch)
    if config is TIED:  # these models have their own configurations, and bugs of the model show in it first
        adapted_properties.tell(watch)
        instruction_properties.tell_resized(watch)
        tuning_properties.tell(watch)
        text2sql_properties.tell(watch)


def tell_all(prefix: str, tensors: dict[str, Array], watch: Watch) -> None:
    for name, tensor in tensors.items():
        watch(f"{prefix}{name}", tensor)


def optimize(model: properties.GPTModel, watch: Watch) -> None:
    loss, grads = loss_and_grads_of(model, [(INPUTS[:1], TARGETS[:1]), (INPUTS[1:], TARGETS[1:])])
    watch("micro_batches.loss", np.array(loss))
    tell_all("micro_batches.", grads, watch)
    clip_grad_norm(grads, 0.1)
    tell_all("clipped.", grads, watch)
    optimizer = AdamW(model, lr=1e-2, weight_decay=0.3)
    for count in (1, 2):
        optimizer.step(grads)
        tell_all(f"step{count}.exp_avg.", optimizer.exp_avg, watch)
        tell_all(f"step{count}.exp_avg_sq.", optimizer.exp_avg_sq, watch)
        tell_all(f"step{count}.", model.named_parameters(), watch)
    other, others_optimizer = copy.deepcopy((model, optimizer))
    others_optimizer.step(grads)
    tell_all("copied.", other.named_parameters(), watch)
    AdamW(model, lr=1e-2, weight_decay=0.3, groups=[properties.NORMS_AND_BIASES]).step(grads)
    tell_all("groups.", model.named_parameters(), watch)


def ways_of_training(model: properties.GPTModel, watch: Watch) -> None:
    ways = {"recomputed": {}, "frozen": {"trained": properties.SOME}, "packed": properties.packed()}
    for way, options in ways.items():
        model.checkpoint_activations = way == "recomputed"
        watch_training_step(model, lambda name, array, way=way: watch(f"{way}.{name}", array), **options)
    watch("all_seen.logits", model.forward(INPUTS, visible="all")[0])


def flash(watch: Watch) -> None:
    arguments, options = properties.flash_call()
    for prefix, visible in (("flash", "causal"), ("flash_masked", properties.some_keys())):
        context, saved = flash_attention.forward(*arguments.values(), **options, visible=visible)
        watch(f"{prefix}.context", context)
        tell_all(f"{prefix}.d_", flash_attention.backward(context, saved)._asdict(), watch)


def evaluate_and_decode(model: properties.GPTModel, watch: Watch) -> None:
    logits, saved = model.forward(INPUTS, masks=masks(model.config))
    model.backward(logits, saved)
    tell_all("second_backward.", model.backward(logits, saved), watch)
    watch("evaluation.logits", model(INPUTS))
    later_masks = model.draw_dropout_masks(np.random.default_rng(11), B, T)
    model.forward(INPUTS, masks=later_masks, watch=lambda name, array: watch(f"after_evaluation.{name}", array))
    _, past = model.decode(INPUTS[:, :4])
    watch("decode.logits", model.decode(INPUTS[:, 4:5], past)[0])
    continued_twice, of_swapped_rows = properties.continuations(model)
    watch("decode.continued_twice", continued_twice)
    watch("decode.of_swapped_rows", of_swapped_rows)
    context_size = model.config.context_length
    prompts = checked_prompts(properties.PROMPTS, context_size)
    watch("padded.logits", decode_after(model, prompts, None, context_size)[0])
    watch("generation.token_ids", generate(model, INPUTS[:, :3], 4, context_size, eos_id=_an_eos()))
    watch("second_generation.token_ids", generate(model, INPUTS[:, :2], 3, context_size))
    watch("generation.top_k", keep_top_k(np.array([[1.0, 3.0, 3.0, 3.0, 2.0]]), 2))


@cache
def _an_eos() -> int:
    """The token that row 0 chooses second. As eos it makes one of the rows stop early."""
    choices = stream(model_of(), INPUTS[:, :3], CONFIG.context_length)
    next(choices)
    return int(next(choices)[0])


@cache
def sound_run(config: properties.GPTConfig) -> dict[str, Array]:
    trace: dict[str, Array] = {}
    run(config, lambda name, tensor: trace.update({name: np.array(tensor)}))
    return trace


class Differs(Exception):  # noqa: N818
    """A run has come to a tensor that differs from that of the sound run."""


def first_wrong(bug: Bug) -> str:
    """The first tensor that the bug changes, in the untied model, or, if there is none, in the tied model.

    This tensor is wrong, missing or unexpected. After a crash, it is the first that was not reached.
    """
    for config in (CONFIG, TIED):
        to_come = list(sound_run(config))
        try:
            with planted(bug), np.errstate(all="ignore"):
                run(config, comparing(sound_run(config), to_come))
        except Differs as difference:
            return str(difference)
        except Exception:
            return to_come[0]
    return UNSEEN


def comparing(sound: dict[str, Array], to_come: list[str]) -> Watch:
    """A watch that ends the run at the first difference. It removes from `to_come` each name that it is told."""

    def compare(name: str, tensor: Array) -> None:
        if name not in sound:
            raise Differs(name)
        following = to_come[0]
        zero_by_theory = name.endswith("W_key.bias") and not name.startswith("loaded")
        if name != following or (not zero_by_theory and properties.differs(tensor, sound[name])):
            raise Differs(following)
        del to_come[0]

    return compare


#: The properties must catch a bug by what it computes, as in a port.
pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")


@pytest.fixture(autouse=True, scope="module")
def references(without_checks_of_annotations: None) -> None:
    """PyTorch's tensors and those of the sound run, before any bug is planted."""
    adapter_properties.logits_of_mixed()
    adapter_properties.folders_of_peft()
    for config in (CONFIG, TIED):
        properties.reference(config)
        adapter_properties.reference(config.tie_weights)
        sound_run(config)
    properties.reference_model()
    precision_properties.references()
    objective_properties.references()
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


@pytest.mark.parametrize("name", PROPERTIES)
def test_equivalent_changes_pass_every_property(name):
    """All of them are planted at once."""
    with ExitStack() as changes:
        for control in CONTROLS:
            changes.enter_context(planted(control))
        PROPERTIES[name]()


def test_a_bug_whose_code_has_changed_is_reported():
    changed = BUGS["gelu_without_x"].changes[0]._replace(original="not in the code")
    with pytest.raises(LookupError, match="not once"), planted(BUGS["gelu_without_x"]._replace(changes=(changed,))):
        pass
