"""Train a small GPT, in NumPy, to write SQL for questions in English, and run what it writes in SQLite.

    python scripts/text2sql.py                   # five minutes, nearly all on one core
    python scripts/text2sql.py --steps 300       # a short look, with a model that has learned little

At the end it writes the model, prints the scores after each stage on questions never seen, and draws a chart. Exit
status: 0, 1 if its output could not be printed, 2 for unusable input, 130 if interrupted. docs/text2sql.md explains the
figures.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from numpygpt.commands.tables import print_table
from numpygpt.errors import BAD_INPUT, INTERRUPTED, InputError
from numpygpt.formats.checkpoint import write_checkpoint
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import SECTION, model_section
from numpygpt.output import NOT_TOLD, output_may_fail
from numpygpt.parallel import use_own_threads
from numpygpt.pictures.stages import plot_stages
from numpygpt.process import keep_freed_memory
from numpygpt.text2sql.stages import CONFIG, Measured, Supervised, run_stages, stages_of, tests_of
from numpygpt.text2sql.writing import TOKENIZER
from numpygpt.training.run import make_writable

#: Draws the questions of the test, which do not depend on those of the training.
TEST_SEED = 2026
CHART = "accuracy.png"


def bar_of(name: str) -> Any:
    """What shows the steps of a stage as a bar, from its first step on."""
    bars: list[Any] = []

    def told(done: int, steps: int, facts: Mapping[str, float]) -> None:
        if not bars:
            bars.append(tqdm(total=steps, desc=name, unit="step", dynamic_ncols=True))
        bar = bars[0]
        bar.set_postfix({fact: f"{value:.3f}" for fact, value in facts.items()}, refresh=False)
        bar.update(done - bar.n)
        if done == steps:
            bar.close()

    return told


def show(results: Sequence[Measured], questions: int, directory: Path) -> None:
    """Write the last model, print the table of all stages so far, draw the chart: what is worth most comes first."""
    path = write_checkpoint(directory, {SECTION: model_section(results[-1].model, TOKENIZER)})
    print(f"\nRight answers to {questions} questions never seen, in each part of the test:\n")
    rows = [
        (result.stage, part, f"{scores.exact:.1%}", f"{scores.execution:.1%}", f"{scores.runs:.1%}")
        for result in results
        for part, scores in result.scores.items()
    ]
    print_table("llrrr", rows, head=("stage", "questions", "exact match", "execution", "valid SQL"))
    print()
    for result in results:
        print(f"{result.stage}: {result.seconds:.0f} s, {result.note}")
    parts = results[0].scores
    execution = {part: [result.scores[part].execution for result in results] for part in parts}
    print(f"wrote {path}")
    plot_stages([result.stage for result in results], execution, directory / CHART)
    print(f"wrote {directory / CHART}")


def run(parsed: argparse.Namespace) -> int:
    """Train and measure; returns the exit status."""
    for name in ("steps", "questions"):
        if getattr(parsed, name) < 1:
            raise InputError(f"--{name} is {getattr(parsed, name)}; expected 1 or more")
    make_writable(parsed.out)
    keep_freed_memory()
    use_own_threads()
    stages = stages_of(Supervised(steps=parsed.steps, seed=parsed.seed))
    results: list[Measured] = []
    try:
        bars = {stage.name: bar_of(stage.name) for stage in stages}
        tests = tests_of(parsed.questions, TEST_SEED)
        results.extend(run_stages(GPTModel(CONFIG, seed=parsed.seed), stages, tests, bars))
    except (KeyboardInterrupt, InputError) as stop:
        if results:
            show(results, parsed.questions, parsed.out)
        if isinstance(stop, InputError):
            raise
        print(f"stopped; {len(results)} of {len(stages)} stages were finished", file=sys.stderr)
        return INTERRUPTED
    show(results, parsed.questions, parsed.out)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=Supervised().steps, help="steps of the supervised stage (default: %(default)s)")
    add("--questions", type=int, default=200, help="questions in each part of the test (default: %(default)s)")
    add("--seed", type=int, default=123, help="of the weights and the training's examples (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", default=Path("runs/text2sql"), help="for what it writes (%(default)s)")
    parsed = parser.parse_args(arguments)
    try:
        with output_may_fail() as output:
            status = run(parsed)
        return status or (NOT_TOLD if output.failure else 0)
    except InputError as error:
        print(f"text2sql: error: {error}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
