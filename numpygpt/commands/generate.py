"""numpygpt generate: a trained model continues a prompt."""

import argparse
from collections.abc import Iterable
from itertools import islice, takewhile

from numpygpt.commands.model_options import flag
from numpygpt.commands.trained import (
    add_adapter_options,
    add_checkpoint_options,
    encoded,
    tokenizer_of,
    trained_model,
)
from numpygpt.data.tokenizer import ENDOFTEXT, Encoding, token_ids_to_text
from numpygpt.decoding.beams import beam_search
from numpygpt.decoding.generation import stream
from numpygpt.decoding.sampling import check_sampling
from numpygpt.decoding.streaming import token_bytes, whole_characters
from numpygpt.errors import InputError
from numpygpt.formats.kinds import read_model
from numpygpt.model.sizes import check_memory, decoding_bytes
from numpygpt.random.torch_generator import TorchGenerator

DEFAULT_TEMPERATURE = 0.8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_checkpoint_options(parser)
    add_adapter_options(parser)
    add = parser.add_argument
    add("--prompt", required=True, help="text to continue")
    add("--max-new-tokens", type=int, default=200, help="tokens to add")
    add_sampling_options(parser)
    add("--num-samples", type=int, default=1, help="how many continuations")
    add("--num-beams", type=int, help="search for the likeliest whole with this many beams, instead of drawing tokens")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Declare how tokens are drawn."""
    add = parser.add_argument
    add(
        "--temperature",
        type=float,
        help=f"0: always the likeliest token; higher: more surprising (default: {DEFAULT_TEMPERATURE})",
    )
    add("--top-k", type=int, help="choose among the k likeliest tokens only")
    add("--top-p", type=float, help="choose among the likeliest tokens that together have this probability only")
    add("--seed", type=int, help="for the same text again")


def run(parsed: argparse.Namespace) -> int:
    """Continue a prompt with a trained model, printing each token as it is chosen."""
    for name, smallest in (("max_new_tokens", 0), ("num_samples", 1)):
        if getattr(parsed, name) < smallest:
            raise InputError(f"{flag(name)} is {getattr(parsed, name)}; expected {smallest} or more")
    temperature = DEFAULT_TEMPERATURE if parsed.temperature is None else parsed.temperature
    check_sampling(temperature, parsed.top_k, parsed.top_p)
    checkpoint = read_model(parsed.checkpoint)
    tokenizer = tokenizer_of(checkpoint, parsed.vocab)
    idx = encoded(parsed.prompt, tokenizer)
    model = trained_model(checkpoint, parsed)
    if parsed.num_beams is not None:
        _refuse_sampling_options(parsed)
        needed = decoding_bytes(model.config, parsed.num_beams, model.dtype)
        check_memory(needed, f"a search with {parsed.num_beams} beams")
        end = _end_of_text(tokenizer)
        ids = beam_search(model, idx, parsed.max_new_tokens, model.config.context_length, parsed.num_beams, end)
        print(token_ids_to_text(ids, tokenizer))
        return 0
    rng = TorchGenerator() if parsed.seed is None else TorchGenerator(parsed.seed)
    for sample in range(parsed.num_samples):
        if parsed.num_samples > 1:
            print(f"--- sample {sample + 1} of {parsed.num_samples}")
        choices = stream(
            model, idx, model.config.context_length, temperature, parsed.top_k, top_p=parsed.top_p, rng=rng
        )
        new_tokens = (int(ids[0]) for ids in islice(choices, parsed.max_new_tokens))
        _print_as_it_comes(parsed.prompt, new_tokens, tokenizer)
    return 0


def _end_of_text(tokenizer: Encoding) -> int | None:
    return tokenizer.eot_token if ENDOFTEXT in tokenizer.special_tokens_set else None


def _refuse_sampling_options(parsed: argparse.Namespace) -> None:
    given = [name for name in ("temperature", "top_k", "top_p", "seed") if getattr(parsed, name) is not None]
    given += ["num_samples"] if parsed.num_samples > 1 else []
    if given:
        flags = ", ".join(map(flag, given))
        raise InputError(f"--num-beams draws no tokens and finds one continuation; leave out {flags}")


def _print_as_it_comes(prompt: str, token_ids: Iterable[int], tokenizer: Encoding) -> None:
    """Print the prompt, and each token up to the end of the text as soon as its last character is whole."""
    end = _end_of_text(tokenizer)
    print(prompt, end="", flush=True)
    chunks = (token_bytes(token_id, tokenizer) for token_id in takewhile(lambda chosen: chosen != end, token_ids))
    for text in whole_characters(chunks):
        print(text, end="", flush=True)
    print()
