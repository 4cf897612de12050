"""A wrong candidate is told the right cause: every planted bug, slips of layouts and options, in each format, in pairs.

The checks of annotations are off, because the tests take whole steps many times. The tests of all bugs are long; here
stands a slice of them, on a small model.
"""

import re
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from numpygpt.checks import diagnose as diagnosing
from numpygpt.checks.budgets import budgets_of
from numpygpt.checks.causes import UNSEEN, Cause, causes, is_traced
from numpygpt.checks.compare import norms, scaled
from numpygpt.checks.diagnose import diagnose
from numpygpt.checks.diff import diff
from numpygpt.checks.planting import planted
from numpygpt.checks.records import BUGS
from numpygpt.checks.replay import Replay
from numpygpt.checks.slips import SLIPS
from numpygpt.checks.trace import Settings, given, is_given, record, retrace
from numpygpt.checks.trace_file import TraceFile, write_trace
from numpygpt.model.config import GPTConfig
from parity_tests.candidates import candidate, first_spoiled, fit_together, tensors_of
from parity_tests.port_mistakes import FORESEEN, HELD_OUT, port
from parity_tests.properties import CONFIG, TIED

SETTINGS = Settings(tokens=6)
SMALL = GPTConfig(vocab_size=7, context_length=7, emb_dim=6, n_heads=2, n_layers=1, drop_rate=0.25, qkv_bias=True)
#: The right cause is among so many.
OFFERED = 3


pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")


@pytest.fixture(scope="module")
def reference(without_checks_of_annotations, tmp_path_factory):
    return written(SMALL, tmp_path_factory, "numpy")


def written(config, tmp_path_factory, by):
    path = tmp_path_factory.mktemp("trace") / "reference.safetensors"
    trace = record(config, SETTINGS)
    write_trace(path, trace, *budgets_of(trace, by))
    return TraceFile(path)


def examined(reference, bugs, format_):
    """The name of the first wrong tensor, that of the tensor that is diagnosed, and the causes that are offered."""
    header = reference.header
    tensors = tensors_of(header.config, header.settings, bugs, format_)
    ours = candidate(tensors, reference, format_)
    found = diff(reference, ours)
    if found.first is None:
        return None, []
    diagnoses = diagnose(reference, ours, found)
    return found.first.name, [offer.names for offer in diagnoses[0].offers[:OFFERED]]


def truth(reference, bugs, format_):
    """The first tensor that the bugs move by more than its budget."""
    header = reference.header
    return first_spoiled(reference, tensors_of(header.config, header.settings, bugs), format_)


def told(names, name):
    """Whether the cause of this name is offered: it, or what cannot be told from it on this trace."""
    return any(name in several for several in names)


SLICE = [
    ("erf_gelu", "float32"),
    ("heads_interleaved", "bfloat16"),
    ("variance_gradient_without_eps", "float64"),
    ("adam_eps_before_correction", "float64"),
    ("square_weights_transposed", "float64"),
]


@pytest.mark.parametrize(("name", "format_"), SLICE)
def test_a_planted_bug_is_named_at_the_first_tensor_that_it_spoils(name, format_, reference):
    first, offered = examined(reference, [BUGS[name]], format_)
    declared = BUGS[name].first_wrong.replace("trf_blocks.1", "trf_blocks.0")  # of a model of two blocks
    expected = declared if declared in reference.order else truth(reference, [BUGS[name]], format_)
    assert first == expected
    assert told(offered, name), offered


def test_two_bugs_at_once_are_both_named(reference):
    header = reference.header
    bugs = [BUGS["bias_gradient_averaged"], BUGS["adam_eps_before_correction"]]
    ours = candidate(tensors_of(header.config, header.settings, bugs), reference)
    diagnoses = diagnose(reference, ours, diff(reference, ours))
    assert [diagnosis.name for diagnosis in diagnoses] == [
        "d_trf_blocks.0.ff.layers.2.bias",
        "step1.tok_emb.weight",
    ]
    for diagnosis, bug in zip(diagnoses, bugs, strict=True):
        assert told([offer.names for offer in diagnosis.offers], bug.name)


