"""The protocols of `numpygpt evaluate` against Hugging Face's model, which scores one sequence at a time.

The model has random weights in float64, and is read by us from the folder that Hugging Face writes. Its own loss is
rounded to float32, so PyTorch takes the loss of its logits.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from numpygpt import GPTModel, InputError, get_tokenizer
from numpygpt.evaluation import lambada, multiple_choice
from numpygpt.evaluation.perplexity import TextScore, score_text, windows
from numpygpt.evaluation.scores import Completion, completion, score_completions, scores
from numpygpt.formats import load_model
from numpygpt.formats.checkpoint import write_checkpoint
from numpygpt.model.saving import model_section
from parity_tests.command import files, run
from parity_tests.tolerances import FLOAT64_NORMWISE

C = 12
BYTES = get_tokenizer("bytes")
TEXT = "The cat sat on the mat, and the dog lay by the door: né à Zürich."


def exactly(value):
    return pytest.approx(value, rel=FLOAT64_NORMWISE)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=256, n_positions=C, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    """A checkpoint of ours with their weights; it names the tokenizer."""
    written = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(written)
    model = load_model(written, np.float64)
    return write_checkpoint(tmp_path_factory.mktemp("ours"), {"model": model_section(model, "bytes")}).parent


@pytest.fixture(scope="module")
def ours(folder):
    return load_model(folder)


def their_loss(theirs, ids, scored):
    """The sum of their losses of the last `scored` tokens."""
    ids = ids[-(C + 1) :]
    logits = theirs(torch.tensor([ids[:-1]])).logits[0, -scored:]
    return F.cross_entropy(logits, torch.tensor(ids[-scored:]), reduction="sum").item()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("stride", [1, 5, C - 1])
def test_perplexity_is_hugging_faces_protocol(theirs, ours, stride, batch_size):
    ids = BYTES.encode(TEXT)
    nats, end = 0.0, 1
    for begin in range(0, len(ids), stride):
        window = ids[begin : begin + C]
        nats += their_loss(theirs, window, begin + len(window) - end)
        end = begin + len(window)
        if end == len(ids):
            break
    done = []
    found = score_text(ours, np.array(ids), length=C, stride=stride, batch_size=batch_size, advance=done.append)
    assert found == TextScore(exactly(nats), len(ids) - 1)
    assert sum(done) == len(ids) - 1
    assert found.loss == exactly(nats / (len(ids) - 1))
    assert found.perplexity == exactly(math.exp(nats / (len(ids) - 1)))
    assert found.perplexity_a_word(TEXT) == exactly(math.exp(nats / 16))
    assert found.bits_a_byte(TEXT) == exactly(nats / math.log(2) / len(TEXT.encode()))


@given(tokens=st.integers(2, 60), length=st.integers(2, 20), data=st.data())
def test_windows_score_each_token_but_the_first_once_after_as_many_as_promised(tokens, length, data):
    stride = data.draw(st.integers(1, length - 1))
    scored = []
    for window in windows(tokens, length, stride):
        assert 2 <= window.stop - window.start <= length
        new = range(window.scored, window.stop)
        assert window.start == 0 or min(new) - window.start >= length - stride
        scored += new
    assert scored == list(range(1, tokens))


def test_perplexity_too_large_for_a_number_is_infinite():
    assert TextScore(1e6, 10).perplexity == math.inf
    assert TextScore(1e6, 10).perplexity_a_word("two words") == math.inf


PASSAGES = ("He put the key into the lock and turned the key", "no, yes no", "né à Zürich")


@pytest.mark.parametrize("lines", [PASSAGES, [json.dumps({"text": text}) for text in PASSAGES]], ids=["text", "JSON"])
def test_the_last_word_is_scored_as_their_model_scores_it(theirs, ours, tmp_path, lines):
    path = tmp_path / "lambada"
    path.write_text("\n".join([lines[0], "", *lines[1:], ""]), encoding="utf-8")
    passages = lambada.read_passages(path)
    assert passages == [
        ("He put the key into the lock and turned the", " key"), ("no, yes", " no"), ("né à", " Zürich")
    ]
    losses, right = [], []
    for context, word in passages:
        tokens = BYTES.encode(word)
        ids = [*BYTES.encode(context), *tokens][-(C + 1) :]
        logits = theirs(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)[-len(tokens) :]
        losses.append(-logits.gather(1, torch.tensor(tokens)[:, None]).sum().item())
        right.append(logits.argmax(-1).tolist() == tokens)
    for batch_size in (1, 3):
        found = lambada.score_lambada(ours, passages, BYTES, context_length=C, batch_size=batch_size)
        assert found == (np.mean(right), exactly(math.exp(np.mean(losses))), 3)


def test_a_last_word_is_right_if_each_of_its_tokens_is_the_likeliest(ours):
    """The words that the model itself writes are right, and with one byte changed they are wrong."""
    context = BYTES.encode("The cat")
    own = []
    for _ in range(3):
        own.append(int(ours(np.array([[*context, *own]]))[0, -1].argmax()))
    changed = [*own[:2], (own[2] + 1) % 256]
    found = score_completions(ours, [Completion(context, own), Completion(context, changed)], C, 2)
    assert [score.greedy for score in found] == [True, False]
    assert [score.tokens for score in found] == [3, 3]


QUESTIONS = (
    {"ctx": "A man", "endings": ["sits", "is on a", "e", "rides it"], "label": 2, "ind": 4, "split": "val"},
    {"ctx": "The dog", "endings": ["barks", "né"], "label": "0"},
)


def test_the_chosen_ending_is_the_likeliest_by_sum_and_by_mean(theirs, ours, tmp_path):
    path = tmp_path / "hellaswag.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS), encoding="utf-8")
    questions = multiple_choice.read_questions(path)
    sums, means = [], []
    for question in questions:
        endings = [BYTES.encode(" " + ending) for ending in question.endings]
        losses = [their_loss(theirs, [*BYTES.encode(question.context), *ending], len(ending)) for ending in endings]
        sums.append(int(np.argmin(losses)))
        means.append(int(np.argmin([loss / len(ending) for loss, ending in zip(losses, endings, strict=True)])))
    assert sums != means  # otherwise one could be taken for the other
    for labels in (sums, means):
        asked = [question._replace(label=label) for question, label in zip(questions, labels, strict=True)]
        found = multiple_choice.score_choices(ours, asked, BYTES, context_length=C, batch_size=3)
        assert found == (
            np.mean(np.equal(sums, labels)), np.mean(np.equal(means, labels)), 2
        )


def test_a_special_token_in_a_text_is_that_token():
    gpt2 = get_tokenizer("gpt2")
    assert completion("so", " it ends<|endoftext|>", gpt2) == ([568], [340, 5645, gpt2.eot_token])


def test_scores_are_as_exact_at_large_logits():
    logits = np.array([[[1e4, 1e4 + 1, 0.0]]])
    losses, greedy = scores(logits, np.array([[1]]))
    assert losses[0, 0] == exactly(math.log1p(math.exp(-1)))
    assert greedy.all()


# The command


def write(path, lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path):
    return {
        "text": write(tmp_path / "text.txt", [TEXT]),
        "lambada": write(tmp_path / "lambada.txt", PASSAGES),
        "multiple-choice": write(tmp_path / "questions.jsonl", map(json.dumps, QUESTIONS)),
    }


@pytest.mark.parametrize(
    ("protocol", "figures"),
    [
        ("text", ["loss, nats a token", "perplexity a token", "perplexity a word", "bits a byte"]),
        ("lambada", ["accuracy", "perplexity of the word"]),
        ("multiple-choice", ["accuracy", "normalized accuracy"]),
    ],
)
def test_the_command_prints_the_same_figures_by_numpy_and_by_torch(capsys, folder, data, protocol, figures):
    printed = []
    for backend in (["numpy"], ["torch", "--device", "cpu"]):
        assert run("evaluate", "--checkpoint", folder, f"--{protocol}", data[protocol], "--backend", *backend) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    table = printed[0].splitlines()[-len(figures) :]
    assert [re.split(r"\s{2,}", line)[0] for line in table] == figures


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text", "{text}", "--stride", "0"], "the stride is 0; expected from 1 to 11"),
        (["--text", "{text}", "--stride", "12"], "the stride is 12; expected from 1 to 11"),
        (["--text", "{text}", "--batch-size", "0"], "--batch-size is 0; expected 1 or more"),
        (["--lambada", "{lambada}", "--stride", "4"], "--stride has no meaning here"),
        (["--text", "{text}", "--device", "cpu"], "--device has no meaning here"),
        (["--text", "{text}", "--backend", "torch", "--device", "cuda:77"], "PyTorch cannot compute on the device"),
        (["--text", "{text}", "--backend", "torch", "--device", "nonsense"], "PyTorch cannot compute on the device"),
        (["--text", "{tmp}/missing"], "No such file"),
        (["--text", "{tmp}/one"], "the text has 1 tokens; expected at least 2"),
        (["--lambada", "{tmp}/one"], "line 1 of"),
        (["--lambada", "{tmp}/numbers"], "the field text is 3; expected a text"),
        (["--lambada", "{tmp}/broken"], "is no JSON"),
        (["--lambada", "{tmp}/long"], "completion 1 has 15 tokens; the model takes 12 at most"),
        (["--multiple-choice", "{tmp}/list"], "line 1 of {tmp}/list holds a list; expected a JSON object"),
        (["--multiple-choice", "{tmp}/deep"], "is no JSON"),
        (["--multiple-choice", "{tmp}/spaces"], "has no question"),
        (["--multiple-choice", "{tmp}/no-endings"], "the field endings is None"),
        (["--multiple-choice", "{tmp}/no-context"], "the field ctx is missing"),
        (["--multiple-choice", "{tmp}/label"], "the field label is 2; expected a number from 0 to 1"),
    ],
)
def test_bad_input_gets_one_line(capsys, tmp_path, folder, data, options, said):
    for name, line in {
        "one": "x",
        "numbers": '{"text": 3}',
        "broken": '{"text": ',
        "long": "a thirteen-bytes",
        "list": "[1]",
        "deep": "[" * 100_000,
        "spaces": " \n \n",
        "no-endings": '{"ctx": "x", "label": 0}',
        "no-context": '{"endings": ["a", "b"], "label": 0}',
        "label": '{"ctx": "x", "endings": ["a", "b"], "label": 2}',
    }.items():
        write(tmp_path / name, [line])
    before = files(tmp_path)
    given = [option.format(tmp=tmp_path, **data) for option in options]
    assert run("evaluate", "--checkpoint", folder, *given) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"numpygpt: error: ", line)
    assert said.format(tmp=tmp_path) in line
    assert files(tmp_path) == before


def test_a_model_with_fewer_tokens_than_its_tokenizer(capsys, tmp_path, data, ours):
    small = GPTModel({**ours.config.to_dict(), "vocab_size": 90})
    write_checkpoint(tmp_path / "small", {"model": model_section(small, "bytes")})
    assert run("evaluate", "--checkpoint", tmp_path / "small", "--text", data["text"]) == 2
    assert "encoded with another tokenizer" in capsys.readouterr().err.splitlines()[-1]


def test_logits_that_are_not_finite(ours):
    with pytest.raises(InputError, match="logits are not finite"):
        scores(np.full((1, 1, 3), np.nan), np.zeros((1, 1), int))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to write to")
def test_an_output_that_cannot_be_written_is_found_out_before_the_work(folder, data):
    command = f"{sys.executable} -m numpygpt evaluate --checkpoint '{folder}' --text '{data['text']}' > /dev/full"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["numpygpt: error: the output cannot be written: No space left on device"]
