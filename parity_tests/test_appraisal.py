"""How a run that learns from pairs judges the pairs that it has not seen: the same figures in both programs."""

import json

import numpy as np
import pytest

from numpygpt import GPTConfig, GPTModel
from numpygpt.adapt.saving import model_of
from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.training.run import TrainingRun
from parity_tests import command
from parity_tests.chatting import END, TOKENIZER, saved
from parity_tests.tolerances import FLOAT64_CURVE
from parity_tests.torch_command import log_of
from torchgpt.commands.main import main as torch_main

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")

PAIRS = [("Add", "3", "four"), ("Say", "yes", "no"), ("Who", "I", "you"), ("Why", "so", "because"), ("How", "so", "as")]
BETA = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    records = [{"prompt": asked, "chosen": yes, "rejected": no} for asked, yes, no in PAIRS]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    config = GPTConfig(TOKENIZER.n_vocab, 20, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=False)
    return saved(folder / "base", GPTModel(config, dtype=np.float64)).parent


def by_hand(folder, objective):
    """Accuracy and margin of the pairs, from the logits of one answer after the other."""
    model, reference = (model_of(read_checkpoint(folder / name)) for name in ("run", "base"))
    ahead = []
    for asked, *both in PAIRS:
        numbers = []
        for said in both:
            prompt = TOKENIZER.encode(f"{asked}\n")
            ids = np.array([[*prompt, *TOKENIZER.encode(said), END]])
            if objective == "reward":
                numbers.append(model(ids)[0, -1, 0])
                continue
            sums = []
            for each in (model, reference):
                logits = each(ids)[0]
                log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
                sums.append(sum(log_probs[t - 1, ids[0, t]] for t in range(len(prompt), ids.shape[1])))
            numbers.append(BETA * (sums[0] - sums[1]))
        ahead.append(numbers[0] - numbers[1])
    return {"val_accuracy": np.mean(np.array(ahead) > 0), "val_margin": np.mean(ahead)}


@pytest.mark.parametrize("program", ["numpygpt", "torchgpt"])
@pytest.mark.parametrize("objective", ["reward", "dpo"])
def test_log_and_lines_have_the_accuracy_and_the_margin(capsys, monkeypatch, folder, objective, program):
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    pairs = folder / "pairs.jsonl"
    options = ["--objective", objective, "--checkpoint", folder / "base", "--data", pairs, "--val-data", pairs,
               "--out", folder / "run", "--overwrite", "--template", "plain", "--steps", 2,
               "--batch-size", 2, "--eval-batches", 3, "--lr", 0.01, "--warmup-steps", 0, "--dtype", "float64",
               *(("--beta", BETA) if objective == "dpo" else ())]  # fmt: skip
    words = ["finetune", *map(str, options)]
    assert (command.run(*words) if program == "numpygpt" else torch_main([*words, "--device", "cpu"])) == 0
    first, last = log_of(folder / "run")
    assert not {"val_accuracy", "val_margin"} & first.keys()
    expected = by_hand(folder, objective)
    assert last["val_accuracy"] == expected["val_accuracy"]
    assert last["val_margin"] == pytest.approx(expected["val_margin"], rel=FLOAT64_CURVE)
    told = f"nats a pair, accuracy {expected['val_accuracy']:.3f}, margin {expected['val_margin']:.3f}"
    assert told in capsys.readouterr().out
