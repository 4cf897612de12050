"""numpygpt chat: a conversation with a tuned model in the terminal."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from importlib import import_module

from numpygpt.commands.generate import DEFAULT_TEMPERATURE, add_sampling_options
from numpygpt.commands.trained import (
    add_adapter_options,
    add_checkpoint_options,
    add_template_option,
    template_for,
    tokenizer_of,
    trained_model,
)
from numpygpt.decoding.conversation import Answering, Conversation
from numpygpt.errors import InputError
from numpygpt.formats.kinds import read_model
from numpygpt.model.config import GPTConfig
from numpygpt.model.saving import saved_config
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.training.loop import StopRequest, stop_between_steps

#: The longest answer, unless the context is less than twice as long.
LONGEST_ANSWER = 256
#: What stands before a message that is typed.
PROMPT = "> "
#: What is typed in the place of a message, and what it does.
RESET, EXIT, HELP = "/reset", "/exit", "/help"
MEANINGS = {RESET: "forget the conversation", EXIT: "end, as Ctrl-D does", HELP: "this list"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_checkpoint_options(parser)
    add_adapter_options(parser)
    add_template_option(parser)
    add = parser.add_argument
    add("--system", metavar="TEXT", help="what the model is told before the conversation (default: the template's)")
    add("--stop", nargs="+", default=(), metavar="TEXT", help="texts that end an answer, beside those of the template")
    add(
        "--max-new-tokens",
        type=int,
        help=f"the longest answer, in tokens (default: {LONGEST_ANSWER}, and at most half of the context)",
    )
    add_sampling_options(parser)


def run(parsed: argparse.Namespace) -> int:
    """Talk with a tuned model: each line is a message, and each message gets an answer.

    Ctrl-C stops an answer; before a message it ends the conversation, as Ctrl-D and /exit do. From a pipe, each line is
    a message, too, and only the answers are printed.
    """
    checkpoint = read_model(parsed.checkpoint)
    config = saved_config(checkpoint)
    if config.classes is not None:
        raise InputError(
            f"{checkpoint.path} scores {config.classes} classes and no tokens, so it cannot write; expected a model "
            f"that writes: see what it says of texts with numpygpt evaluate"
        )
    if parsed.system == "":
        raise InputError("--system is empty; expected a text, or leave it out for what the template has")
    answering = Answering(
        _longest_answer(parsed, config),
        DEFAULT_TEMPERATURE if parsed.temperature is None else parsed.temperature,
        parsed.top_k,
        parsed.top_p,
        tuple(parsed.stop),
    )
    tokenizer = tokenizer_of(checkpoint, parsed.vocab)
    template = template_for(checkpoint, tokenizer, parsed.template)
    template.end_id(tokenizer)  # InputError for a tokenizer without it, before the weights are read
    rng = TorchGenerator() if parsed.seed is None else TorchGenerator(parsed.seed)
    model = trained_model(checkpoint, parsed)
    conversation = Conversation(model, tokenizer, template, answering, system=parsed.system, rng=rng)
    if sys.stdin is None:
        raise InputError("standard input is closed; expected a terminal, or a pipe with a message in each line")
    _talk(conversation, is_typed=sys.stdin.isatty() and sys.stdout.isatty())
    return 0


def _longest_answer(parsed: argparse.Namespace, config: GPTConfig) -> int:
    if parsed.max_new_tokens is None:
        return max(1, min(LONGEST_ANSWER, config.context_length // 2))
    given: int = parsed.max_new_tokens
    if not 1 <= given < config.context_length:
        raise InputError(
            f"--max-new-tokens is {given}; expected from 1 to {config.context_length - 1}, because the model's context "
            f"of {config.context_length} tokens has the messages, too"
        )
    return given


def _talk(conversation: Conversation, *, is_typed: bool) -> None:
    """Answer each message. What is not an answer goes to standard error.

    is_typed   whether a person types the messages. Then Ctrl-C stops an answer, and a message that is too long is not
               the end
    """
    if is_typed:
        _tell(f"{HELP} lists what else can be typed; Ctrl-C stops an answer, and Ctrl-D ends")
    for message in _messages(is_typed=is_typed):
        if message == EXIT:
            return
        if message in MEANINGS:
            _obey(message, conversation)
            continue
        try:
            forgotten = conversation.ask(message)
        except InputError as error:
            if not is_typed:
                raise
            _tell(str(error))
            continue
        if forgotten:
            _tell(f"the context is full; forgotten of the oldest turns: {forgotten}")
        _print_answer(conversation, is_typed=is_typed)


def _obey(command: str, conversation: Conversation) -> None:
    if command == RESET:
        conversation.reset()
        _tell("the conversation is forgotten")
    else:
        for name, meaning in MEANINGS.items():
            _tell(f"{name:<8}{meaning}")


def _messages(*, is_typed: bool) -> Iterator[str]:
    """The lines that are typed or come from a pipe, without the empty ones. InputError for one that is not UTF-8."""
    if is_typed:
        with suppress(ImportError):
            import_module("readline")  # from then on a typed line can be edited, and earlier ones come again
    while True:
        try:
            message = input(PROMPT if is_typed else "").strip()
        except EOFError:
            if is_typed:
                print()
            return
        except KeyboardInterrupt:
            print()
            raise
        except UnicodeDecodeError as error:
            raise InputError(f"a message is not UTF-8: {error.reason}; expected text in UTF-8") from error
        if message:
            yield message
        else:
            _tell("the message is empty; expected a line of text")


def _print_answer(conversation: Conversation, *, is_typed: bool) -> None:
    """Print the answer as it comes."""
    with stop_between_steps((signal.SIGINT,)) if is_typed else nullcontext(StopRequest()) as stop:
        for piece in conversation.answer(lambda: stop.requested):
            print(piece, end="", flush=True)
    print(flush=True)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
