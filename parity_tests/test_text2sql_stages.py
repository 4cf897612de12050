"""The stages of the worked application, on a tiny model: what is trained, what is measured, what the script says."""

import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from numpygpt.data.instructions import Prompt
from numpygpt.decoding.answers import Answer
from numpygpt.errors import BAD_INPUT, INTERRUPTED, InputError
from numpygpt.formats.checkpoint import FILE_NAME
from numpygpt.model.gpt import GPTModel
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from numpygpt.output import NOT_TOLD
from numpygpt.pictures.stages import plot_stages
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.text2sql.draws import Draws
from numpygpt.text2sql.questions import END, TEST_PARTS, test_examples, training_examples
from numpygpt.text2sql.schemas import made_up
from numpygpt.text2sql.scores import Scores
from numpygpt.text2sql.stages import (
    CONFIG,
    Preferred,
    Rewarded,
    Stage,
    Supervised,
    Trained,
    earned,
    preferred,
    rewarded,
    run_stages,
    stages_of,
    supervised,
    tests_of,
    until_they_differ,
)
from numpygpt.text2sql.writing import (
    LONGEST_QUERY,
    PHRASES,
    Sampler,
    batch_of,
    batches_of,
    example_of,
    token_ids,
    tokenizer,
    write,
)

test_examples.__test__ = tests_of.__test__ = False  # pytest takes them for tests

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")

TINY = replace(CONFIG, emb_dim=16, n_heads=2, n_layers=1)
EXAMPLES = training_examples(40, seed=1)

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    script = import_module("text2sql")


def test_only_the_query_and_its_end_are_targets():
    inputs, targets = batch_of(EXAMPLES)
    for example, row, target in zip(EXAMPLES, inputs, targets, strict=True):
        counted = target != IGNORE_INDEX
        assert tokenizer().decode(target[counted].tolist()) == example.sql + END
        assert tokenizer().decode(row[: np.flatnonzero(counted)[0] + 1].tolist()) == example.prompt


def test_batches_hold_each_example_once():
    batches = list(batches_of(EXAMPLES, 8, Draws(1)))
    assert sorted(example.text for batch in batches for example in batch) == sorted(each.text for each in EXAMPLES)
    assert all(len(batch) == 8 for batch in batches)


def test_every_example_and_its_answer_fit_in_the_context():
    """Also after a model that has learned nothing: a byte that is not UTF-8 becomes U+FFFD, which has three."""
    examples = training_examples(2000, seed=5) + [e for part in TEST_PARTS for e in test_examples(part, 200, seed=5)]
    assert max(len(token_ids(example.sql)) for example in examples) < LONGEST_QUERY
    unreadable = len(token_ids("\ufffd")) * LONGEST_QUERY
    assert max(len(token_ids(example.prompt)) for example in examples) + unreadable < CONFIG.context_length


def test_a_text_has_one_reading():
    """No phrase is the beginning of another, and the tokens of an example are those of its parts."""
    assert not [(one, other) for one in PHRASES for other in PHRASES if one != other and other.startswith(one)]
    found: Counter[int] = Counter()
    for example in training_examples(1000, seed=5):
        ids = token_ids(example.text)
        assert np.array_equal(ids, np.concatenate([token_ids(example.prompt), token_ids(example.sql + END)]))
        assert tokenizer().decode(ids.tolist()) == example.text
        found.update(ids.tolist())
    assert all(found[256 + number] for number in range(len(PHRASES)))


def test_names_are_bytes():
    """No phrase hides in a name or a word, wherever it stands: a model copies it byte by byte."""
    draws = Draws(9)
    for _ in range(300):
        name = made_up(draws)
        for before, after in ((" ", " "), ("(name,", ","), (" of ", "?"), ("'", "'"), (" FROM ", ";")):
            ids = token_ids(before + name + after)
            assert bytes(ids[ids < 256].astype(np.uint8)).decode().strip(" ,?';") == name


