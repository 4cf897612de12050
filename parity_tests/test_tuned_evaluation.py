"""What `numpygpt evaluate` says of tuned models, against Hugging Face's models and PyTorch's formulas in float64."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from numpygpt import GPTConfig, GPTModel, InputError, get_tokenizer
from numpygpt.adapt.head import class_head
from numpygpt.commands import evaluate
from numpygpt.data.batching import Examples, LabeledTexts, Pairs
from numpygpt.data.examples import Limit
from numpygpt.data.instructions import read_instructions
from numpygpt.data.labels import LabeledText, read_labeled_texts
from numpygpt.data.preferences import Pair, read_preferences
from numpygpt.data.templates import TEMPLATES
from numpygpt.data.tokenizer import ENDOFTEXT
from numpygpt.evaluation.answers import score_answers
from numpygpt.evaluation.classes import score_classes
from numpygpt.evaluation.pairs import score_preferences, score_rewards
from numpygpt.evaluation.scores import share_ahead
from numpygpt.evaluation.wins import score_wins
from numpygpt.formats import load_model
from numpygpt.formats.checkpoint import write_checkpoint
from numpygpt.model.saving import model_section
from numpygpt.sections import Section
from numpygpt.tuning.classes import Classes
from numpygpt.tuning.options import FinetuneOptions
from parity_tests.chatting import END, TOKENIZER, chain, model_that_says, saved
from parity_tests.command import run
from parity_tests.tolerances import FLOAT64_NORMWISE

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")

C, PLAIN = 40, TEMPLATES["plain"]
LIMIT = Limit(C)
TEXTS = (("good", 1), ("a very bad one", 0), ("né", 2), ("so so", 1), ("fine, thank you", 1))
CLASSES = ("bad", "good", "other")
RECORDS = (("Add 1 and 2.", "3"), ("Say é", "é, é and é"), ("Who?", "I"))
PAIRS = (("Add 1 and 2.", "3", "four"), ("Who?", "nobody at all", "I"), ("Say é", "é", "e"))


def exactly(value):
    return pytest.approx(value, rel=FLOAT64_NORMWISE)


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "labels": write(folder / "labels.jsonl", [{"text": text, "label": label} for text, label in TEXTS]),
        "answers": write(folder / "answers.jsonl", [{"prompt": asked, "completion": said} for asked, said in RECORDS]),
        "pairs": write(
            folder / "pairs.jsonl", [{"prompt": asked, "chosen": yes, "rejected": no} for asked, yes, no in PAIRS]
        ),
        "prompts": write(folder / "prompts.jsonl", [{"prompt": asked} for asked, _ in RECORDS]),
    }


def theirs_of(kind, seed, **options):
    """A model of Hugging Face with random weights in float64."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=TOKENIZER.n_vocab, n_positions=C, n_embd=8, n_layer=1, n_head=2, bos_token_id=END,
        eos_token_id=END, pad_token_id=END, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **options,
    )  # fmt: skip
    model = kind(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def writer_of(folder, seed):
    """Their model, and ours with its weights."""
    theirs = theirs_of(GPT2LMHeadModel, seed)
    theirs.save_pretrained(folder / f"writer{seed}")
    return theirs, load_model(folder / f"writer{seed}", np.float64)


def scorer_of(folder, classes, seed):
    """Their model that scores classes, and ours with its body and head. Theirs has no bias; ours gets 0.

    The last norm of both has no bias: it would say more of the class than the text does.
    """
    theirs = theirs_of(GPT2ForSequenceClassification, seed, num_labels=classes)
    torch.nn.init.zeros_(theirs.transformer.ln_f.bias)
    whole = theirs_of(GPT2LMHeadModel, 0)
    whole.transformer.load_state_dict(theirs.transformer.state_dict())
    whole.save_pretrained(folder / f"body{classes}")
    ours = class_head(load_model(folder / f"body{classes}", np.float64), classes)
    arrays = ours.named_parameters()
    arrays["out_head.weight"][...] = theirs.score.weight.detach().numpy()
    arrays["out_head.bias"][...] = 0
    return theirs, ours


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{name: (theirs, ours)}."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "policy": writer_of(folder, 1), "reference": writer_of(folder, 2), "classifier": scorer_of(folder, 3, 53),
        "reward model": scorer_of(folder, 1, 1),
    }  # fmt: skip


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    return {name: saved(tmp_path_factory.mktemp("ours"), ours) for name, (_, ours) in models.items()}


