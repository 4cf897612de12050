"""The options of a training run.

Each is declared once, as a field of `Options` (`numpygpt.training.declared`). The command line and the options that a
checkpoint keeps both come from these declarations.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from numpygpt.data.texts import python_reference_text, read_text
from numpygpt.data.tokenizer import TOKENIZERS, Encoding
from numpygpt.errors import InputError
from numpygpt.model import parallel_sizes
from numpygpt.model.config import ATTENTIONS, GPTConfig
from numpygpt.numerics.autocast import TABLES
from numpygpt.training.corpus import Learned, read_corpus
from numpygpt.training.declared import Declaration, check_options, checked, declaration_of, option
from numpygpt.training.optimizers import OPTIMIZERS, settings_of
from numpygpt.training.schedules import constant, warmup_cosine, warmup_linear, warmup_stable_decay

SCHEDULES = ("cosine", "constant", "linear", "wsd")
DECAYS = ("matrices", "all")
STATES = ("memory", "disk")
PRECISIONS = tuple(parallel_sizes.PRECISIONS)
AUTOCASTS = tuple(TABLES)
#: What options that a checkpoint does not have yet were, when it was written: before `decay`, everything decayed.
BEFORE: dict[str, Any] = {"decay": "all"}
#: The options that are hyper-parameters of an optimizer, if it has them.
OF_OPTIMIZERS = ("lr", "momentum", "nesterov", "rest_lr_scale", "weight_decay")
#: The weight decay of each optimizer, unless --weight-decay says otherwise.
#:
#: AdamW's is GPT-3's (Brown et al. 2020, arXiv:2005.14165, appendix B). Muon's is that of Liu et al. 2025
#: (arXiv:2502.16982, section 2.2), who found that large models need one. Lion's is ten times AdamW's, for a tenth of
#: its learning rate (Chen et al. 2023, arXiv:2302.06675, section 5). The other optimizers have the decay in the
#: gradient, where 0.1 would be far too much.
WEIGHT_DECAYS = {"adamw": 0.1, "adam": 0.0, "sgd": 0.0, "rmsprop": 0.0, "adagrad": 0.0, "lion": 1.0, "muon": 0.1}
#: wsd comes down in one step of so many, unless --decay-steps says otherwise.
DECAY_SHARE = 5

#: How each model that has a name is trained from nothing: options that `numpygpt train --preset` starts from.
#:
#: The learning rates are those of GPT-3's models of nearly the same sizes (Brown et al. 2020, arXiv:2005.14165,
#: table 2.1: Small, Medium, Large and XL), and as there (appendix B) the cosine ends at a tenth of them. GPT-2's paper
#: (Radford et al. 2019) does not give its learning rates. A few cores cannot compute GPT-3's batches of half a million
#: tokens, nor its warm-up over 375 million tokens. The book's repository trains its 124M model at 5e-4 in batches of
#: 4 x 1024 tokens (ch05/03_bonus_pretraining_on_gutenberg). Our batches are 8 x 1024 tokens, computed one sequence at
#: a time, which needs the least memory, and the warm-up takes 100 steps.
PRESET_OPTIONS: dict[str, dict[str, Any]] = {
    preset: {"lr": lr, "min_lr": lr / 10, "warmup_steps": 100, "batch_size": 1, "accumulate": 8}
    for lr, presets in (
        (6e-4, ("gpt2", "book-124M")),
        (3e-4, ("gpt2-medium", "book-355M")),
        (2.5e-4, ("gpt2-large", "book-774M")),
        (2e-4, ("gpt2-xl", "book-1558M")),
    )
    for preset in presets
}


@dataclass(frozen=True)
class Options:
    """The options of a training run, without the model's configuration. The defaults are those of the command line.

    Raises InputError, which names the option, for a value of another type than the declared one, and for a value that
    is out of range.
    """

    text: tuple[str, ...] = option(
        (), "files to learn from (default: the language reference of this Python)", changeable=True, metavar="FILE"
    )
    tokens: str | None = option(
        None,
        "file of numpygpt tokenize to learn from, whose --tokenizer has to be named, too (default: none, but texts)",
        changeable=True,
        metavar="FILE",
    )
    tokenizer: str = option("bytes", "what makes token ids of text", choices=TOKENIZERS)
    vocab: str | None = option(
        None, "GPT-2's ranks, for --tokenizer gpt2 (default: those that ship)", changeable=True, metavar="FILE"
    )
    steps: int = option(600, "optimizer steps in all", smallest=1, changeable=True)
    batch_size: int = option(16, "windows in a micro-batch", smallest=1)
    accumulate: int = option(1, "micro-batches in a step", smallest=1)
    lr: float = option(4e-3, "peak learning rate", smallest=0, changeable=True)
    min_lr: float = option(3e-4, "learning rate at the end of the schedule and after it", smallest=0, changeable=True)
    warmup_steps: int = option(50, "steps of linear warm-up", smallest=0)
    schedule: str = option(
        "cosine", "how the learning rate goes on after the warm-up; wsd: stable, then down at the end",
        choices=SCHEDULES,
    )  # fmt: skip
    schedule_steps: int | None = option(
        None, "steps until the schedule has ended (default: the --steps that the run starts with)", smallest=1
    )
    decay_steps: int | None = option(
        None, "steps at the end of wsd in which the rate comes down (default: a fifth of the schedule)", smallest=1
    )
    optimizer: str = option("adamw", "what updates the weights (docs/optimizers.md)", choices=tuple(OPTIMIZERS))
    momentum: float | None = option(
        None, "share of the momentum that a step leaves, of sgd, rmsprop and muon (default: 0, and 0.95 of muon)",
        smallest=0,
    )  # fmt: skip
    nesterov: bool | None = option(
        None, "let the momentum of sgd or muon look ahead (default: no, and yes for muon)"
    )
    rest_lr_scale: float | None = option(
        None, "learning rate of what muon leaves to AdamW, as a multiple of --lr (default: 0.015)", smallest=0
    )
    weight_decay: float | None = option(
        None, "pull on the weights, a part of the gradient with adam, sgd, rmsprop and adagrad (default: 0.1 with "
        "adamw and muon, 1 with lion, 0 with the others)", smallest=0,
    )  # fmt: skip
    decay: str = option("matrices", "what decays: matrices and embeddings, or biases and norms, too", choices=DECAYS)
    optimizer_state: str = option(
        "memory", "where the optimizer keeps its moments; disk: slower, for models whose moments memory cannot hold",
        choices=STATES, changeable=True,
    )  # fmt: skip
    optimizer_state_dir: str | None = option(
        None, "folder for --optimizer-state disk (default: that of the run)", changeable=True, metavar="DIR"
    )
    clip: float = option(1.0, "largest norm of the gradient; 0: any", smallest=0, changeable=True)
    eval_every: int = option(150, "steps between evaluations", smallest=1)
    eval_batches: int = option(16, "batches in an evaluation, of training and of validation text", smallest=1)
    sample_every: int = option(150, "steps between samples; 0: none", smallest=0, changeable=True)
    sample_prompt: str = option("The ", "what the samples continue", changeable=True)
    save_every: int = option(300, "steps between checkpoints; 0: only at the end", smallest=0, changeable=True)
    keep: int = option(
        1, "newest checkpoints that are kept; those before the last are in DIR/earlier", smallest=1, changeable=True
    )
    seed: int = option(123, "of weights, batches and dropout")
    dtype: str = option("float32", "format of every number", choices=("float32", "float64"))
    precision: str = option(
        "fp32", "format of the products, by autocast: weights stay in --dtype; NumPy rounds to it, and has no tf32",
        choices=PRECISIONS, changeable=True,
    )  # fmt: skip
    autocast: str = option(
        "cuda", "by whose table NumPy rounds: the CPU's has softmax in the short format, too", choices=AUTOCASTS,
        changeable=True,
    )  # fmt: skip
    attention: str = option("math", "flash: tile by tile, faster at 1024 tokens, and smaller", choices=ATTENTIONS)
    checkpoint_activations: bool = option(
        False, "compute each block again in the backward: less memory, a fifth more time", changeable=True
    )

    def __post_init__(self) -> None:
        check_options(self)
        _ = self.optimizer_settings  # InputError for those that the optimizer does not have
        if self.precision != "fp32" and self.dtype != "float32":
            raise InputError(
                f"--precision {self.precision} rounds products of float32, and --dtype is {self.dtype}; leave out one"
            )
        if self.decay_steps is not None and self.schedule != "wsd":
            raise InputError(f"decay_steps is {self.decay_steps}, and the schedule is {self.schedule}; only wsd has it")
        if self.optimizer_state_dir is not None and self.optimizer_state != "disk":
            raise InputError("optimizer_state_dir is for the optimizer_state disk; leave it out, or name disk, too")
        if self.sample_every and not self.sample_prompt:
            raise InputError("sample_prompt is empty; expected text for the samples to continue, or sample_every 0")
        if self.text and self.tokens is not None:
            raise InputError(
                f"text is {shortened(self.text)} and tokens is {self.tokens!r}; expected one of them to learn from"
            )

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Options":
        """The options that `to_dict` wrote; a missing option has its default. InputError for any other name."""
        unexpected = [name for name in saved if name not in cls.__dataclass_fields__]
        if unexpected:
            raise InputError(f"{shortened(unexpected)} are no options of a training run")
        return cls(**{name: checked(cls, name, value) for name, value in saved.items()})

    @classmethod
    def of_checkpoint(cls, saved: Mapping[str, Any]) -> "Options":
        """The options of a checkpoint, which may be older than some options. InputError as `of`.

        Before there was a choice of optimizers, the constant schedule had no warm-up.
        """
        if "checkpoint" in saved and "checkpoint" not in cls.__dataclass_fields__:
            raise InputError("its run tunes a trained model; go on with it by numpygpt finetune --resume")
        was = {"warmup_steps": 0} if "optimizer" not in saved and saved.get("schedule") == "constant" else {}
        return cls.of({**BEFORE, **saved, **was})

    def to_dict(self) -> dict[str, Any]:
        """The options in types that JSON has."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def settled(self) -> "Options":
        """These options as a run keeps them, so that it can go on from another folder and for more steps.

        The paths of files become absolute. The weight decay, and the lengths of the schedule and its end, become
        numbers, so that a run that is made longer keeps its learning rates.
        """
        schedule_steps = None if self.schedule == "constant" else self.schedule_steps or self.steps
        return replace(
            self,
            text=tuple(absolute(path) for path in self.text),
            tokens=self.tokens and absolute(self.tokens),
            vocab=self.vocab and absolute(self.vocab),
            optimizer_state_dir=self.optimizer_state_dir and absolute(self.optimizer_state_dir),
            weight_decay=self._weight_decay,
            schedule_steps=schedule_steps,
            decay_steps=self._decay_steps if self.schedule == "wsd" else None,
        )

    def window(self, config: GPTConfig) -> int:
        """How many tokens a window of the text has: as many as the model reads at once."""
        return config.context_length

    @property
    def counts_tokens(self) -> bool:
        """Whether every step has as many tokens as the options say."""
        return True

    @property
    def loss_unit(self) -> str:
        """What the losses are in."""
        return "nats a token"

    @property
    def optimizer_settings(self) -> dict[str, Any]:
        """The hyper-parameters of the optimizer. InputError for one that it does not have or that is out of range."""
        given = {name: getattr(self, name) for name in OF_OPTIMIZERS}
        return settings_of(self.optimizer, {**given, "weight_decay": self._weight_decay})

    @property
    def _weight_decay(self) -> float:
        return WEIGHT_DECAYS[self.optimizer] if self.weight_decay is None else self.weight_decay

    @property
    def _decay_steps(self) -> int:
        return self.decay_steps or max(1, (self.schedule_steps or self.steps) // DECAY_SHARE)

    def read_corpus(self, tokenizer: Encoding, config: GPTConfig) -> Learned:
        """What a run of a model of this configuration learns from. InputError if it cannot be read or used."""
        return read_corpus(self.tokens, self.read_text, tokenizer, config)

    def a_batch(self, config: GPTConfig) -> str:
        """How much a micro-batch of a run of a model of this configuration has, in words."""
        return f"{self.batch_size} x {self.window(config)} tokens"

    @property
    def names_of_the_data(self) -> tuple[str, str]:
        """What a run learns from, in a word or two, and the option that says where it is."""
        return ("text", "--text") if self.tokens is None else ("token file", "--tokens")

    def read_text(self) -> str:
        """The text to learn from. InputError if it cannot be read."""
        return read_text(self.text) if self.text else python_reference_text()

    def what_next(self, folder: Path) -> tuple[str, tuple[str, ...]]:
        """What can be done with the model that a run has left in a folder: in a few words, and as a command."""
        prompt = self.sample_prompt or "The "  # it may be empty if there are no samples
        return "let it write", ("numpygpt", "generate", "--checkpoint", str(folder), "--prompt", prompt)

    def learning_rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ...; from the end of the schedule on, it stays at its minimum."""
        if self.schedule == "constant":
            return constant(step, peak_lr=self.lr, warmup_steps=self.warmup_steps)
        rate: Any = {"cosine": warmup_cosine, "linear": warmup_linear}.get(self.schedule) or partial(
            warmup_stable_decay, decay_steps=self._decay_steps
        )
        found: float = rate(
            step,
            peak_lr=self.lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.schedule_steps or self.steps,
            min_lr=min(self.min_lr, self.lr),
        )
        return found


def declaration(name: str) -> Declaration:
    """The declaration of the option of this name."""
    return declaration_of(Options, name)


def absolute(path: str) -> str:
    """The path from the root on."""
    return str(Path(path).absolute())
