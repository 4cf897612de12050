"""numpygpt trace: every tensor of a few training steps in one file, for ports of GPT to compare theirs with."""

import argparse
import math
from pathlib import Path

from numpygpt.checks.budgets import budgets_of
from numpygpt.checks.standard import STANDARD
from numpygpt.checks.trace import DTYPES, Settings, Trace, checked, record
from numpygpt.checks.trace_file import write_trace
from numpygpt.commands.model_options import add_model_options, config_of, flag, tokens_of
from numpygpt.errors import InputError
from numpygpt.files import check_writable
from numpygpt.formats import llm_c
from numpygpt.model.config import GPTConfig
from numpygpt.model.sizes import check_memory, num_parameters, training_bytes

#: A model with every part, and what is done with it. No two sizes are equal, so that a transposed tensor has another
#: shape, and a factor that is a size is no other size.
DEFAULT_CONFIG = GPTConfig(
    vocab_size=61, context_length=11, emb_dim=24, n_heads=4, n_layers=2, drop_rate=0.0, qkv_bias=True
)
DEFAULT_SETTINGS = Settings(batch_size=5, tokens=9, steps=3, new_tokens=7)
#: The fields of `Settings` that are AdamW's, in their order.
OF_ADAMW = ("lr", "beta1", "beta2", "eps", "weight_decay")
#: The forms of the file: a trace, or llm.c's state for debugging, with the model beside it.
FORMS = ("trace", "llm.c")
#: Torch's rounding model keeps every tensor in float64 several times over: 22 GB are not enough for 124M parameters.
MOST_FOR_TORCH = 10_000_000
ENDING = ".trace.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="FILE", help="write the trace here")
    standard = "write the standard traces into this folder; of the others they take --seed, --dtype and --budgets alone"
    target.add_argument("--standard", type=Path, metavar="DIR", help=standard)
    settings = DEFAULT_SETTINGS
    parser.add_argument("--seed", type=int, default=settings.seed, help="of weights, token ids and dropout masks")
    parser.add_argument("--steps", type=int, default=settings.steps, help="optimizer steps")
    parser.add_argument("--dtype", choices=DTYPES, default=settings.dtype)
    new_tokens = f"how many tokens are generated from the first ids (default: {settings.new_tokens}, or what fits)"
    parser.add_argument("--new-tokens", type=int, help=new_tokens)
    parser.add_argument("--format", choices=FORMS, default=FORMS[0], help="llm.c: its debug state and its model")
    by = (
        "who finds the budgets: numpy, or torch's rounding model (default: torch where it is installed, for a model of "
        f"at most {MOST_FOR_TORCH:,} parameters)"
    )
    parser.add_argument("--budgets", metavar="BY", help=by)
    parser.add_argument("--batch-size", type=int, default=settings.batch_size, help="sequences in a training step")
    tokens = f"sequence length of a step (default: {settings.tokens}, or the context_length of a model with another)"
    parser.add_argument("--tokens", type=int, help=tokens)
    for name in OF_ADAMW:
        number = getattr(settings, name)
        parser.add_argument(flag(name), type=float, default=number, help=f"AdamW's {name}")
    add_model_options(parser, DEFAULT_CONFIG)


def run(parsed: argparse.Namespace) -> int:
    """Write every tensor of a few training steps into a file, with the budgets by which another run is judged."""
    if parsed.seed < 0:
        raise InputError(f"--seed is {parsed.seed}; expected 0 or more")
    if parsed.standard is not None:
        return _write_standard(parsed.standard, parsed)
    config = config_of(parsed, DEFAULT_CONFIG)
    settings = _settings_of(parsed, config)
    checked(config, settings)
    check_writable(parsed.out)
    if parsed.format == "llm.c":
        return _write_for_llm_c(config, settings, parsed.out)
    _write(config, settings, parsed.out, parsed.budgets)
    print(f"compare another run with it: numpygpt diff {parsed.out} CANDIDATE")
    return 0


def _settings_of(parsed: argparse.Namespace, config: GPTConfig) -> Settings:
    defaults, tokens, new_tokens = DEFAULT_SETTINGS, parsed.tokens, parsed.new_tokens
    if tokens is None and config.context_length == DEFAULT_CONFIG.context_length:
        tokens = defaults.tokens
    if new_tokens is None:
        new_tokens = min(defaults.new_tokens, config.context_length - 1)
    for name in OF_ADAMW:
        number, most = getattr(parsed, name), 1.0 if name in ("beta1", "beta2") else math.inf
        if not 0 <= number < most:
            raise InputError(f"{flag(name)} is {number:g}; expected 0 or more, and less than {most:g}")
    return Settings(
        parsed.seed,
        parsed.batch_size,
        tokens_of(parsed.batch_size, tokens, config),
        parsed.steps,
        parsed.dtype,
        new_tokens,
        *(getattr(parsed, name) for name in OF_ADAMW),
    )


def _record(config: GPTConfig, settings: Settings) -> Trace:
    """The trace, unless the machine has not enough memory for it: then InputError, before any is taken."""
    step = training_bytes(config, settings.batch_size, settings.tokens, settings.dtype)
    of_steps = 4 * settings.steps * num_parameters(config) * (8 if settings.dtype == "float64" else 4)
    check_memory(step.peak + step.activations + of_steps, "the trace")
    return record(config, settings)


def _write(config: GPTConfig, settings: Settings, path: Path, by: str | None) -> None:
    trace = _record(config, settings)
    if by is None and num_parameters(config) > MOST_FOR_TORCH:
        by = "numpy"
    how, budgets = budgets_of(trace, by)
    write_trace(path, trace, how, budgets)
    print(f"wrote {path}: {len(trace.tensors)} tensors in {settings.dtype}, budgets: {how}")


def _write_standard(folder: Path, parsed: argparse.Namespace) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}; name another") from error
    for name, (config, settings) in STANDARD.items():
        path = folder / f"{name}{ENDING}"
        check_writable(path)
        _write(config, settings._replace(seed=parsed.seed, dtype=parsed.dtype), path, parsed.budgets)
    return 0


def _write_for_llm_c(config: GPTConfig, settings: Settings, path: Path) -> int:
    llm_c.refuse_what_llm_c_lacks(config)
    model = path.with_suffix(f".model{path.suffix}")
    check_writable(model)
    trace = _record(config, settings._replace(steps=1, new_tokens=0))
    llm_c.write_model(model, config, trace.tensors)
    llm_c.write_state(path, config, trace.tensors)
    print(f"wrote {model} and {path}, as llm.c's gpt2_124M.bin and gpt2_124M_debug_state.bin")
    return 0
