"""The models of the ladder: the standard traces' models, and others that hypothesis draws."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from numpygpt.checks.budgets import budgets_of
from numpygpt.checks.source import Source
from numpygpt.checks.standard import STANDARD
from numpygpt.checks.trace import Settings, record
from numpygpt.checks.trace_file import TraceFile, write_trace
from numpygpt.model.config import GPTConfig

Choice = TypeVar("Choice")


class Case(NamedTuple):
    """A model and what is done with it. The names of drawn cases tell their sizes and what is special."""

    name: str
    config: GPTConfig
    settings: Settings

    @property
    def needs_scipy(self) -> bool:
        """Whether the reference needs SciPy, for the exact form of GELU."""
        return self.config.activation == "gelu_erf"

    @property
    def can_be_made(self) -> bool:
        """Whether all that the reference needs is installed."""
        return not self.needs_scipy or find_spec("scipy") is not None


def standard() -> list[Case]:
    """The cases of the standard traces, from the simplest on."""
    return [Case(name, config, settings) for name, (config, settings) in STANDARD.items()]


class Hypothesis:
    """A `numpygpt.checks.source.Chooser` that lets hypothesis choose."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def integer(self, lowest: int, highest: int) -> int:
        """One of lowest, ..., highest."""
        from hypothesis import strategies

        return int(self.draw(strategies.integers(lowest, highest)))

    def one_of(self, choices: Sequence[Choice]) -> Choice:
        """One of these."""
        from hypothesis import strategies

        chosen: Choice = self.draw(strategies.sampled_from(choices))
        return chosen


def drawn(number: int, seed: int) -> list[Case]:
    """Cases that hypothesis draws. The same number and seed give the same cases."""
    if number < 1:
        return []
    import hypothesis
    from hypothesis import strategies

    @strategies.composite
    def models(draw: Any) -> tuple[GPTConfig, Settings]:
        source = Source(Hypothesis(draw), 0, ordinary=True)
        config = source.config()
        settings = Settings(
            seed=draw(strategies.integers(0, 2**32 - 1)),
            batch_size=source.size(3),
            tokens=source.size(config.context_length),
            steps=source.size(2),
            new_tokens=draw(strategies.integers(0, min(3, config.context_length - 1))),
        )
        return config, settings

    found: list[tuple[GPTConfig, Settings]] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=number, deadline=None, database=None, phases=[hypothesis.Phase.generate], derandomize=False
    )
    @hypothesis.given(models())
    def keep(model: tuple[GPTConfig, Settings]) -> None:
        found.append(model)

    keep()
    return [Case(f"drawn-{i}-{described(*model)}", *model) for i, model in enumerate(found[:number], 1)]


def described(config: GPTConfig, settings: Settings) -> str:
    """The sizes of a case, and what is special about its model: B2-T3-H1-K4-L2-dropout-tied."""
    sizes = (
        f"B{settings.batch_size}-T{settings.tokens}-H{config.n_heads}-K{config.head_dim}-L{config.n_layers}"
    )
    special = {
        "dropout": config.drop_rate > 0,
        "qkv_bias": config.qkv_bias,
        "tied": config.tie_weights,
        "sinusoidal": config.position == "sinusoidal",
        "erf": config.activation == "gelu_erf",
        "no_bias": not config.bias,
    }
    return "-".join([sizes, *(word for word, holds in special.items() if holds)])


def reference(case: Case, path: Path, by: str | None) -> TraceFile:
    """The trace of the case, written to `path` with its budgets, and opened. `by` is `budgets_of`'s."""
    trace = record(case.config, case.settings)
    write_trace(path, trace, *budgets_of(trace, by))
    return TraceFile(path)
