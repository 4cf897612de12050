"""Prompts of different lengths in one batch: every row is what its prompt gives alone.

The ids are the same in float64, greedily, with beams, and sampled if each row has a generator of its own. The logits in
float32 are within the budget of a run alone.
"""

from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numpygpt.checks.compare import difference
from numpygpt.decoding.beams import beam_search
from numpygpt.decoding.generation import decode_after, generate, generate_text_simple, stream
from numpygpt.decoding.prompts import Prompts, checked_prompts
from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.random.torch_generator import TorchGenerator
from parity_tests.small_models import FEWER, model_of
from parity_tests.strategies import seeds
from torchgpt.bridge import to_torch
from torchgpt.checks.parity import reference

CONTEXT, V = 4, 9
NEW = 4


def lively_model(seed, position="learned", n_layers=1, dtype=np.float64):
    """A random model whose likeliest token changes at each step: attention is sharp, and no shift favors a token."""
    config = GPTConfig(V, CONTEXT, 12, 3, n_layers, drop_rate=0.0, qkv_bias=True, position=position)
    model = model_of(config, seed, dtype)
    for name, array in model.named_parameters().items():
        if name.endswith("shift"):
            array[...] = 0
        elif ".att." in name and name.endswith("weight"):
            array *= 3
    return model


def prompts_of(seed, lengths):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, length) for length in lengths]


lengths = st.lists(st.integers(1, CONTEXT + 3), min_size=2, max_size=3).filter(lambda row: len(set(row)) > 1)
positions = st.sampled_from(["learned", "sinusoidal"])
attentions = st.sampled_from(["math", "flash"])


def alone(function, model, prompt, *arguments, **options):
    """The ids that the prompt gives in a batch of its own."""
    return function(model, prompt[np.newaxis], *arguments, **options)[0].tolist()


# The same ids