def test_two_causes_of_one_wrong_tensor_are_found_together(reference):
    header = reference.header
    both = {cause.name: cause for cause in causes(header.config, header.settings)}
    cause = both["scores_not_scaled"].together_with(both["mask_of_minus_10000"])
    ours = candidate(computed_with(cause, reference), reference)
    (diagnosis, *_) = diagnose(reference, ours, diff(reference, ours))
    assert diagnosis.name == "trf_blocks.0.att.attn_scores"
    assert any("scores_not_scaled" in name and "mask_of_minus_10000" in name for name in diagnosis.offers[0].names)


def computed_with(cause, reference):
    """The tensors that a cause leads to. A candidate does not have what it was given."""
    header, tensors = reference.header, {}
    config = replace(header.config, **cause.config)
    start = given(header.config, header.settings)
    if cause.given is not None:
        start = cause.given(start, config)
    with ExitStack() as stack:
        stack.enter_context(np.errstate(all="ignore"))
        if cause.bug is not None:
            stack.enter_context(planted(cause.bug))
        settings = header.settings._replace(**cause.settings)
        retrace(config, settings, start, np.float64, lambda name, array: tensors.update({name: np.array(array)}))
    return {name: array for name, array in tensors.items() if not is_given(name)}


@pytest.mark.parametrize(
    "name", ["relu", "norm_eps_0.001", "order_query_value_key", "only_matrices_decay", "adamw_beta2_0.95"]
)
def test_a_slip_is_named(name, reference):
    header = reference.header
    (cause,) = (cause for cause in causes(header.config, header.settings) if cause.name == name)
    ours = candidate(computed_with(cause, reference), reference)
    (diagnosis, *_) = diagnose(reference, ours, diff(reference, ours))
    assert told([offer.names for offer in diagnosis.offers[:OFFERED]], name)
    assert cause.what in diagnosis.lines[0] or len(diagnosis.offers[0].names) > 1


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.name)
def test_the_changes_of_each_slip_fit_the_code(slip):
    with planted(slip):
        pass


def test_causes_have_names_of_their_own():
    names = [cause.name for cause in causes(CONFIG, SETTINGS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: 3 * x, "is 3 times what its inputs lead to"),
        (lambda x: 0 * x, "is zero"),
        (lambda x: np.roll(x, 1, axis=0), "has its rows later by one"),
        (lambda x: x + np.nan, "it has a NaN or an infinity"),
        (lambda x: x + 1 + np.cos(np.arange(x.size)).reshape(x.shape), "no known cause gives it"),
    ],
    ids=["multiple", "zero", "rows", "NaN", "noise"],
)
def test_what_no_cause_gives_is_described(change, said, reference):
    name = "step1.exp_avg.out_head.weight"  # few causes can change it, so the test is quick
    tensors = {name: reference.read(name) for name in reference.order}
    tensors[name] = change(tensors[name])
    ours = candidate(tensors, reference)
    (diagnosis, *_) = diagnose(reference, ours, diff(reference, ours))
    assert diagnosis.name == name
    assert said in diagnosis.lines[0]


def test_a_cause_with_numbers_that_no_model_has_gives_nothing(reference):
    """A number that is fitted may come to one."""
    replay = Replay(reference, candidate(tensors_of(SMALL, SETTINGS), reference))
    assert Cause("", "", config={"drop_rate": 1.75}).replayed(replay, replay.own) == {}
    assert Cause("", "", settings={"beta2": 1.5}).replayed(replay, replay.own, up_to="step1.tok_emb.weight") == {}


def test_a_wrong_loss_alone_is_diagnosed(reference):
    """A number without axes has no rows, no order and no columns to be exchanged."""
    tensors = {name: reference.read(name) for name in reference.order}
    _, lines = said_of(tensors | {"loss": tensors["loss"] / np.log(2)}, reference)
    assert any_says(lines, "1 / ln 2|base 2"), lines
    _, lines = said_of(tensors | {"loss": tensors["loss"] * 1.0234}, reference)
    assert any_says(lines, "no known cause"), lines