def test_a_batch_of_prompts_gets_what_each_gets_alone():
    model = GPTModel(TINY, seed=1, dtype=np.float64)
    prompts = [example.prompt for example in EXAMPLES[:3]]
    together = write(model, [*prompts, prompts[0]])
    assert together == [write(model, [prompt])[0] for prompt in [*prompts, prompts[0]]]
    assert all(END not in query for query in together)


def test_samples_are_grouped_by_prompt():
    model = GPTModel(TINY, seed=1)
    prompts = [example.prompt for example in EXAMPLES[:2]]
    samples = Sampler(model, 1.0, TorchGenerator(1))(prompts, 3)
    assert [len(each) for each in samples] == [3, 3]
    assert samples == Sampler(model, 1.0, TorchGenerator(1))(prompts, 3)


def test_supervised_training_learns_and_depends_on_the_seed_alone():
    told: list[tuple[int, int, Mapping[str, float]]] = []
    settings = Supervised(steps=60, batch_size=4, warmup_steps=5)
    first, note = supervised(settings, GPTModel(TINY, seed=1), lambda *step: told.append(step))
    assert [step[:2] for step in told] == [(done, 60) for done in range(1, 61)]
    losses = [facts["loss"] for *_, facts in told]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert note.startswith("60 steps")
    again, _ = supervised(settings, GPTModel(TINY, seed=1))
    for name, array in first.state_dict().items():
        assert np.array_equal(array, again.state_dict()[name])


def test_a_pair_ends_where_its_queries_differ():
    example = EXAMPLES[0]
    chosen, rejected = (example_of(example.prompt, sql) for sql in ("SELECT name FROM cars", "SELECT nose FROM c"))
    pair = until_they_differ(chosen, rejected)
    for cut, whole, last in ((pair.chosen, chosen, "a"), (pair.rejected, rejected, "o")):
        assert tokenizer().decode(cut.token_ids.tolist()) == f"{example.prompt}SELECT n{last}"
        assert np.array_equal(cut.answer, whole.answer[: len(cut.token_ids)])
    shorter = until_they_differ(example_of(example.prompt, "SELECT 1"), example_of(example.prompt, "SELECT 12"))
    assert [tokenizer().decode(cut.token_ids[-1:].tolist()) for cut in shorter] == [END, "2"]


def test_pairs_and_rewards_train_the_model_that_they_are_given():
    """Both stages move the weights, tell of each step, and depend on the seed alone."""
    for stage, settings in ((preferred, Preferred(examples=8, samples=2)), (rewarded, Rewarded(2, 2, 3))):
        told: list[tuple[int, int, Mapping[str, float]]] = []
        before = GPTModel(TINY, seed=3)
        after, note = stage(settings, GPTModel(TINY, seed=3), lambda *step, told=told: told.append(step))
        assert [done for done, *_ in told] == list(range(1, told[-1][1] + 1))
        assert [list(facts) for *_, facts in told] == [["loss" if stage is preferred else "reward"]] * len(told)
        assert np.isfinite([value for *_, facts in told for value in facts.values()]).all()
        assert note
        again, _ = stage(settings, GPTModel(TINY, seed=3))
        for name, array in after.state_dict().items():
            assert np.array_equal(array, again.state_dict()[name])
        moved = [not np.array_equal(array, before.state_dict()[name]) for name, array in after.state_dict().items()]
        assert any(moved) == (stage is preferred)  # a model that has learned nothing earns nothing


def test_a_drawn_query_earns_what_its_rows_are_worth():
    """Each is judged by the example of its own prompt."""
    prompts = [Prompt(token_ids(example.prompt), {"example": example}) for example in EXAMPLES[:2]]
    drawn = [Answer(token_ids(sql + END), np.zeros(0)) for example in EXAMPLES[:2] for sql in (example.sql, "SELECT")]
    assert earned([prompt for prompt in prompts for _ in range(2)], drawn) == [1, 0, 1, 0]