def their_scores(theirs, rows):
    """The scores of rows of token ids, which end at their last token before the padding."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[END] * (longest - len(row))] for row in rows])
    with torch.no_grad():
        return theirs(ids).logits


def ids_of(question, answer, *, ended=True):
    """The token ids of a conversation by the template `plain`, and how many belong to the prompt."""
    prompt = TOKENIZER.encode(f"{question}\n")
    return [*prompt, *TOKENIZER.encode(answer), *([END] if ended else [])], len(prompt)


def their_log_prob(theirs, question, answer):
    ids, prompt = ids_of(question, answer)
    with torch.no_grad():
        log_probs = theirs(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    return log_probs[torch.arange(prompt - 1, len(ids) - 1), ids[prompt:]].sum().item()


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_classes_are_those_of_hugging_faces_classifier(models, data, batch_size):
    theirs, ours = models["classifier"]
    scores = their_scores(theirs, [TOKENIZER.encode(text) for text, _ in TEXTS])
    assert len(set(scores.argmax(-1).tolist())) == 3
    labels = torch.tensor([label for _, label in TEXTS])
    texts = LabeledTexts(read_labeled_texts(data["labels"], CLASSES, TOKENIZER, LIMIT).items)
    done = []
    found = score_classes(ours, texts, 3, batch_size=batch_size, advance=done.append)
    assert found.loss == exactly(F.cross_entropy(scores, labels).item())
    assert found.accuracy == (scores.argmax(-1) == labels).double().mean().item()
    counts = np.zeros((3, 3), int)
    for label, chosen in zip(labels, scores.argmax(-1), strict=True):
        counts[label, chosen] += 1
    assert np.array_equal(found.counts, counts)
    assert sum(done) == len(TEXTS)


#: Parameters of our classifier by their names in Hugging Face's.
THEIR_NAMES = {
    "out_head.weight": "score.weight", "tok_emb.weight": "transformer.wte.weight",
    "pos_emb.weight": "transformer.wpe.weight", "final_norm.scale": "transformer.ln_f.weight",
}  # fmt: skip


def test_a_classifier_has_the_loss_and_the_gradients_of_hugging_faces(models, data):
    theirs, ours = models["classifier"]
    batch = LabeledTexts(read_labeled_texts(data["labels"], CLASSES, TOKENIZER, LIMIT).items, END).batch(
        np.arange(len(TEXTS))
    )
    theirs.zero_grad()
    expected = theirs(torch.from_numpy(batch.inputs), labels=torch.from_numpy(batch.labels)).loss
    expected.backward()
    loss, gradients = Classes().loss_and_grads(ours, batch)
    assert float(loss) == exactly(expected.item())
    for name, their_name in THEIR_NAMES.items():
        gradient = theirs.get_parameter(their_name).grad.numpy()
        assert np.linalg.norm(gradients[name] - gradient) <= FLOAT64_NORMWISE * np.linalg.norm(gradient), name


def test_a_text_that_ends_with_the_token_of_padding_is_read_to_its_end(models):
    """Hugging Face's model finds a text's end by the padding, and so reads the token before."""
    theirs, ours = models["classifier"]
    ids = [*TOKENIZER.encode("fine"), END]
    one, shorter = (LabeledTexts([LabeledText(np.array(row), 1)]).batch(np.arange(1)) for row in (ids, ids[:-1]))
    expected = F.cross_entropy(their_scores(theirs, [ids]), torch.tensor([1])).item()
    assert float(Classes().loss(ours, shorter)) == exactly(expected)
    assert float(Classes().loss(ours, one)) != exactly(expected)


def test_a_class_without_texts_has_no_share_that_was_found(models, data):
    texts = LabeledTexts(read_labeled_texts(data["labels"], CLASSES, TOKENIZER, LIMIT).items[:1])
    recalls = score_classes(models["classifier"][1], texts, 3).recalls
    assert recalls[0] is recalls[2] is None
    assert recalls[1] in (0.0, 1.0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_are_scored_as_hugging_face_scores_masked_labels(models, data, batch_size):
    theirs, ours = models["policy"]
    nats, tokens, right = 0.0, 0, 0
    for question, answer in RECORDS:
        ids, prompt = ids_of(question, answer)
        logits = theirs(torch.tensor([ids[:-1]])).logits[0, prompt - 1 :]
        nats += F.cross_entropy(logits, torch.tensor(ids[prompt:]), reduction="sum").item()
        tokens, right = tokens + len(logits), right + int((logits.argmax(-1) == torch.tensor(ids[prompt:])).sum())
    examples = Examples(read_instructions(data["answers"], PLAIN, TOKENIZER, LIMIT).items)
    found = score_answers(ours, examples, batch_size=batch_size)
    assert found.score == (exactly(nats), tokens)
    assert found.score.perplexity == exactly(math.exp(nats / tokens))
    assert found.accuracy == right / tokens


def pairs_of(data):
    return Pairs(read_preferences(data["pairs"], PLAIN, TOKENIZER, LIMIT).items)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_rewards_are_those_of_hugging_faces_model_of_one_label(models, data, batch_size):
    """Their model reads the token before the padding, so the end of an answer, which is their padding, is left out."""
    theirs, ours = models["reward model"]
    pairs = pairs_of(data)
    without_end = [Pair(*(example.first(len(example.token_ids) - 1) for example in pair)) for pair in pairs.pairs]
    rows = [ids_of(asked, said, ended=False)[0] for asked, *answers in PAIRS for said in answers]
    chosen, rejected = their_scores(theirs, rows)[:, 0].reshape(-1, 2).T
    found = score_rewards(ours, Pairs(without_end), batch_size=batch_size)
    assert found.loss == exactly(-F.logsigmoid(chosen - rejected).mean().item())
    assert found.margin == exactly((chosen - rejected).mean().item())
    assert found.accuracy == (chosen > rejected).double().mean().item()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_preferences_are_those_of_torchs_log_probabilities(models, data, batch_size):
    (policy, ours), (reference, our_reference) = models["policy"], models["reference"]
    sums = {
        name: torch.tensor(
            [[their_log_prob(model, asked, said) for said in answers] for asked, *answers in PAIRS], dtype=torch.float64
        )
        for name, model in (("policy", policy), ("reference", reference))
    }
    chosen, rejected = (0.3 * (sums["policy"] - sums["reference"])).T
    found = score_preferences(ours, pairs_of(data), reference=our_reference, beta=0.3, batch_size=batch_size)
    margins = sums["policy"][:, 0] - sums["policy"][:, 1]
    assert found.log_probs == ((margins > 0).double().mean().item(), exactly(margins.mean().item()), None)
    assert found.rewards.accuracy == (chosen > rejected).double().mean().item()
    assert found.rewards.margin == exactly((chosen - rejected).mean().item())
    assert found.rewards.loss == exactly(-F.logsigmoid(chosen - rejected).mean().item())
    assert score_preferences(ours, pairs_of(data)).rewards is None


def test_equal_numbers_count_half(models, data):
    assert share_ahead(np.array([1.0, 2, 3, 4]), np.array([1.0, 1, 4, 3])) == 0.625
    _, ours = models["policy"]
    same = score_preferences(ours, pairs_of(data), reference=ours)
    assert (same.rewards.accuracy, same.rewards.margin) == (0.5, 0.0)
    assert same.rewards.loss == exactly(math.log(2))


def test_the_longer_answers_win_if_length_is_the_reward():
    prompts = list(range(4))
    lengths = {"ours": [3, 1, 2, 5], "theirs": [1, 1, 4, 2]}

    class Item:
        def __init__(self, number):
            self.token_ids, self.number = [0] * (number + 1), number

    writers = [lambda batch, name=name: [lengths[name][item.number] for item in batch] for name in lengths]
    found = score_wins(*writers, lambda _, answers: np.array(answers, float), list(map(Item, prompts)), batch_size=3)
    assert found == (0.625, 1, 2.75, 2.0)


def test_numbers_that_are_not_finite(models, data):
    with pytest.raises(InputError, match="scores are not finite"):
        score_rewards(lambda ids: np.full((*ids.shape, 1), np.nan), pairs_of(data))


# The command


def told(capsys, folder, *options, status=0):
    """What is printed, and the last line of standard error."""
    capsys.readouterr()
    assert run("evaluate", "--checkpoint", folder, *options) == status
    printed = capsys.readouterr()
    return printed.out, printed.err.splitlines()[-1]


def figures_of(out):
    return dict(match for line in out.splitlines() if len(match := re.split(r"\s{2,}", line)) == 2)


BY = ("--template", "plain")


@pytest.mark.parametrize(
    ("name", "options", "figures"),
    [
        ("classifier", ("--labels", "{labels}"), ["accuracy", "loss, nats a text"]),
        (
            "policy", ("--answers", "{answers}", *BY),
            ["loss, nats a token", "perplexity a token", "accuracy of the next token"],
        ),
        ("reward model", ("--pairs", "{pairs}", *BY), ["accuracy", "mean margin", "loss, nats a pair"]),
        (
            "policy", ("--pairs", "{pairs}", *BY, "--reference", "{reference}", "--beta", "0.3"),
            ["accuracy by log-probabilities", "mean margin of log-probabilities, nats", "accuracy by rewards",
             "mean margin of rewards", "loss, nats a pair"],
        ),
    ],
)  # fmt: skip
def test_the_command_prints_the_same_figures_by_numpy_and_by_torch(capsys, folders, data, name, options, figures):
    given = [str(option).format(**data, **folders) for option in options]
    printed = [told(capsys, folders[name], *given, "--batch-size", 2)[0]]
    printed.append(told(capsys, folders[name], *given, "--backend", "torch", "--device", "cpu")[0])
    assert printed[0] == printed[1]
    assert list(figures_of(printed[0])) == figures


def test_the_table_of_a_classifier_has_a_row_for_each_class(capsys, models, folders, data):
    out, _ = told(capsys, folders["classifier"], "--labels", data["labels"], "--class-names", *CLASSES)
    texts = LabeledTexts(read_labeled_texts(data["labels"], CLASSES, TOKENIZER, LIMIT).items)
    score = score_classes(models["classifier"][1], texts, 3)
    rows = [line.split() for line in out.splitlines()[-4:]]
    assert rows[0] == ["class", *CLASSES, "found"]
    assert rows[1:] == [
        [name, *map(str, counts), f"{counts[label] / counts.sum():.4f}"]
        for label, (name, counts) in enumerate(zip(CLASSES, score.counts, strict=True))
    ]


def test_a_win_rate_of_models_that_are_known(capsys, folders, tmp_path, data):
    """The reward model likes the token `b` at the end: of "ab" and of "b" alike, and of "a" less."""
    likes = class_head(model_that_says({}, context_length=C), 1)
    arrays = likes.named_parameters()
    arrays["out_head.weight"][...] = 0
    arrays["out_head.weight"][0, ord("b")] = 1
    judge = saved(tmp_path / "judge", likes)
    says = {
        name: saved(tmp_path / name, model_that_says(chain("\n", *name), context_length=C)) for name in ("ab", "b", "a")
    }
    for other, rate, ties in (("a", "1.0000", "0"), ("b", "0.5000", "3")):
        options = ("--prompts", data["prompts"], *BY, "--against", says[other], "--reward-model", judge)
        out, _ = told(capsys, says["ab"], *options, "--max-new-tokens", 4, "--batch-size", 2)
        assert figures_of(out)["win rate"] == rate
        assert figures_of(out)["equal rewards"] == ties
    drawn = [
        told(capsys, folders["policy"], "--prompts", data["prompts"], *BY, "--against", folders["reference"],
             "--reward-model", folders["reward model"], "--max-new-tokens", 9, "--temperature", 1, "--seed", seed)[0]
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_run_knows_its_classes_template_and_length(capsys, models, tmp_path, data):
    options = FinetuneOptions(
        checkpoint="base", text=(str(data["labels"]),), objective="classify", classes=CLASSES, too_long="drop"
    )
    folder = tmp_path / "run"
    sections = {
        "model": model_section(models["classifier"][1], TOKENIZER.name),
        "run": Section({"options": options.to_dict(), "step": 1, "history": []}, {}),
    }
    write_checkpoint(folder, sections)
    long = write(tmp_path / "long.jsonl", [{"text": "x" * 99, "label": "bad"}, {"text": "good", "label": "good"}])
    out, _ = told(capsys, folder, "--labels", long)
    assert "left out 1 of 2 records, which are too long" in out
    assert out.splitlines()[-4].split() == ["class", *CLASSES, "found"]
    assert run("info", "--checkpoint", folder) == 0
    assert "classes 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("policy", ("--labels", "{labels}"), "scores tokens; expected a classifier for --labels"),
        ("reward model", ("--labels", "{labels}"), "scores answers, as a reward model; expected a classifier"),
        ("classifier", ("--pairs", "{pairs}"), "scores 3 classes; expected a reward model or a model that writes"),
        ("classifier", ("--text", "{labels}"), "scores 3 classes; expected a model that writes for --text; a classif"),
        ("reward model", ("--answers", "{answers}"), "expected a model that writes for --answers; a classif"),
        ("classifier", ("--labels", "{labels}", "--class-names", "a", "b"), "--class-names has 2 names; expected 3"),
        ("classifier", ("--labels", "{labels}", *BY), "--template has no meaning here; leave it out (it goes"),
        ("policy", ("--pairs", "{pairs}", *BY, "--beta", "1"), "--beta is for rewards relative to a reference"),
        ("policy", ("--pairs", "{pairs}", *BY, "--reference", "{reference}", "--beta", "0"), "--beta is 0; expected"),
        ("policy", ("--pairs", "{pairs}", *BY, "--reference", "nowhere"), "--reference: there is no checkpoint"),
        ("policy", ("--pairs", "{pairs}", *BY, "--reference", "{classifier}"), "scores 3 classes; expected a model"),
        ("reward model", ("--pairs", "{pairs}", *BY, "--beta", "1"), "--beta has no meaning for a reward model"),
        ("policy", ("--prompts", "{prompts}"), "--against is missing; --prompts needs the other model, a folder"),
        (
            "policy", ("--prompts", "{prompts}", "--against", "{reference}"),
            "--reward-model is missing; --prompts needs the model that judges, a folder",
        ),
        (
            "policy", ("--prompts", "{prompts}", *BY, "--against", "{reference}", "--reward-model", "{policy}"),
            "a reward model has a head of one row; this model scores 257 tokens",
        ),
        (
            "policy",
            ("--prompts", "{prompts}", *BY, "--against", "{reference}", "--reward-model", "{reward model}",
             "--max-new-tokens", "39"),
            "--max-new-tokens is 39; expected at least 1, and room for a prompt in a context of 40 tokens",
        ),
        (
            "policy",
            ("--prompts", "{prompts}", *BY, "--against", "{reference}", "--reward-model", "{reward model}",
             "--backend", "torch"),
            "--prompts has answers written, which NumPy does alone; leave out --backend",
        ),
        ("policy", ("--answers", "{labels}", *BY), "line 1 of"),
        ("policy", ("--answers", "{answers}"), "has a prompt of 152 tokens, which fills the context of 40"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(capsys, folders, data, name, options, said):
    given = [str(option).format(**data, **folders) for option in options]
    _, line = told(capsys, folders[name], *given, status=2)
    assert line.startswith("numpygpt: error: ")
    assert said in line


@pytest.mark.parametrize(
    ("name", "protocol"), [("policy", "labels"), ("classifier", "answers"), ("classifier", "pairs")]
)
def test_another_head_is_refused_before_its_weights_are_read(capsys, monkeypatch, folders, data, name, protocol):
    monkeypatch.setattr(evaluate, "trained_model", None)
    out, line = told(capsys, folders[name], f"--{protocol}", data[protocol], status=2)
    assert out == ""
    assert "expected a" in line


def test_a_reference_with_another_vocabulary(capsys, folders, tmp_path, data):
    small = GPTModel(GPTConfig(200, C, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=False))
    other = saved(tmp_path, small, get_tokenizer(f"bytes+{ENDOFTEXT}"))
    _, line = told(capsys, folders["policy"], "--pairs", data["pairs"], *BY, "--reference", other, status=2)
    assert "--reference has a vocabulary of 200 tokens; expected 257, that of --checkpoint" in line


def test_a_base_that_has_moved_is_named(capsys, folders, tmp_path, data):
    """What is frozen has a base as what has an adapter."""
    base = shutil.copytree(folders["policy"], tmp_path / "base")
    for name, how in (("lora", ("--lora", "r=2")), ("frozen", ("--freeze", "*emb*"))):
        tuning = ("--checkpoint", base, "--data", data["answers"], *BY, "--steps", 1, "--eval-batches", 1)
        assert run("finetune", *tuning, *how, "--out", tmp_path / name) == 0
    moved = base.rename(tmp_path / "moved")
    for name in ("lora", "frozen"):
        _, line = told(capsys, tmp_path / name, "--answers", data["answers"], status=2)
        assert "say with --base where it is" in line
        out, _ = told(capsys, tmp_path / name, "--answers", data["answers"], "--base", moved)
        assert "loss, nats a token" in out