@pytest.mark.parametrize("name", ["queries_keys_values_untrained"])
def test_a_tensor_of_zeros_is_diagnosed_too(name, reference):
    """Its distance from what a cause gives has no size to be relative to."""
    for format_ in ("float32", "bfloat16"):
        first, offered = examined(reference, [BUGS[name]], format_)
        assert first == truth(reference, [BUGS[name]], format_)
        assert told(offered, name)


def test_nothing_is_said_of_a_sound_candidate(reference):
    ours = candidate(tensors_of(SMALL, SETTINGS), reference)
    assert diagnose(reference, ours, diff(reference, ours)) == []


# Plain relations


@pytest.fixture
def without_causes(monkeypatch):
    """Only plain relations are sought, because causes take time."""
    monkeypatch.setattr(diagnosing, "causes", lambda *of: ())
    monkeypatch.setattr(diagnosing, "fitted", lambda *of: ())


def changed(reference, name, change, format_="float64"):
    """The diagnosis of the reference with a changed tensor."""
    tensors = {other: reference.read(other) for other in reference.order if not is_given(other)}
    ours = candidate(tensors | {name: change(tensors[name])}, reference, format_)
    return diagnose(reference, ours, diff(reference, ours))[0]


def with_own_hidden(scores):
    return np.where(np.eye(scores.shape[-1], dtype=bool) & (np.arange(scores.shape[-1]) > 0), -np.inf, scores)


def with_next_shown(scores):
    return np.where(np.eye(scores.shape[-1], k=1, dtype=bool), 0.5, scores)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_own_hidden, "hides their own token from 20 of 24 queries: the mask begins one key too early ("),
        (with_next_shown, "shows the next token to 20 of 24 queries: the mask begins one key too late ("),
        (lambda scores: with_own_hidden(with_next_shown(scores)), "too late, and hides their own token from"),
        (lambda scores: np.where(np.isinf(scores), np.arange(6), scores), "masks nothing: every query sees all keys"),
        (lambda scores: np.where(np.isinf(scores), -1e4, scores), "has -10000 where a score is masked"),
    ],
)
def test_a_wrong_mask_is_told_in_plain_words(change, said, reference, without_causes):
    (line, *others) = changed(reference, "trf_blocks.0.att.attn_scores", change).lines
    assert said in line
    assert not [other for other in others if "mask" in other]


def test_a_factor_near_one_is_told_as_its_distance_from_one(reference, without_causes):
    lines = changed(reference, "trf_blocks.0.residual", lambda x: x * (1 + 9e-7)).lines
    assert "is 1 + 9.0e-07 times what its inputs lead to (" in lines[0]


def test_what_is_far_from_the_tensor_explains_nothing(reference, monkeypatch, without_causes):
    """Here the budget allows half of the tensor, and a relation may bring the difference just below that."""
    rng = np.random.default_rng(0)
    budget = reference.budget

    def loose(format_, name):
        size = norms(reference.read(name))
        return scaled(size, 0.5) if name == "trf_blocks.0.norm1" else budget(format_, name)

    monkeypatch.setattr(reference, "budget", loose)

    def change(x):
        noise = rng.standard_normal(x.shape)
        return x + noise * (0.502 * np.linalg.norm(x, axis=-1) / np.linalg.norm(noise, axis=-1))[..., np.newaxis]

    diagnosis = changed(reference, "trf_blocks.0.norm1", change)
    assert not diagnosis.offers


def test_what_is_zero_except_for_rounding_is_not_taken_for_a_cause(reference, without_causes):
    """The gradient of the keys' biases."""
    diagnosis = changed(reference, "d_trf_blocks.0.att.W_key.bias", lambda x: x + 1e-10)
    assert diagnosis.lines == [
        "`d_trf_blocks.0.att.W_key.bias`: the reference's is zero except for rounding, and yours is larger"
    ]


def test_what_holds_between_the_references_own_tensors_is_not_told(tmp_path_factory, without_causes):
    """Without dropout, what goes into it comes out."""
    reference = written(replace(SMALL, drop_rate=0.0), tmp_path_factory, "numpy")
    tensors = {name: reference.read(name) for name in reference.order}
    turned = tensors["trf_blocks.0.att.attn_weights"] ** 2
    ours = candidate(tensors | {f"trf_blocks.0.att.{name}": turned for name in ("attn_weights", "dropout")}, reference)
    lines = diagnose(reference, ours, diff(reference, ours))[0].lines
    assert not any_says(lines, "equals")


