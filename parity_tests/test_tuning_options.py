"""What the options of tuning become: goals, helping models and refusals, each in one line."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from numpygpt import GPTConfig, GPTModel, get_tokenizer
from numpygpt.adapt import add_lora
from numpygpt.adapt.head import class_head
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint, write_checkpoint
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import IGNORE_INDEX
from numpygpt.training.advantages import of_groups
from numpygpt.tuning.aids import Aids, aids_of, with_tokens_of
from numpygpt.tuning.answers import Answers
from numpygpt.tuning.classes import Classes
from numpygpt.tuning.distillation import Distillation
from numpygpt.tuning.experience import Experience
from numpygpt.tuning.goals import goal_of
from numpygpt.tuning.options import FinetuneOptions
from numpygpt.tuning.policies import ClippedPolicy, ClippedValue, Grpo, Ppo
from numpygpt.tuning.preferences import Preferences
from numpygpt.tuning.rewards import Rewards
from numpygpt.tuning.rollouts import with_values
from parity_tests.chatting import saved
from parity_tests.command import run
from parity_tests.tuning_cases import critic, drawn

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")

TOKENIZER = get_tokenizer("bytes+<|endoftext|>")
SIZES = {"vocab_size": 257, "context_length": 24, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0}
IDS = np.array([[72, 101, 256]])


def model_of(seed, **changes):
    return GPTModel(GPTConfig(**{**SIZES, "qkv_bias": True, **changes}), seed)


BASE, REFERENCE, TEACHER = map(model_of, (1, 2, 3))
JUDGE = class_head(model_of(4), 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: the folder of a model}, and of records."""
    folder = tmp_path_factory.mktemp("models")
    models = {"base": BASE, "reference": REFERENCE, "teacher": TEACHER, "judge": JUDGE}
    models["other"] = model_of(5, vocab_size=99)
    found = {name: str(saved(folder / name, model, TOKENIZER)) for name, model in models.items()}
    for name, count in (("one", 1), ("two", 2), ("many", 5)):
        records = [
            {"prompt": prompt, "completion": "b", "chosen": "b", "rejected": "c"} for prompt in "abcde"[:count]
        ]
        (folder / f"{name}.json").write_text(json.dumps(records), encoding="utf-8")
        found[name] = str(folder / f"{name}.json")
    return found


def options(objective, **given):
    """Options whose files need not be there."""
    needed = {
        "classify": {"classes": ("2",)}, "distill": {"teacher": "teacher"}, "ppo": {"reward_model": "judge"},
        "grpo": {"reward_model": "judge"},
    }.get(objective, {})  # fmt: skip
    return FinetuneOptions(objective=objective, **{"text": ("records.json",), **needed, **given})


# Goals

POLICY = {"temperature": 0.7, "clip_range": 0.1, "clip_high": 0.3}
GOALS = {
    "next-token": ({"over": "sequences", "label_smoothing": 0.2}, Answers("sequences", 0.2)),
    "dpo": ({"beta": 0.3, "label_smoothing": 0.2}, Preferences(REFERENCE, 0.3, "sigmoid", 0.2)),
    "distill": (
        {"temperature": 3.0, "direction": "reverse", "hidden": 0.25, "over": "sequences"},
        Distillation(TEACHER, 3.0, "reverse", 0.25, "sequences"),
    ),
    "grpo": ({**POLICY, "beta": 0.2, "over": "tokens"}, Grpo(0.7, "tokens", 0.2, 0.1, 0.3)),
    "ppo": (
        {**POLICY, "over": "sequences", "value_share": 0.4},
        Ppo(ClippedPolicy(0.7, "sequences", 0.1, 0.3), ClippedValue(0.1, "sequences"), 0.4),
    ),
}


@pytest.mark.parametrize("objective", GOALS)
def test_what_is_given_reaches_the_goal(objective):
    given, expected = GOALS[objective]
    assert goal_of(options(objective, **given), Aids(REFERENCE, TEACHER)) == expected


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("next-token", Answers()),
        ("dpo", Preferences(REFERENCE)),
        ("distill", Distillation(TEACHER)),
        ("grpo", Grpo()),
        ("ppo", Ppo()),
    ],
)
def test_the_defaults_are_those_of_the_goals(objective, expected):
    assert goal_of(options(objective), Aids(REFERENCE, TEACHER)) == expected


def test_without_a_reference_grpo_has_no_divergence_and_dpo_another_form():
    assert goal_of(options("grpo", beta=0.2, reference="none"), Aids()) == Grpo(beta=0.0)
    assert goal_of(options("dpo", form="ipo", reference="none"), Aids()) == Preferences(None, form="ipo")
    assert isinstance(goal_of(options("classify"), Aids()), Classes)
    assert isinstance(goal_of(options("reward"), Aids()), Rewards)


