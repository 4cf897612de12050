"""The options of a run that begins with a trained model, and what each objective has of them."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.adapt.adaptation import Adaptation
from numpygpt.data.examples import TOO_LONG
from numpygpt.data.templates import TEMPLATES
from numpygpt.data.tokenizer import Encoding
from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.objectives import distillation, dpo
from numpygpt.training.corpus import Learned
from numpygpt.training.declared import declaration_of, option
from numpygpt.training.options import Options, absolute
from numpygpt.tuning.corpora import read_record_corpus

#: Endings of the names of files of records; any other file is text.
RECORDS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
#: No number of classes has so many digits.
MOST_DIGITS = 6
#: The values of an option that is not given.
NOT_GIVEN = (None, ())
#: In the place of a folder: no reference.
NO_REFERENCE = "none"

class Objective(NamedTuple):
    """What `--objective` may be.

    meaning    in a few words
    settings   {option that it has: its default}
    usual      defaults of options that all have, where they are others
    """

    meaning: str
    settings: Mapping[str, Any]
    usual: Mapping[str, Any] = {}


_CONVERSATION: dict[str, Any] = {"template": "alpaca", "too_long": "refuse"}
_ANSWERS = {**_CONVERSATION, "mask_prompts": True, "pack": False, "over": "tokens"}
_POLICY = {
    **_CONVERSATION, "reward_model": None, "reference": None, "temperature": 1.0, "max_new_tokens": 64,
    "clip_range": 0.2, "clip_high": None,
}  # fmt: skip
_FEW = {"eval_batches": 1, "lr": 1e-5, "clip": 1.0}

#: What the loss of an evaluation is where answers are drawn.
MINUS_REWARD = "(minus the mean reward)"

#: The objectives by name, as the option has them.
OBJECTIVES: dict[str, Objective] = {
    "next-token": Objective("the next token of a text, or of answers", {**_ANSWERS, "label_smoothing": 0.0}),
    "classify": Objective("the class of a text", {"too_long": "refuse", "classes": None}),
    "reward": Objective("a score that is higher for the preferred of two answers", _CONVERSATION),
    "dpo": Objective(
        "the preferred of two answers becomes likelier",
        {**_CONVERSATION, "reference": None, "beta": 0.1, "form": "sigmoid", "label_smoothing": 0.0},
        {"lr": 5e-6},
    ),
    "ppo": Objective(
        "answers with a high reward become likelier, by a critic",
        {**_POLICY, "beta": 0.05, "group": 1, "rounds": 4, "over": "tokens", "value_share": 0.1, "gamma": 1.0,
         "lam": 0.95},
        _FEW,
    ),
    "grpo": Objective(
        "answers that are better than others to the same prompt become likelier",
        {**_POLICY, "beta": 0.04, "group": 8, "rounds": 1, "over": "sequences", "scale_rewards": True},
        _FEW,
    ),
    "distill": Objective(
        "a teacher's distribution of the next token",
        {**_ANSWERS, "teacher": None, "temperature": 2.0, "direction": "forward", "hidden": 0.0},
    ),
}  # fmt: skip
#: The options that only some objectives have.
OF_OBJECTIVES = tuple(dict.fromkeys(name for objective in OBJECTIVES.values() for name in objective.settings))
#: Options that an objective needs, and what is said of them if they are missing.
NEEDED = {
    ("classify", "classes"): "the names of the classes, or how many there are",
    ("distill", "teacher"): "the folder of the teacher",
    ("ppo", "reward_model"): "the folder of a model that was tuned with --objective reward",
    ("grpo", "reward_model"): "the folder of a model that was tuned with --objective reward",
}



class Limit(NamedTuple):
    """What an option may be: in words, and whether a number is."""

    expected: str
    allows: Callable[[float], bool]


_POSITIVE = Limit("a positive number", lambda value: value > 0)
_SHARE = Limit("from 0 to 1", lambda value: value <= 1)
#: Limits of options, for some objectives, that are narrower than the declared ones.
LIMITS = {
    ("dpo", "beta"): _POSITIVE,
    ("dpo", "label_smoothing"): Limit("from 0 to below 0.5", lambda value: value < 0.5),
    ("next-token", "label_smoothing"): Limit("from 0 to below 1", lambda value: value < 1),
    ("grpo", "group"): Limit("2 or more, because an answer is compared with its group", lambda value: value > 1),
    ("ppo", "gamma"): _SHARE,
    ("ppo", "lam"): _SHARE,
    ("distill", "temperature"): _POSITIVE,
    **{
        (objective, name): limit
        for objective in ("ppo", "grpo")
        for name, limit in (
            ("temperature", _POSITIVE),
            ("clip_range", Limit("a number between 0 and 1", lambda value: 0 < value < 1)),
            ("clip_high", _POSITIVE),
        )
    },
}

#: What is usual for an adapter, whose few values may move further than a whole model's: the learning rate that QLoRA
#: has for its smaller models (Dettmers et al. 2023, arXiv:2305.14314, table 9).
ADAPTER_OPTIONS = {"lr": 2e-4}


def _again(name: str, default: Any) -> Any:
    """The option of `Options` with another default."""
    return option(default, **declaration_of(Options, name)._asdict())


@dataclass(frozen=True)
class FinetuneOptions(Options):
    """The options of a run that begins with a trained model. The model's sizes and its tokenizer are the model's.

    The learning rate is that of the book's chapter 7, which tunes all weights.
    """

    checkpoint: str = option(
        "", "the model to begin with: a folder of a training run, or of another program's GPT-2", changeable=True,
        metavar="DIR",
    )  # fmt: skip
    lora: str | None = option(
        None, "train an adapter and not the model: r=8,alpha=16 and any of targets=W_query+W_value or all-linear, "
        "dropout=0.1, scaling=rslora", metavar="WORDS",
    )  # fmt: skip
    quantize: str | None = option(
        None, "quantize the matrices of the blocks, which then are frozen: nf4 or int8, and any of double, block=64",
        metavar="WORDS",
    )  # fmt: skip
    freeze: tuple[str, ...] = option((), "leave these parameters as they are: names with *", metavar="PATTERN")
    objective: str = option("next-token", "what is learned (docs/finetuning.md)", choices=tuple(OBJECTIVES))
    val_data: tuple[str, ...] = option(
        (), "files to validate with (default: the last tenth of --data)", changeable=True, metavar="FILE"
    )
    template: str | None = option(
        None, "how prompts and answers become text (default: alpaca)", choices=tuple(TEMPLATES)
    )
    too_long: str | None = option(
        None, "what happens to a record that is longer than the context (default: refuse)", choices=TOO_LONG
    )
    mask_prompts: bool | None = option(None, "learn the answers only, and not the prompts (default: yes)")
    pack: bool | None = option(None, "put several records in a row, none of which sees another (default: no)")
    over: str | None = option(
        None, "what counts alike in a mean: each token, or each answer (default: sequences of grpo, else tokens)",
        choices=("tokens", "sequences"),
    )  # fmt: skip
    label_smoothing: float | None = option(
        None, "share of a target that goes to all tokens, or of pairs that may be the wrong way round (default: 0)",
        smallest=0,
    )  # fmt: skip
    classes: tuple[str, ...] = option(
        (), "of classify: the names of the classes, or how many there are", metavar="NAME"
    )
    beta: float | None = option(
        None, "how strongly the model is held to the reference (default: 0.1 of dpo, 0.05 of ppo, 0.04 of grpo)",
        smallest=0,
    )  # fmt: skip
    form: str | None = option(None, "of dpo's loss (default: sigmoid)", choices=dpo.FORMS)
    reference: str | None = option(
        None, f"the model that it is held to, or {NO_REFERENCE} (default: the one that it begins with)",
        changeable=True, metavar="DIR",
    )  # fmt: skip
    teacher: str | None = option(None, "of distill: the model to learn from", changeable=True, metavar="DIR")
    temperature: float | None = option(
        None, "of the softmax: of both models in distill (default: 2), of drawn answers in ppo and grpo (default: 1)",
        smallest=0,
    )  # fmt: skip
    direction: str | None = option(
        None, "of distill's divergence: forward covers all that the teacher may say (default: forward)",
        choices=distillation.DIRECTIONS,
    )  # fmt: skip
    hidden: float | None = option(
        None, "of distill: share of the distance of the last hidden states (default: 0)", smallest=0
    )
    reward_model: str | None = option(
        None, "of ppo and grpo: what judges the answers", changeable=True, metavar="DIR"
    )
    group: int | None = option(None, "answers to each prompt (default: 8 of grpo, 1 of ppo)", smallest=1)
    max_new_tokens: int | None = option(None, "the longest answer that is drawn (default: 64)", smallest=1)
    rounds: int | None = option(None, "steps on the same answers (default: 4 of ppo, 1 of grpo)", smallest=1)
    clip_range: float | None = option(None, "how far a step may change a probability (default: 0.2)", smallest=0)
    clip_high: float | None = option(None, "how far it may raise one (default: as --clip-range)", smallest=0)
    scale_rewards: bool | None = option(None, "divide by the spread of a group's rewards in grpo (default: yes)")
    value_share: float | None = option(None, "of ppo: share of the critic's loss (default: 0.1)", smallest=0)
    gamma: float | None = option(None, "of ppo: discount of later rewards (default: 1)", smallest=0)
    lam: float | None = option(None, "of ppo: lambda of the advantages (default: 0.95)", smallest=0)
    length: int | None = option(None, "tokens in a window (default: the model's context_length)", smallest=1)
    steps: int = _again("steps", 200)
    batch_size: int = _again("batch_size", 4)
    lr: float = _again("lr", 5e-5)
    min_lr: float = _again("min_lr", 0.0)
    warmup_steps: int = _again("warmup_steps", 10)
    eval_every: int = _again("eval_every", 50)
    eval_batches: int = _again("eval_batches", 8)
    sample_every: int = _again("sample_every", 0)
    save_every: int = _again("save_every", 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        objective = OBJECTIVES[self.objective]
        for name in OF_OBJECTIVES:
            if getattr(self, name) not in NOT_GIVEN and name not in objective.settings:
                others = ", ".join(other for other, found in OBJECTIVES.items() if name in found.settings)
                raise InputError(f"the objective {self.objective} has no {name}, which is for {others}; leave it out")
        self._check_limits()
        if self.reads_text:
            given = [name for name in objective.settings if getattr(self, name) not in NOT_GIVEN]
            if given:
                raise InputError(f"{given[0]} is for files of records, and --data is text; leave it out")
            if self.val_data:
                raise InputError(
                    "val_data is for files of records; of a text, the last tenth is for validation; leave it out"
                )
        elif self.objective != "classify":
            self._refuse_text((*self.text, *self.val_data))

    def _check_limits(self) -> None:
        for (objective, name), limit in LIMITS.items():
            value = getattr(self, name)
            if objective == self.objective and value is not None and not limit.allows(value):
                raise InputError(f"{name} is {value:g}; expected {limit.expected}")
        if self.form == "ipo" and self.label_smoothing:
            raise InputError("label_smoothing is for the form sigmoid, and the form is ipo; leave it out")
        if self.over == "sequences" and self.pack:
            raise InputError("over sequences needs a row for each answer; leave out pack, or count tokens")

    def _refuse_text(self, paths: tuple[str, ...]) -> None:
        for path in paths:
            if not self._is_of_records(path):
                raise InputError(
                    f"{path} is text, and {self.objective} learns from records; expected files whose names end in "
                    f"{', '.join(RECORDS)}"
                )

    @property
    def reads_text(self) -> bool:
        """Whether the data is text, and not records."""
        return self.objective == "next-token" and not any(map(self._is_of_records, self.text))

    def _is_of_records(self, path: str) -> bool:
        return path.endswith(RECORDS)

    @property
    def settings(self) -> dict[str, Any]:
        """What the objective has: options that are given, and the defaults of the others.

        Raises InputError for one that it needs and that is not given.
        """
        defaults = OBJECTIVES[self.objective].settings
        given = {name: getattr(self, name) for name in defaults}
        found = {name: default if given[name] in NOT_GIVEN else given[name] for name, default in defaults.items()}
        for (objective, name), expected in NEEDED.items():
            if objective == self.objective and found[name] is None:
                raise InputError(f"--{name.replace('_', '-')} is missing; the objective {objective} needs {expected}")
        return found

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers. InputError for fewer than two."""
        given = self.settings["classes"]
        if len(given) == 1 and given[0].isdecimal() and len(given[0]) < MOST_DIGITS:
            found = tuple(map(str, range(int(given[0]))))
        else:
            found = tuple(given)
        if len(set(found)) < max(2, len(found)) or not all(map(str.strip, found)):
            raise InputError(
                f"classes are {shlex.join(given):.80}; expected two or more different names, or how many there are"
            )
        return found

    @property
    def head(self) -> int | None:
        """How many scores the model's head has to give; None: one of each token."""
        return {"classify": lambda: len(self.class_names), "reward": lambda: 1}.get(self.objective, lambda: None)()

    @classmethod
    def of_checkpoint(cls, saved: Mapping[str, Any]) -> "FinetuneOptions":
        """See `Options.of_checkpoint`. InputError for a run that began with no trained model."""
        if "checkpoint" not in saved:
            raise InputError("its run began with no trained model; go on with it by numpygpt train --resume")
        found = super().of_checkpoint(saved)
        assert isinstance(found, cls)
        return found

    @property
    def adaptation(self) -> Adaptation:
        """How the model is adapted."""
        return Adaptation(self.lora, self.quantize, self.freeze, self.head)

    @property
    def is_adapted(self) -> bool:
        """Whether the model is adapted at all, and what is saved needs its base."""
        return self.adaptation != Adaptation(head=self.head)

    def settled(self) -> "FinetuneOptions":
        """See `Options.settled`."""
        settled = super().settled()
        assert isinstance(settled, FinetuneOptions)
        found: dict[str, Any] = {name: absolute(path) for name, path in self._models.items()}
        return replace(settled, val_data=tuple(map(absolute, self.val_data)), **found)

    @property
    def _models(self) -> dict[str, str]:
        """The models that the options name."""
        folders = {name: getattr(self, name) for name in ("checkpoint", "teacher", "reward_model", "reference")}
        return {name: path for name, path in folders.items() if path not in (None, NO_REFERENCE)}

    @property
    def models_to_go_on(self) -> dict[str, str]:
        """The models without which the run, or what it saves, is of no use: {option: path}."""
        needs_the_first = self.is_adapted or ("reference" in self.settings and self.reference is None)
        return {name: path for name, path in self._models.items() if name != "checkpoint" or needs_the_first}

    @property
    def counts_tokens(self) -> bool:
        """See `Options.counts_tokens`."""
        return self.reads_text

    @property
    def loss_unit(self) -> str:
        """See `Options.loss_unit`."""
        return {"classify": "nats a text", "reward": "nats a pair", "dpo": "nats a pair", "grpo": MINUS_REWARD,
                "ppo": MINUS_REWARD}.get(self.objective, "nats a token")  # fmt: skip

    def a_batch(self, config: GPTConfig) -> str:
        """See `Options.a_batch`. Rows of records are as long as the longest of them, if they are not packed."""
        return super().a_batch(config) if self.reads_text or self.pack else f"{self.batch_size} records"

    @property
    def names_of_the_data(self) -> tuple[str, str]:
        """See `Options.names_of_the_data`."""
        return "text" if self.reads_text else "file of records", "--data"

    def what_next(self, folder: Path) -> tuple[str, tuple[str, ...]]:
        """See `Options.what_next`: a model that learned from records converses, or scores such records."""
        if self.reads_text:
            return super().what_next(folder)
        scores = {"classify": "--labels", "reward": "--pairs"}
        if self.objective not in scores:
            return "talk to it", ("numpygpt", "chat", "--checkpoint", str(folder))
        data = (*self.val_data, *self.text)[0]
        return "evaluate it", ("numpygpt", "evaluate", "--checkpoint", str(folder), scores[self.objective], data)

    def read_corpus(self, tokenizer: Encoding, config: GPTConfig) -> Learned:
        """See `Options.read_corpus`."""
        if self.reads_text:
            return super().read_corpus(tokenizer, config)
        return read_record_corpus(self, tokenizer, config)

    def window(self, config: GPTConfig) -> int:
        """See `Options.window`. InputError for a length that the model cannot read."""
        if self.length is not None and self.length > config.context_length:
            raise InputError(
                f"length is {self.length}; expected at most the model's context_length {config.context_length}"
            )
        return self.length or config.context_length