@pytest.mark.parametrize("format_", ["float64", "float32"])
def test_causes_that_differ_by_rounding_are_one_offer(format_, reference, monkeypatch):
    few = ("erf_gelu", "gelu_erf", "relu")
    monkeypatch.setattr(diagnosing, "causes", lambda *of: (cause for cause in causes(*of) if cause.name in few))
    monkeypatch.setattr(diagnosing, "fitted", lambda *of: ())
    _, offered = examined(reference, [BUGS["erf_gelu"]], format_)
    assert set(offered[0]) == {"erf_gelu", "gelu_erf"}


# What is not ours


def of_port(methods, reference):
    """The tensors of the port with these methods, and what is given."""
    header = reference.header
    inputs = given(header.config, header.settings)
    return inputs | port(methods)(header.config, header.settings, inputs).trace()


def said_of(tensors, reference):
    """The name of the first wrong tensor, and the first lines of its diagnosis."""
    computed = {name: array for name, array in tensors.items() if not is_given(name)}
    ours = candidate(computed, reference)
    found = diff(reference, ours)
    return found.first and found.first.name, diagnose(reference, ours, found)[0].lines[:OFFERED]


def any_says(lines, words):
    return any(re.search(words, line) for line in lines)


def test_a_sound_port_agrees(reference):
    assert diff(reference, candidate(of_port({}, reference), reference)).first is None


@pytest.mark.parametrize(
    "name", ["a token sees the next", "residual after norm1", "learning rate of a schedule's other step"]
)
def test_a_mistake_of_a_port_is_named(name, reference):
    methods, words = FORESEEN[name]
    tensors = of_port(methods, reference)
    first, lines = said_of(tensors, reference)
    assert first == first_spoiled(reference, tensors, "float64")
    assert any_says(lines, words), lines


# Real cases


@pytest.mark.parametrize("name", ["scores not scaled", "norm of unbiased variance", "dropout not scaled"])
def test_a_port_whose_loss_leaves_the_books_log_is_told_why(name, reference):
    """llms-from-scratch-rs#405: the loss alone was seen. Its tensors say which of the likely causes it is."""
    methods, words = FORESEEN[name]
    tensors = of_port(methods, reference)
    assert abs(tensors["loss"] - reference.read("loss")) > reference.budget("float64", "loss").tensor
    _, lines = said_of(tensors, reference)
    assert any_says(lines[:1], words), lines


def test_a_port_that_begins_with_other_weights_is_told_so(reference):
    """The other likely cause of llms-from-scratch-rs#405."""
    header = reference.header
    tensors = tensors_of(header.config, header.settings)
    tensors |= given(header.config, SETTINGS._replace(seed=1))
    ours = candidate(tensors, reference)
    (diagnosis, *_) = diagnose(reference, ours, diff(reference, ours))
    assert diagnosis.name == "tok_emb.weight"
    assert "begin with the weights of the trace" in diagnosis.lines[0]


def test_the_weight_gradient_of_llm_c_is_named(reference):
    header = reference.header
    (slip,) = (slip for slip in SLIPS if slip.seen_at == "llm.c#428")
    first, lines = said_of(tensors_of(header.config, header.settings, [slip]), reference)
    assert first == "d_final_norm.scale"
    assert any_says(lines[:1], "without subtracting the mean")


def test_a_gradient_whose_rows_are_all_in_row_0_is_described(reference):
    """Triton-distributed#180, which a sum of the gradient does not see."""
    methods, words = FORESEEN["gradients of row 0"]
    first, lines = said_of(of_port(methods, reference), reference)
    assert first == "d_trf_blocks.0.ff.layers.0.weight"
    assert any_says(lines, words), lines