def test_what_is_given_reaches_the_drawing_and_the_advantages():
    given = options("grpo", temperature=0.7, max_new_tokens=9, group=3, template="plain", scale_rewards=False)
    experience = Experience(given, TOKENIZER, JUDGE, REFERENCE)
    drawing = experience.drawing
    assert (drawing.temperature, drawing.max_new_tokens, drawing.group) == (0.7, 9, 3)
    assert (drawing.end_id, drawing.reference) == (256, REFERENCE)
    answers = drawn()
    experience.drawing = SimpleNamespace(draw=lambda *_: answers)
    found = experience.next(None, None, list, None)
    assert np.array_equal(found.advantages, of_groups(answers.rewards, 3, scale=False)[:, np.newaxis] * answers.weights)


def test_what_is_given_reaches_the_values_of_ppo():
    given = options("ppo", beta=0.3, gamma=0.9, lam=0.7, template="plain")
    experience, answers = Experience(given, TOKENIZER, JUDGE, None), drawn()
    experience.drawing = SimpleNamespace(draw=lambda *_: answers)
    (expected,) = with_values([answers], critic(), beta=0.3, gamma=0.9, lam=0.7)
    assert np.array_equal(experience.next(None, critic(), list, None).advantages, expected.advantages)


# Records


def test_training_records_come_in_a_new_order_and_those_to_validate_with_do_not(folders):
    records = corpus(folders, "next-token", "many", val_data=(folders["many"],))
    training, validation = records.loaders(1, 24, TorchGenerator(1))
    firsts = [[int(batch.inputs[0, 0]) for batch in loader] for loader in (training, training, validation)]
    assert firsts[2] == list(b"abcde")
    assert [sorted(order) for order in firsts] == [firsts[2]] * 3
    assert firsts[0] != firsts[1]


@pytest.mark.parametrize(("name", "counts"), [("two", (1, 1)), ("many", (4, 1))])
def test_a_tenth_of_the_records_validates_and_at_least_one(folders, name, counts):
    records = corpus(folders, "dpo", name)
    assert (len(records.training), len(records.validation)) == counts


def test_every_file_has_a_part_in_the_digest(folders):
    several = {corpus(folders, "dpo", name, val_data=(folders[other],)).sha256
               for name, other in (("many", "one"), ("many", "many"))}  # fmt: skip
    assert len(several) == 2


@pytest.mark.parametrize(("mask", "count"), [(True, 2), (False, 3)])
def test_prompts_are_learned_if_that_is_asked_for(folders, mask, count):
    """The records are "a", a new line, "b" and the end."""
    batch = corpus(folders, "next-token", mask_prompts=mask).training.batch(np.arange(1))
    assert np.count_nonzero(batch.targets != IGNORE_INDEX) == count


# Models that help


def test_the_reference_is_the_model_at_the_beginning_or_the_one_that_is_named_or_none(folders):
    in_base = {"checkpoint": folders["base"], "tokenizer": TOKENIZER.name}
    for given, expected in (({}, BASE), ({"reference": folders["reference"]}, REFERENCE)):
        found = aids_of(options("dpo", **in_base, **given), TEACHER).reference
        assert np.array_equal(found(IDS), expected(IDS))
    assert aids_of(options("dpo", **in_base, reference="none"), TEACHER) == Aids()
    assert aids_of(options("next-token", **in_base), TEACHER) == Aids()


def test_the_reference_of_an_adapter_is_the_model_without_it(folders):
    adapted = add_lora(BASE, 2, 4.0)
    for name, array in adapted.named_parameters().items():
        if "lora_B" in name:
            array[...] = 1
    found = aids_of(options("dpo", checkpoint=folders["teacher"], lora="r=2,alpha=4"), adapted).reference
    assert np.array_equal(found(IDS), BASE(IDS))
    assert not np.array_equal(adapted(IDS), BASE(IDS))
    assert found.named_parameters()["tok_emb.weight"] is adapted.named_parameters()["tok_emb.weight"]


def test_teacher_and_judge_are_those_that_are_named(folders):
    assert np.array_equal(aids_of(options("distill", teacher=folders["teacher"]), BASE).teacher(IDS), TEACHER(IDS))
    given = options("ppo", reward_model=folders["judge"], reference="none")
    assert np.array_equal(aids_of(given, BASE).reward_model(IDS), JUDGE(IDS))