def test_each_stage_gets_the_model_of_the_one_before_and_is_measured():
    models = [GPTModel(TINY, seed=seed) for seed in (1, 2, 3)]
    given = []

    def to(model):
        def train(before, told):
            given.append(before)
            return Trained(model, "changed")

        return train

    tests = tests_of(2, seed=1)
    results = list(run_stages(models[0], [Stage("one", to(models[1])), Stage("two", to(models[2]))], tests, {}))
    assert given == models[:2]
    assert [result.stage for result in results] == ["one", "two"]
    assert [result.model for result in results] == models[1:]
    assert all(result.scores.keys() == TEST_PARTS.keys() for result in results)
    assert all(isinstance(scores, Scores) for scores in results[0].scores.values())


def short_stages(first: Supervised) -> list[Stage]:
    return stages_of(first, Preferred(examples=8, samples=2), Rewarded(steps=1, questions=2, group=2))


@pytest.fixture
def short(monkeypatch):
    """The script with a tiny model and short stages."""
    monkeypatch.setattr(script, "CONFIG", TINY)
    monkeypatch.setattr(script, "stages_of", short_stages)
    monkeypatch.setattr(script.tqdm, "monitor_interval", 0)


def test_the_script_prints_the_scores_and_writes_a_chart_and_a_model(short, tmp_path, capsys):
    out = tmp_path / "out"
    assert script.main(["--steps", "2", "--questions", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in TEST_PARTS)
    assert all(f"\n{stage}: " in printed for stage in ("supervised", "DPO", "GRPO"))
    assert (out / script.CHART).stat().st_size > 1000
    assert (out / FILE_NAME).is_file()


def test_a_chart_that_cannot_be_written_costs_nobody_the_model(short, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise InputError("cannot write the picture: No space left on device")

    monkeypatch.setattr(script, "plot_stages", full)
    assert script.main(["--steps", "2", "--questions", "2", "--out", str(tmp_path)]) == BAD_INPUT
    told = capsys.readouterr()
    assert "exact match" in told.out
    assert told.err.endswith("text2sql: error: cannot write the picture: No space left on device\n")
    assert (tmp_path / FILE_NAME).is_file()


def test_a_reader_that_has_gone_costs_nobody_the_model(short, tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert script.main(["--steps", "2", "--questions", "2", "--out", str(tmp_path)]) == NOT_TOLD
    assert (tmp_path / FILE_NAME).is_file()
    assert (tmp_path / script.CHART).is_file()


def test_a_stage_that_fails_leaves_the_stages_before_it(short, tmp_path, capsys, monkeypatch):
    def failing(model, stages, tests, bars):
        yield from run_stages(model, stages[:1], tests, bars)
        raise InputError("the loss is nan")

    monkeypatch.setattr(script, "run_stages", failing)
    assert script.main(["--steps", "2", "--questions", "2", "--out", str(tmp_path)]) == BAD_INPUT
    told = capsys.readouterr()
    assert "\nsupervised: " in told.out
    assert told.err.endswith("text2sql: error: the loss is nan\n")
    assert (tmp_path / FILE_NAME).is_file()


def test_ctrl_c_leaves_a_message(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(script.tqdm, "monitor_interval", 0)
    monkeypatch.setattr(script, "run_stages", interrupted)
    assert script.main(["--out", str(tmp_path)]) == INTERRUPTED
    assert "stopped; 0 of 3 stages were finished" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--steps", "--questions"])
def test_a_number_out_of_range_is_refused(option, tmp_path, capsys):
    assert script.main([option, "0", "--out", str(tmp_path)]) == BAD_INPUT
    assert capsys.readouterr().err == f"text2sql: error: {option} is 0; expected 1 or more\n"


@pytest.mark.parametrize(
    ("stages", "accuracies"), [([], {}), (["one"], {"all": [0.1, 0.2]}), (["one"], {"all": [float("nan")]})]
)
def test_a_chart_of_anything_else_is_refused(stages, accuracies):
    with pytest.raises(InputError):
        plot_stages(stages, accuracies)


def test_the_chart_has_a_bar_for_each_share(tmp_path):
    figure = plot_stages(["one", "two"], {"a": [0.5, 0.75], "b": [0.25, 1.0]}, tmp_path / "chart.png")
    assert sorted(bar.get_height() for bar in figure.axes[0].patches) == [25, 50, 75, 100]
