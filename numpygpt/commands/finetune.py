"""numpygpt finetune: a trained model learns from more text, whole or with adapters."""

import argparse
from dataclasses import fields, replace
from pathlib import Path

from numpygpt.adapt.adaptation import lora_of, quantization_of
from numpygpt.commands.model_options import add_run_options, flag, given_run_options
from numpygpt.commands.train import add_folder_options, train_with
from numpygpt.data.templates import template_of
from numpygpt.data.tokenizer import PLUS, TOKENIZERS, get_tokenizer
from numpygpt.errors import InputError
from numpygpt.formats.kinds import read_model
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import saved_config, saved_tokenizer
from numpygpt.parallel import use_own_threads
from numpygpt.training.backend import Maker
from numpygpt.training.options import Options
from numpygpt.training.progress import Progress
from numpygpt.tuning.maker import FinetuneMaker
from numpygpt.tuning.options import ADAPTER_OPTIONS, OBJECTIVES, FinetuneOptions

#: Options of training that the model brings with it, or that have another name here.
NOT_HERE = ("text", "tokens", "tokenizer")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_folder_options(parser, FinetuneOptions, NOT_HERE)
    data_help = "files of text or of records to learn from"
    parser.add_argument("--data", dest="text", nargs="+", metavar="FILE", help=data_help)
    parser.set_defaults(tokens=None, tokenizer=None)
    add_run_options(parser, {field.name for field in fields(FinetuneOptions)} - set(NOT_HERE), of=FinetuneOptions)


def run(parsed: argparse.Namespace) -> int:
    """Tune a trained model on text: all of its weights, those that are not frozen, or an adapter of low rank.

    Ctrl-C saves and says how to go on. What an adapter's run saves is small, and needs the model that it began with.
    `numpygpt merge` makes one model of both, and `numpygpt generate` takes either.
    """
    use_own_threads()
    return train_with(FinetuneMaker(), parsed, Progress, begun_with)


def begun_with(maker: Maker, parsed: argparse.Namespace) -> tuple[Options, GPTConfig]:
    """The options of a new run, and the configuration of the model that it begins with."""
    given = given_run_options(parsed, of=FinetuneOptions)
    for name, shown, expected in (
        ("checkpoint", flag("checkpoint"), "the folder of a trained model"),
        ("text", "--data", "files of text to learn from"),
    ):
        if name not in given:
            raise InputError(f"{shown} is missing; expected {expected}")
    if parsed.lora is not None:
        lora_of(parsed.lora)
    if parsed.quantize is not None:
        quantization_of(parsed.quantize)
    base = read_model(Path(parsed.checkpoint))
    tokenizer = saved_tokenizer(base)
    if tokenizer not in TOKENIZERS:
        raise InputError(
            f"the model {base.path} has the tokenizer {tokenizer!r}; to tune it, expected {' or '.join(TOKENIZERS)}"
        )
    usual = ADAPTER_OPTIONS if parsed.lora is not None else {}
    if parsed.objective is not None:
        usual = {**OBJECTIVES[parsed.objective].usual, **usual}
    options = FinetuneOptions.of({**usual, **given, "tokenizer": tokenizer})
    assert isinstance(options, FinetuneOptions)
    options = replace(options, tokenizer=_tokenizer_with_the_template(options))
    config = saved_config(base)
    tokens = get_tokenizer(options.tokenizer, options.vocab).n_vocab
    config = replace(config, vocab_size=max(config.vocab_size, tokens))
    if options.head is not None:
        config = replace(config, classes=options.head, tie_weights=False)
    return options, config


def _tokenizer_with_the_template(options: FinetuneOptions) -> str:
    """The name of the run's tokenizer: the model's, with the special tokens of the template that it lacks.

    Raises InputError for an option that the objective needs and that is missing.
    """
    template = options.settings.get("template")
    if options.reads_text or template is None:
        return options.tokenizer
    known = get_tokenizer(options.tokenizer, options.vocab).special_tokens_set
    return PLUS.join([options.tokenizer, *(token for token in template_of(template).tokens if token not in known)])