def test_a_run_that_goes_on_needs_the_same_models(tmp_path):
    kept = read_checkpoint(write_checkpoint(tmp_path, {"aids": Aids(REFERENCE).section()}).parent)
    Aids(REFERENCE).refuse_others(kept)
    for other in (Aids(TEACHER), Aids(), Aids(REFERENCE, TEACHER)):
        with pytest.raises(InputError, match=r"say with --(reference|teacher) where that one is"):
            other.refuse_others(kept)


# Refusals


def corpus(folders, objective, name="many", **given):
    return options(objective, text=(folders[name],), template="plain", **given).read_corpus(TOKENIZER, BASE.config)


REFUSED = {
    "the objective dpo has no teacher, which is for distill; leave it out": lambda _: options("dpo", teacher="x"),
    "pack is for files of records, and --data is text; leave it out": lambda _: options(
        "next-token", text=("a.txt",), pack=True
    ),
    "a.txt is text, and dpo learns from records; expected files whose names end in .json, .jsonl, .json.gz, "
    ".jsonl.gz": lambda _: options("dpo", text=("a.json", "a.txt")),
    "--teacher is missing; the objective distill needs the folder of the teacher": lambda _: options(
        "distill", teacher=None
    ).settings,
    "classes are a a; expected two or more different names, or how many there are": lambda _: options(
        "classify", classes=("a", "a")
    ).class_names,
    "classes are 1; expected two or more different names, or how many there are": lambda _: options(
        "classify", classes=("1",)
    ).class_names,
    "over sequences needs a row for each answer; leave out pack, or count tokens": lambda _: goal_of(
        options("next-token", over="sequences", pack=True), Aids()
    ),
    "group is 1; expected 2 or more, because an answer is compared with its group": lambda _: goal_of(
        options("grpo", group=1), Aids()
    ),
    "gamma is 2; expected from 0 to 1": lambda _: goal_of(options("ppo", gamma=2.0), Aids()),
    "clip_range is 1; expected a number between 0 and 1": lambda _: goal_of(options("grpo", clip_range=1.0), Aids()),
    "clip_high is 0; expected a positive number": lambda _: goal_of(options("ppo", clip_high=0.0), Aids()),
    "the clip of the values is 0.0; expected a positive number": lambda _: ClippedValue(0.0),
    "the teacher has a head of 1 scores and writes no text; expected one that does": lambda folders: aids_of(
        options("distill", teacher=folders["judge"]), BASE
    ),
    "the reference has a head of 1 scores and writes no text; expected one that does": lambda folders: aids_of(
        options("dpo", reference=folders["judge"]), BASE
    ),
    "max_new_tokens is 23, and the model reads 24 tokens at once; expected room for a prompt: give fewer new tokens": (
        lambda folders: corpus(folders, "grpo", max_new_tokens=23)
    ),
    "there is 1 record to learn from, and none to validate with; give more, or --val-data": lambda folders: corpus(
        folders, "dpo", "one"
    ),
    "the teacher has a vocabulary of 99 tokens; expected 257, that of the model which is tuned": lambda folders: (
        aids_of(options("distill", teacher=folders["other"]), BASE)
    ),
    "the teacher's emb_dim is 12; expected 8, the student's": lambda _: Distillation(
        model_of(1, emb_dim=12), hidden=0.1
    ).loss(BASE, SimpleNamespace(inputs=IDS, targets=IDS, options={})),
    "the model has 99 tokens, and the tokenizer 'bytes+<|endoftext|>' has 257; new rows would not be trained beside an "
    "adapter or frozen weights: tune all weights first": lambda _: with_tokens_of(
        options("dpo", tokenizer=TOKENIZER.name, lora="r=2,alpha=2"), model_of(5, vocab_size=99)
    ),
    "the head has an adapter, which fits no other head; give it the head first, then the adapter": lambda _: class_head(
        add_lora(BASE, 2, 2.0, targets=("out_head",)), 2
    ),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(folders, line):
    with pytest.raises(InputError) as refusal:
        REFUSED[line](folders)
    assert str(refusal.value) == line


def test_a_model_that_scores_learns_no_text(folders, capsys):
    """Nothing is written."""
    out = f"{folders['judge']}-tuned"
    given = ("--checkpoint", folders["judge"], "--out", out, "--data", folders["many"], "--objective", "dpo")
    assert run("finetune", *given, "--template", "plain") == 2
    error = capsys.readouterr().err
    assert not Path(out).exists()
    assert error.count("\n") == 1
    assert "scores classes and writes no text; the objective dpo needs a model that does" in error
