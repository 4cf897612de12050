"""A backend of the training loop that computes nothing, and runs of it."""

import numpy as np

from numpygpt import GPTConfig
from numpygpt.sections import Section
from numpygpt.training.options import Options
from numpygpt.training.run import TrainingRun
from numpygpt.training.step import StepTaken
from numpygpt.training.team import OneProcess
from parity_tests.command import write_text

CONFIG = GPTConfig(vocab_size=256, context_length=6, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=False)


class Counting:
    """A backend whose weights are the number of its steps, and whose losses are given."""

    program, command, options_type = "numpygpt", "train", Options
    team = OneProcess()
    state_is_a_copy = False
    val_losses = [5.0] * 100

    def __init__(self, steps):
        self.weights = {"a": np.float32([steps]), "b": np.zeros(2, np.float32)}
        self.rates = []

    @classmethod
    def start(cls, task):
        return cls(0)

    @classmethod
    def load(cls, task, saved):
        return cls(int(saved.arrays("model")["a"][0]))

    def batches_in_an_epoch(self):
        return 4

    def step(self, learning_rate):
        self.rates.append(learning_rate)
        self.weights["a"] += 1
        return StepTaken(7.0, {"a": 3.0, "b": 4.0})

    def evaluate(self):
        return 6.0, self.val_losses[int(self.weights["a"][0])]

    def probe(self):
        return self.val_losses[int(self.weights["a"][0])]

    def sample(self, prompt):
        return f"{prompt}..."

    def state(self):
        return {"model": Section({"config": CONFIG.to_dict(), "tokenizer": "bytes"}, self.weights)}


def options_of(folder, **changes):
    text = (str(write_text(folder)),)
    return Options(**{"text": text, "steps": 5, "eval_every": 2, "sample_every": 3, "save_every": 4, **changes})


def started(folder, backend=Counting, **changes):
    return TrainingRun.start(backend, options_of(folder, **changes), CONFIG, folder / "run")
