"""What `numpygpt finetune` refuses before it begins, and what its first lines say."""

import json

import pytest

from numpygpt import GPTConfig, GPTModel, InputError
from numpygpt.adapt.head import class_head
from numpygpt.training.run import TrainingRun
from numpygpt.tuning.options import LIMITS, FinetuneOptions
from parity_tests.chatting import TOKENIZER, saved
from parity_tests.command import files, run, write_text

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")

CONFIG = GPTConfig(TOKENIZER.n_vocab, 40, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=False)
ONE_STEP = ("--steps", 1, "--batch-size", 2, "--eval-batches", 1, "--warmup-steps", 0)
RECORD = {"prompt": "Add", "completion": "3", "chosen": "3", "rejected": "four", "text": "fine", "label": "good"}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with records and small models: a writer, a judge, a classifier, and others that are unfit."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "records.jsonl").write_text(f"{json.dumps(RECORD)}\n" * 4)
    write_text(tmp_path)
    writer = GPTModel(CONFIG)
    saved(tmp_path / "writer", writer)
    saved(tmp_path / "judge", class_head(writer, 1))
    saved(tmp_path / "classifier", class_head(writer, 2))
    saved(tmp_path / "short", GPTModel({**CONFIG.to_dict(), "context_length": 20}))
    saved(tmp_path / "wide", GPTModel({**CONFIG.to_dict(), "emb_dim": 16}))
    return tmp_path


def tune(objective, *options, out="out", data="records.jsonl", template=("--template", "plain")):
    wanted = ("finetune", "--checkpoint", "writer", "--objective", objective, "--data", data, "--out", out)
    return run(*wanted, *ONE_STEP, *template, *options)


def assert_refused(capsys, folder, message, *arguments, **others):
    """One line on standard error, nothing else, and every file is as it was."""
    before = files(folder)
    assert tune(*arguments, **others) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
    assert files(folder) == before


# Numbers


@pytest.mark.parametrize(("objective", "name"), LIMITS)
def test_a_number_outside_its_limits_is_refused_with_the_options(objective, name):
    wrong = {"group": 1, "gamma": 1.5, "lam": 1.5, "clip_range": 1.0, "label_smoothing": 1.0}.get(name, 0.0)
    given = {"objective": objective, "text": ["x.jsonl"], name: wrong}
    with pytest.raises(InputError, match=rf"^{name} is {wrong:g}; expected "):
        FinetuneOptions.of(given)
    allowed = {"group": 2, "gamma": 1.0, "lam": 0.0, "label_smoothing": 0.4}.get(name, 0.5)
    assert getattr(FinetuneOptions.of({**given, name: allowed}), name) == allowed


def test_a_number_that_no_step_could_take_leaves_no_folder(capsys, folder):
    assert_refused(capsys, folder, "beta is 0; expected a positive number", "dpo", "--beta", 0)


def test_smoothing_is_for_the_form_that_has_it(capsys, folder):
    options = ("--form", "ipo", "--label-smoothing", 0.1)
    assert_refused(capsys, folder, "label_smoothing is for the form sigmoid", "dpo", *options)


@pytest.mark.parametrize("classes", [["a", ""], ["a", "a"], ["a"], ["1"], ["0"]])
def test_names_of_classes_that_name_nothing(classes):
    options = FinetuneOptions.of({"objective": "classify", "text": ["x.jsonl"], "classes": classes})
    with pytest.raises(InputError, match=r"^classes are .+; expected two or more different names"):
        _ = options.class_names


# Data


def test_a_text_has_its_own_last_tenth(capsys, folder):
    files_of = ("--val-data", "records.jsonl")
    message = "val_data is for files of records; of a text, the last tenth is for validation; leave it out"
    assert_refused(capsys, folder, message, "next-token", *files_of, data="text.txt", template=())


def test_the_file_that_is_text_is_named(capsys, folder):
    message = "text.txt is text, and dpo learns from records"
    assert_refused(capsys, folder, message, "dpo", "--val-data", "text.txt")


def test_many_classes_are_not_listed(capsys, folder):
    assert tune("classify", "--classes", 50000, template=()) == 2
    assert capsys.readouterr().err.endswith("the field label is 'good'; expected a number from 0 to 49999\n")


def test_a_class_without_texts_is_told(capsys, folder):
    assert tune("classify", "--classes", "bad", "good", template=()) == 0
    assert "no text to learn from is of the class bad" in capsys.readouterr().out


def test_data_that_has_moved_is_asked_for_by_its_option(capsys, folder):
    assert tune("dpo") == 0
    (folder / "records.jsonl").rename(folder / "moved.jsonl")
    capsys.readouterr()
    assert run("finetune", "--resume", "out", "--steps", 2) == 2
    assert "say with --data where the file of records of the run is now" in capsys.readouterr().err
    assert run("finetune", "--resume", "out", "--steps", 2, "--data", "moved.jsonl") == 0


# Models that help


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dpo", "--reference", "judge"), "the reference has a head of 1 scores and writes no text"),
        (("distill", "--teacher", "classifier"), "the teacher has a head of 2 scores and writes no text"),
        (("distill", "--teacher", "short"), "the teacher reads 20 tokens at once, and the run up to 40; expected at "
         "least as many: give --length 20"),
        (("distill", "--teacher", "wide", "--hidden", 1), "the teacher's emb_dim is 16; expected 8, the student's"),
        (("grpo", "--reward-model", "classifier"), "a reward model has a head of one row"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_help(capsys, folder, arguments, message):
    more = ("--max-new-tokens", 3) if arguments[0] == "grpo" else ()
    assert_refused(capsys, folder, message, *arguments, *more)


def test_a_helper_with_a_shorter_context_helps_with_shorter_rows(folder):
    assert tune("distill", "--teacher", "short", "--length", 20) == 0


def test_a_run_never_replaces_a_model_that_it_needs(capsys, folder):
    replaces = "which it would replace in {}; choose another --out"
    for out, options in (
        ("writer", ("next-token", "--lora", "r=2")),  # an adapter is of no use without its base
        ("writer", ("next-token", "--freeze", "*emb*")),
        ("writer", ("dpo",)),  # it is the reference
        ("judge", ("grpo", "--reward-model", "judge", "--max-new-tokens", 3)),
        ("wide", ("distill", "--teacher", "wide/checkpoint.safetensors")),
    ):
        assert_refused(capsys, folder, replaces.format(out), *options, "--overwrite", out=out)
    assert tune("next-token", "--overwrite", out="writer") == 0  # what it began with is of no more use


# What it says and counts


def test_the_first_line_counts_what_is_trained(capsys, folder):
    assert tune("next-token", "--lora", "r=2") == 0
    total = GPTModel(CONFIG).num_parameters()
    assert f"{total:,} parameters, and 64 are trained; 2 training batches of 2 records; " in capsys.readouterr().out
    assert tune("next-token", out="whole") == 0
    assert f"{total:,} parameters; 2 training batches of 2 records; " in capsys.readouterr().out