@settings(max_examples=max(1, settings().max_examples * 3 // 10))
@given(seeds, lengths, positions, attentions, st.integers(1, CONTEXT))
def test_every_row_has_the_greedy_ids_of_its_prompt_alone(seed, lengths, position, attention, context_size):
    """This goes past the point at which the window slides."""
    model, prompts = lively_model(seed, position), prompts_of(seed, lengths)
    model.attention = attention
    rows = generate(model, prompts, NEW, context_size)
    assert [row.tolist() for row in rows] == [alone(generate, model, prompt, NEW, context_size) for prompt in prompts]
    assert all(np.issubdtype(row.dtype, np.integer) for row in rows)


@pytest.mark.parametrize("decode", [generate, beam_search], ids=lambda decode: decode.__name__)
def test_every_row_stops_at_its_own_eos_whenever_the_others_do(decode):
    """Each token that any row would go on with is taken as eos once. There are three beams."""
    model, prompts = lively_model(0), prompts_of(0, [3, 1, CONTEXT + 2])
    beams = {"num_beams": 3} if decode is beam_search else {}
    unstopped = decode(model, prompts, 4, CONTEXT, **beams)
    new_tokens = {int(token) for row, prompt in zip(unstopped, prompts, strict=True) for token in row[len(prompt) :]}
    assert len(new_tokens) > 3
    lengths = set()
    for eos_id in new_tokens:
        rows = decode(model, prompts, 4, CONTEXT, eos_id=eos_id, **beams)
        for row, prompt in zip(rows, prompts, strict=True):
            assert row.tolist() == alone(decode, model, prompt, 4, CONTEXT, eos_id=eos_id, **beams)
        lengths.add(tuple(len(row) - len(prompt) for row, prompt in zip(rows, prompts, strict=True)))
    assert len(lengths) > 2


@FEWER
@given(seeds, lengths, positions, attentions, st.integers(2, 4))
def test_every_row_has_the_best_beam_of_its_prompt_alone(seed, lengths, position, attention, num_beams):
    model, prompts = lively_model(seed, position), prompts_of(seed, lengths)
    model.attention = attention
    rows = beam_search(model, prompts, 4, CONTEXT, num_beams)
    for row, prompt in zip(rows, prompts, strict=True):
        assert row.tolist() == alone(beam_search, model, prompt, 4, CONTEXT, num_beams)


@pytest.mark.parametrize("position", ["learned", "sinusoidal"])
def test_a_stream_chooses_for_every_row_what_its_prompt_alone_chooses(position):
    model, prompts = lively_model(0, position), prompts_of(0, [1, CONTEXT + 1, 3])
    chosen = np.transpose(list(islice(stream(model, prompts, CONTEXT), NEW)))
    for row, prompt in zip(chosen, prompts, strict=True):
        assert row.tolist() == alone(generate, model, prompt, NEW, CONTEXT)[len(prompt) :]


class OneForEachRow(TorchGenerator):
    """A generator that draws for each row from a generator of the row."""

    def __init__(self, seeds):
        super().__init__(0)
        self.of_rows = [TorchGenerator(seed) for seed in seeds]

    def multinomial(self, probabilities, num_samples=1, replacement=False):
        rows = zip(self.of_rows, probabilities, strict=True)
        return np.stack([rng.multinomial(row, num_samples, replacement) for rng, row in rows])


@FEWER
@given(seeds, lengths, positions, st.integers(0, V - 1))
def test_every_row_is_sampled_as_its_prompt_alone_is(seed, lengths, position, eos_id):
    """Each row has its generator. One generator would draw for all rows together, so a row alone gets other draws."""
    model, prompts = lively_model(seed, position), prompts_of(seed, lengths)
    options = {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "eos_id": eos_id}
    row_seeds = range(len(prompts))
    rows = generate(model, prompts, NEW, CONTEXT, **options, rng=OneForEachRow(row_seeds))
    for row, prompt, row_seed in zip(rows, prompts, row_seeds, strict=True):
        assert row.tolist() == alone(generate, model, prompt, NEW, CONTEXT, **options, rng=TorchGenerator(row_seed))


def test_one_generator_draws_for_the_rows_of_a_step_in_their_order():
    model, prompts = lively_model(0), prompts_of(0, [2, 4, 1])
    rows = generate(model, prompts, 1, CONTEXT, temperature=1.0, rng=TorchGenerator(5))
    logits, _ = decode_after(model, checked_prompts(prompts, CONTEXT), None, CONTEXT)
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    assert [row[-1] for row in rows] == TorchGenerator(5).multinomial(probabilities)[:, 0].tolist()


# The same logits


def logits_of_each_step(model, prompts, new_tokens):
    """The logits (B, V) of a batch at each step, and the B texts, as rows of ids, that they follow."""
    text, past = prompts, None
    for _ in range(new_tokens):
        logits, past = decode_after(model, text, past, CONTEXT)
        yield logits, [row[start:] for row, start in zip(text.ids, text.starts, strict=True)]
        text = text.followed_by(logits.argmax(axis=-1))


@pytest.mark.parametrize(("position", "attention"), [("learned", "math"), ("sinusoidal", "flash")])
def test_logits_in_float32_are_within_the_budget_of_each_row_alone(position, attention):
    """The budget is the PyTorch twin's on the last CONTEXT tokens of the row, for the logits of the last token."""
    model = lively_model(1, position, n_layers=2, dtype=np.float32)
    model.attention = attention
    prompts = checked_prompts(prompts_of(1, [1, CONTEXT - 1]), CONTEXT)
    for logits, texts in logits_of_each_step(model, prompts, 3):
        assert logits.dtype == np.float32
        for row, text in zip(logits, texts, strict=True):
            judged_by = reference(partial(logits_alone, model, text[-CONTEXT:]), np.float32)
            error = difference(row, judged_by.truth["logits"])
            assert error.tensor <= judged_by.allowed["logits"].tensor


def logits_alone(model, window, dtype):
    """A function that lets PyTorch compute the last logits of one text, in as many copies as it is asked for."""
    twin = to_torch(GPTModel.from_state_dict(model.config, model.named_parameters(), dtype))
    return lambda copies: {"logits": twin(torch.from_numpy(window).expand(copies, -1))[:, -1].detach().numpy()}


# What prompts may be


def test_lists_tuples_and_arrays_are_prompts():
    model = lively_model(0)
    expected = [row.tolist() for row in generate(model, [np.array([3, 1, 4]), np.array([1])], 3, CONTEXT)]
    for prompts in ([[3, 1, 4], [1]], ([3, 1, 4], (1,)), [np.array([3, 1, 4], np.uint8), [1]]):
        assert [row.tolist() for row in generate(model, prompts, 3, CONTEXT)] == expected
        assert [row[: len(prompt)] for row, prompt in zip(expected, prompts, strict=True)] == [[3, 1, 4], [1]]
    ids = generate_text_simple(model, [[3, 1], [4, 1]], 3, CONTEXT)
    assert ids.shape == (2, 5), "prompts of one length give one array"


def test_no_new_tokens_leave_the_prompts_as_they_are():
    model = lively_model(0)
    for rows in (generate(model, [[3, 1, 4], [1]], 0, CONTEXT), beam_search(model, [[3, 1, 4], [1]], 0, CONTEXT, 2)):
        assert [row.tolist() for row in rows] == [[3, 1, 4], [1]]


def test_the_padding_is_invisible_whatever_it_is():
    model = lively_model(0)
    logits = []
    for padding in range(V):
        text = Prompts(np.array([[padding, padding, 4], [5, 6, 7]]), np.array([2, 0]))
        logits.append(decode_after(model, text, None, CONTEXT)[0])
    assert all(np.array_equal(other, logits[0]) for other in logits)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[3, 1], []], r"prompt 1 is float64 \(0,\); expected integers of shape \(tokens,\), at least one"),
        ([[3, 1], [0.5]], r"prompt 1 is float64 \(1,\); expected integers"),
        ([[[3, 1]], [[1], [2]]], r"prompt 0 is int64 \(1, 2\); expected integers of shape \(tokens,\)"),
        ([[3, 1], 4], r"prompt 1 is int64 \(\); expected integers"),
        ([[3, V], [1]], f"id {V} is outside the table's {V} rows"),
        ([[3, 1], [-1]], f"id -1 is outside the table's {V} rows"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(prompts, message):
    model = lively_model(0)
    for decode in (lambda: generate(model, prompts, 2, CONTEXT), lambda: beam_search(model, prompts, 2, CONTEXT, 2)):
        with pytest.raises(InputError, match=message):
            decode()
