"""numpygpt train: a model learns from text."""

import argparse
import shlex
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path

from numpygpt.commands.model_options import (
    add_model_options,
    add_run_options,
    config_of,
    flag,
    given_model_options,
    given_run_options,
)
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.errors import INTERRUPTED, InputError
from numpygpt.files import locked
from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.model.config import GPTConfig
from numpygpt.model.sizes import num_parameters
from numpygpt.output import NOT_TOLD, output_may_fail
from numpygpt.parallel import use_own_threads
from numpygpt.training.backend import Exports, Maker, TrainsSome
from numpygpt.training.declared import declaration_of
from numpygpt.training.loop import Plan, train
from numpygpt.training.numpy_backend import NumpyBackend
from numpygpt.training.options import PRESET_OPTIONS, Options
from numpygpt.training.progress import Progress
from numpygpt.training.run import TrainingRun, folder_of, refuse_another_run
from numpygpt.training.team import Team


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_folder_options(parser, Options)
    add_run_options(parser)
    add_model_options(parser, vocab_size=False)


def add_folder_options(
    parser: argparse.ArgumentParser, options: type[Options], without: Container[str] = ()
) -> None:
    """Declare where the run is, for a run with these options, of which the command lacks some."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="DIR", help="folder for the run (default: runs/DATE-TIME)")
    here = [field.name for field in fields(options) if field.name not in without]
    names = [name for name in here if declaration_of(options, name).changeable]
    changeable = ", ".join(map(flag, names))
    where.add_argument(
        "--resume", type=Path, metavar="DIR", help=f"continue the run in this folder; it may change {changeable}"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a run that is already in --out")


def run(parsed: argparse.Namespace) -> int:
    """Train a model on text. Ctrl-C saves and says how to go on.

    The last checkpoint is in DIR, and with --keep those before it in DIR/earlier; the one with the lowest validation
    loss is in DIR/best. A --preset also brings a learning rate, a batch size and a warm-up for its size.
    """
    use_own_threads()
    return train_with(NumpyBackend, parsed, Progress)


def train_with(
    maker: Maker,
    parsed: argparse.Namespace,
    new_progress: Callable[[], Progress],
    begun_with: Callable[[Maker, argparse.Namespace], tuple[Options, GPTConfig]] | None = None,
) -> int:
    """Train with a backend of this maker; returns the exit status.

    Each process of the maker's team calls this, and the first one writes and prints.

    begun_with   gives the options and the model's configuration of a new run; None: as `numpygpt train` has them
    """
    with output_may_fail() as output:
        if parsed.resume:
            status = _resume(maker, parsed, new_progress)
        else:
            status = _start(maker, parsed, new_progress, begun_with or _as_declared)
    if output.failure:
        lost = f"standard output was lost ({output.failure}), the training was not"
        print(f"{maker.program} {maker.command}: {lost}", file=sys.stderr)
    return status or (NOT_TOLD if output.failure else 0)


def _as_declared(maker: Maker, parsed: argparse.Namespace) -> tuple[Options, GPTConfig]:
    options = Options.of({**PRESET_OPTIONS.get(parsed.preset, {}), **given_run_options(parsed)})
    tokenizer = maker.team.agree(lambda: get_tokenizer(options.tokenizer, options.vocab))
    return options, maker.team.agree(lambda: config_of(parsed, vocab_size=tokenizer.n_vocab))


def _start(
    maker: Maker,
    parsed: argparse.Namespace,
    new_progress: Callable[[], Progress],
    begun_with: Callable[[Maker, argparse.Namespace], tuple[Options, GPTConfig]],
) -> int:
    options, config = begun_with(maker, parsed)
    directory = parsed.out or maker.team.first_does(lambda: Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}")
    training = TrainingRun.start(maker, options, config, directory, overwrite=parsed.overwrite)
    with _locked_by_the_first(maker.team, directory):
        # it may have come and gone before we had the lock
        maker.team.first_does(lambda: refuse_another_run(directory, overwrite=parsed.overwrite))
        return _train(training, new_progress())


def _resume(maker: Maker, parsed: argparse.Namespace, new_progress: Callable[[], Progress]) -> int:
    if parsed.overwrite:
        raise InputError("--overwrite replaces a run, and --resume continues one; leave out one of the two")
    kind = maker.options_type
    given = given_run_options(parsed, of=kind)
    fixed = [name for name in given if not declaration_of(kind, name).changeable] + given_model_options(parsed)
    if fixed:
        flags = ", ".join(map(flag, sorted(fixed)))
        raise InputError(f"{flags} cannot change in a resumed run; leave them out, or start a new run with --out")
    if not parsed.resume.exists():
        read_checkpoint(parsed.resume)  # it says what was expected
    directory = folder_of(parsed.resume)
    with _locked_by_the_first(maker.team, directory):
        training = TrainingRun.resume(maker, directory, **given)
        progress, schedule_ends = new_progress(), training.options.schedule_steps
        if "steps" in given and schedule_ends is not None and training.options.steps > schedule_ends:
            progress.write(
                f"the learning rate is {training.options.learning_rate(schedule_ends):g} from step {schedule_ends} on, "
                f"where the schedule of this run ends; --schedule-steps at the start of a run sets its length"
            )
        return _train(training, progress)


@contextmanager
def _locked_by_the_first(team: Team, directory: Path) -> Iterator[None]:
    """Within the `with`, the first process of the team has the folder."""
    with ExitStack() as lock:
        team.first_does(lambda: lock.enter_context(locked(directory)))
        yield


def _train(training: TrainingRun, progress: Progress) -> int:
    options, say = training.options, progress.write
    end_of_warmup = min(options.warmup_steps, options.steps) - 1
    highest_rate = options.learning_rate(max(training.step, end_of_warmup))
    say(
        f"{_parameters_of(training)}; {training.backend.batches_in_an_epoch()} training batches of "
        f"{options.a_batch(training.config)}; {options.steps - training.step} steps to do "
        f"at a learning rate of at most {highest_rate:g}"
    )
    say(f"wrote {train(training, Plan.of(options), progress)}")
    if kept := training.earlier_checkpoints:
        say(f"kept {len(kept)} before it: {kept[0]}{f' to {kept[-1].name}' if len(kept) > 1 else ''}")
    if isinstance(training.backend, Exports) and (exported := training.backend.export(training.directory)):
        say(f"wrote {exported}, which peft reads")
    try:
        say(f"wrote {training.team.first_does(training.plot)}")
    except InputError as error:
        say(f"no loss curves were drawn: {' '.join(str(error).split())}")
    if not training.finished:
        say(
            f"stopped after step {training.step} of {options.steps}; "
            f"go on with: {_command(training.maker.program, training.maker.command, '--resume', training.directory)}"
        )
        return INTERRUPTED
    what, command = options.what_next(training.directory)
    say(f"{what}: {_command(*command)}")
    return 0


def _parameters_of(training: TrainingRun) -> str:
    total, backend = num_parameters(training.config), training.backend
    trained = backend.num_trained() if isinstance(backend, TrainsSome) else total
    return f"{total:,} parameters" if trained == total else f"{total:,} parameters, and {trained:,} are trained"


def _command(*words: str | Path) -> str:
    """The command as a shell takes it, with quotes where it needs them."""
    return shlex.join(map(str, words))