def test_a_norm_whose_weight_has_the_gradient_none_is_named(reference):
    """unsloth#4533."""
    tensors = of_port({}, reference)
    del tensors["d_final_norm.scale"]
    first, lines = said_of(tensors, reference)
    assert first == "d_final_norm.scale"
    assert "your backward gives it no gradient, or None" in lines[0]


# What a trace does not show


def traced():
    return [bug for bug in BUGS.values() if is_traced(bug)]


def test_the_bugs_that_a_trace_does_not_show_are_listed(tmp_path_factory):
    """Every other one has an effect on a tensor of a trace."""
    references = [written(config, tmp_path_factory, "numpy") for config in (CONFIG, TIED)]
    shown = {bug.name for bug in traced() if any(truth(reference, [bug], "float64") for reference in references)}
    assert {bug.name for bug in traced()} - shown == {name for names in UNSEEN.values() for name in names}


# All of them


@pytest.fixture(scope="module")
def references(without_checks_of_annotations, tmp_path_factory):
    """With the budgets of the rounding model."""
    return [written(config, tmp_path_factory, "torch") for config in (CONFIG, TIED)]


@pytest.mark.long_form
@pytest.mark.parametrize("format_", ["float64", "float32", "bfloat16"])
def test_nearly_every_planted_bug_is_named_with_its_place(format_, references):
    """First wrong tensor named in 98 of 100, right cause among three in 90 of 100, of those with a visible effect."""
    placed, caused, count = 0, 0, 0
    for reference in references:
        for bug in traced():
            expected = truth(reference, [bug], format_)
            if expected is None:
                continue
            first, offered = examined(reference, [bug], format_)
            count += 1
            placed += first == expected
            caused += told(offered, bug.name)
    print(f"{format_}: of {count} bugs with an effect, {placed} first tensors and {caused} causes are named")
    assert placed >= 0.98 * count
    assert caused >= 0.9 * count


def some_pairs(reference, number, bugs):
    """So many pairs of these bugs that can be in the code at once, always the same, with what each alone spoils."""
    first = {bug.name: truth(reference, [bug], "float64") for bug in bugs}
    bugs = [bug for bug in bugs if first[bug.name]]
    rng = np.random.default_rng(0)
    pairs = []
    while len(pairs) < number:
        pair = [bugs[index] for index in rng.choice(len(bugs), 2, replace=False)]
        if fit_together(pair):
            pairs.append(pair)
    return pairs, first


def is_first_of_both_named(reference, pair, first):
    """Whether the first wrong tensor of both together is named, and a bug that spoils it is among the first offers."""
    expected = truth(reference, pair, "float64")
    named, offered = examined(reference, pair, "float64")
    likely = [bug.name for bug in pair if first[bug.name] == expected]
    return named == expected and any(told(offered, name) or joined(offered, name) for name in likely)


def test_of_two_bugs_the_first_is_named(reference):
    pairs, first = some_pairs(reference, 2, traced()[::16])
    assert all(is_first_of_both_named(reference, pair, first) for pair in pairs)


@pytest.mark.long_form
def test_of_sixty_pairs_of_bugs_the_first_is_named(references):
    pairs, first = some_pairs(references[0], 60, traced())
    named = sum(is_first_of_both_named(references[0], pair, first) for pair in pairs)
    print(f"of {len(pairs)} pairs, the first bug of {named} is named")
    assert named >= 0.9 * len(pairs)


@pytest.mark.long_form
@pytest.mark.parametrize(("mistakes", "share"), [(FORESEEN, 0.9), (HELD_OUT, 0.7)], ids=["foreseen", "held out"])
def test_mistakes_of_a_port_are_named(mistakes, share, references):
    reference, placed, caused = references[0], 0, 0
    for methods, words in mistakes.values():
        tensors = of_port(methods, reference)
        first, lines = said_of(tensors, reference)
        placed += first == first_spoiled(reference, tensors, "float64")
        caused += any_says(lines, words)
    print(f"of {len(mistakes)} mistakes, {placed} first tensors and {caused} causes are named")
    assert placed >= 0.98 * len(mistakes)
    assert caused >= share * len(mistakes)


def joined(offered, name):
    """Whether a pair with this cause is offered."""
    return any(name in both.split(" and ") for several in offered for both in several)
