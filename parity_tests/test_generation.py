"""Decoding: greedy, temperature, top-k, top-p, each row's own eos, the sliding window, and what is refused."""

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numpygpt import (
    GPTConfig,
    GPTModel,
    InputError,
    TorchGenerator,
    beam_search,
    generate,
    generate_text_simple,
    print_sampled_tokens,
    softmax_with_temperature,
)
from numpygpt.decoding.generation import stream
from numpygpt.decoding.sampling import choose, keep_top_k, keep_top_p

CONFIG = GPTConfig(vocab_size=11, context_length=6, emb_dim=6, n_heads=2, n_layers=1, drop_rate=0.5, qkv_bias=False)
MODEL = GPTModel(CONFIG, seed=3, dtype=np.float64)
PROMPTS = np.array([[3, 1], [7, 7], [0, 9], [5, 2]])

#: The book's nine-word vocabulary and the logits after "every effort moves you".
WORDS = ["closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you"]
LOGITS = np.array([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79], np.float32)

rows_of_logits = st.integers(0, 2**32 - 1).map(
    lambda seed: np.round(np.random.default_rng(seed).standard_normal((3, 8)) * 2) / 2  # with many ties
)


def without_cache(idx, new_tokens, context_size, model=MODEL):
    """The book's loop, which computes the whole window again for each token."""
    for _ in range(new_tokens):
        logits = model(idx[:, -context_size:])[:, -1]
        idx = np.concatenate([idx, logits.argmax(axis=-1, keepdims=True)], axis=1)
    return idx


# Greedy


@pytest.mark.parametrize("context_size", [6, 4, 1])
@pytest.mark.parametrize("prompt_length", [1, 4, 6, 9])
def test_greedy_decoding_takes_the_likeliest_token_and_slides_past_the_context(context_size, prompt_length):
    """This is a batch with the cache, past the point at which the window begins to slide; prompts may be longer too."""
    prompts = np.random.default_rng(0).integers(0, 11, (3, prompt_length))
    before = prompts.copy()
    ids = generate_text_simple(MODEL, prompts, 7, context_size)
    assert np.array_equal(ids, without_cache(prompts, 7, context_size))
    assert np.array_equal(prompts, before)
    assert np.issubdtype(ids.dtype, np.integer)


def test_the_cache_spares_what_was_read_until_the_window_slides(monkeypatch):
    """The model reads the prompt, then each new token alone, and past the context whole windows."""
    read, decode = [], GPTModel.decode

    def noted(model, in_idx, *past, **options):
        read.append(in_idx.shape)
        return decode(model, in_idx, *past, **options)

    monkeypatch.setattr(GPTModel, "decode", noted)
    generate(MODEL, PROMPTS, 7, CONFIG.context_length)
    assert read == [(4, 2), *[(4, 1)] * 4, *[(4, 6)] * 2]


def test_temperature_0_is_greedy_and_draws_nothing():
    greedy = generate_text_simple(MODEL, PROMPTS, 8, 6)
    rng = TorchGenerator(1)
    state = rng.to_torch_state()
    for options in ({}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.4}, {"temperature": 0.0, "top_k": 1}):
        assert np.array_equal(generate(MODEL, PROMPTS, 8, 6, **options, rng=rng), greedy)
    assert np.array_equal(rng.to_torch_state(), state)


def test_of_equal_logits_the_lowest_id_is_the_likeliest():
    logits = np.array([[1.0, 3.0, 2.0, 3.0]])
    assert choose(logits, 0.0, None, None, TorchGenerator(1)) == [1]
    assert choose(logits, 0.0, 1, None, TorchGenerator(1)) == [1]


def test_a_batch_gives_each_prompt_what_it_gets_alone():
    together = generate_text_simple(MODEL, PROMPTS, 8, 6)
    alone = [generate_text_simple(MODEL, PROMPTS[row : row + 1], 8, 6) for row in range(4)]
    assert np.array_equal(together, np.concatenate(alone))


def test_prompts_may_be_lists_and_no_new_tokens_leave_them_as_they_are():
    assert np.array_equal(generate(MODEL, PROMPTS.tolist(), 3, 6), generate(MODEL, PROMPTS, 3, 6))
    assert np.array_equal(generate(MODEL, PROMPTS, 0, 6), PROMPTS)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64])
def test_prompts_may_be_integers_of_any_dtype(dtype):
    """This holds even if the vocabulary is larger than the dtype can hold: chosen ids need not fit in it."""
    model = GPTModel(GPTConfig(300, 6, 6, 2, n_layers=1, drop_rate=0.0, qkv_bias=False), seed=3, dtype=np.float64)
    prompts = np.array([[3, 127], [7, 0], [5, 1]])
    expected = generate(model, prompts, 5, 6)
    assert expected.max() > 255
    for decode in (generate, lambda *arguments: beam_search(*arguments, 2)):
        ids = decode(model, prompts.astype(dtype), 5, 6)
        assert ids.dtype == np.int64
        assert np.array_equal(ids, decode(model, prompts, 5, 6))
        rows = decode(model, [prompts[0].astype(dtype), prompts[1, :1].astype(dtype)], 5, 6)
        assert rows[0].tolist() == ids[0].tolist()


def test_one_call_leaves_nothing_behind_for_the_next():
    first = generate(MODEL, PROMPTS, 5, 6)
    generate(MODEL, PROMPTS[::-1, :1], 3, 4, temperature=1.0)
    assert np.array_equal(generate(MODEL, PROMPTS, 5, 6), first)
    streams = [stream(MODEL, PROMPTS, 6), stream(MODEL, PROMPTS[:2], 6)]
    interleaved = [[next(choices) for choices in streams] for _ in range(5)]
    assert np.array_equal(np.transpose([ids for ids, _ in interleaved]), first[:, 2:])
    assert np.array_equal(np.transpose([ids for _, ids in interleaved]), first[:2, 2:])


# Sampling


def test_samples_are_drawn_from_the_softmax_as_torch_draws_them():
    rng, expected = TorchGenerator(5), TorchGenerator(5)
    logits = np.random.default_rng(0).standard_normal((4, 11)).astype(np.float32)
    for temperature in (0.5, 1.0, 3.0):
        probabilities = softmax_with_temperature(logits, temperature)
        chosen = choose(logits, temperature, None, None, rng)
        assert np.array_equal(chosen, expected.multinomial(probabilities)[:, 0])


def test_the_seed_decides():
    def sampled(seed):
        return generate(MODEL, PROMPTS, 8, 6, temperature=2.0, rng=TorchGenerator(seed)).tolist()

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    unseeded = [generate(MODEL, PROMPTS, 8, 6, temperature=2.0).tolist() for _ in range(2)]
    assert unseeded[0] != unseeded[1]


def test_softmax_with_temperature():
    expected = np.exp(LOGITS.astype(np.float64) / 5) / np.exp(LOGITS.astype(np.float64) / 5).sum()
    ours = softmax_with_temperature(LOGITS.astype(np.float64), 5.0)
    assert np.abs(ours - expected).max() <= 10 * np.finfo(np.float64).eps
    assert softmax_with_temperature(LOGITS, 1.0).dtype == np.float32
    assert round(float(ours[WORDS.index("pizza")]), 2) == 0.04, "the book: about 4 % pizza at temperature 5"
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match=f"temperature is {temperature}; expected a number above 0"):
            softmax_with_temperature(LOGITS, temperature)


def test_the_books_thousand_draws(capsys):
    print_sampled_tokens(softmax_with_temperature(LOGITS, 1.0), WORDS)
    printed = capsys.readouterr().out.splitlines()
    counts = [73, 0, 0, 582, 2, 0, 0, 343, 0]
    assert printed == [f"{count} x {word}" for count, word in zip(counts, WORDS, strict=True)]
    print_sampled_tokens(softmax_with_temperature(LOGITS, 1.0), dict(enumerate(WORDS)), rng=TorchGenerator(123))
    assert capsys.readouterr().out.splitlines() == printed


# top_k


@given(rows_of_logits, st.integers(1, 10))
def test_top_k_keeps_exactly_k_also_at_ties_and_of_equal_ones_the_lowest_ids(logits, k):
    kept = keep_top_k(logits, k)
    for row, kept_row in zip(logits.tolist(), kept, strict=True):
        largest = sorted(range(8), key=lambda token: (-row[token], token))[:k]
        assert np.flatnonzero(np.isfinite(kept_row)).tolist() == sorted(largest)
        assert kept_row[largest].tolist() == [row[token] for token in largest]
        assert (np.delete(kept_row, largest) == -np.inf).all()


def test_the_books_top_three():
    probabilities = softmax_with_temperature(keep_top_k(LOGITS[np.newaxis], 3), 1.0)[0]
    assert np.flatnonzero(probabilities).tolist() == [0, 3, 7]
    assert probabilities[[0, 3, 7]].round(4).tolist() == np.float32([0.0615, 0.5775, 0.3610]).tolist()


def test_sampling_with_top_k_stays_within_the_k_and_reaches_each():
    logits = np.zeros((200, 6))
    assert set(choose(logits, 1.0, 2, None, TorchGenerator(1)).tolist()) == {0, 1}
    assert set(choose(logits, 1.0, None, None, TorchGenerator(1)).tolist()) == set(range(6))
    greedy = generate_text_simple(MODEL, PROMPTS, 8, 6)
    assert np.array_equal(generate(MODEL, PROMPTS, 8, 6, temperature=3.0, top_k=1), greedy)


# top_p


@given(rows_of_logits, st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    probabilities = softmax_with_temperature(logits, 1.0)
    kept = keep_top_p(probabilities, p)
    for row, kept_row in zip(probabilities, kept, strict=True):
        nucleus = np.flatnonzero(kept_row)
        assert np.array_equal(kept_row[nucleus], row[nucleus]), "not rescaled"
        outside = np.delete(row, nucleus)
        assert row[nucleus].min() >= outside.max(initial=0), "the most probable ones"
        rounding = len(row) * np.finfo(row.dtype).eps
        assert row[nucleus].sum() >= p - rounding, "enough of them"
        assert row[nucleus].sum() - row[nucleus].min() < p + rounding, "and not one more"


def test_a_nucleus_is_never_empty_and_ties_are_cut_too():
    probabilities = np.array([[0.25, 0.25, 0.25, 0.25], [0.0, 0.125, 0.875, 0.0]])
    tiny = np.finfo(np.float64).tiny
    assert np.flatnonzero(keep_top_p(probabilities, tiny)[0]).tolist() == [0]
    assert np.flatnonzero(keep_top_p(probabilities, tiny)[1]).tolist() == [2]
    assert np.flatnonzero(keep_top_p(probabilities, 0.5)[0]).tolist() == [0, 1]
    assert np.array_equal(keep_top_p(probabilities, 1.0), probabilities)


def test_sampling_with_top_p_stays_within_the_nucleus_and_reaches_each():
    logits = np.log(np.tile([0.125, 0.5, 0.125, 0.25], (200, 1)))
    assert set(choose(logits, 1.0, None, 0.7, TorchGenerator(1)).tolist()) == {1, 3}
    assert set(choose(logits, 1.0, None, 0.8, TorchGenerator(1)).tolist()) == {0, 1, 3}
    assert set(choose(logits, 1.0, 3, 1.0, TorchGenerator(1)).tolist()) == {0, 1, 3}, "after top_k"
    assert set(choose(logits, 0.01, None, 0.8, TorchGenerator(1)).tolist()) == {1}, "after the temperature"


# eos


def until_eos(ids, prompt_length, eos_id):
    """What generate returns if nothing stops, with each row cut at its first new eos and filled with eos."""
    texts = []
    for row in ids.tolist():
        new = row[prompt_length:]
        texts.append(row[:prompt_length] + (new[: new.index(eos_id)] if eos_id in new else new))
    longest = max(map(len, texts))
    return [text + [eos_id] * (longest - len(text)) for text in texts]


@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1), st.integers(0, 10), st.sampled_from([0.0, 3.0]))
def test_each_row_stops_at_its_own_eos(seed, eos_id, temperature):
    prompts = np.random.default_rng(seed).integers(0, 11, (3, 2))
    options = {"temperature": temperature}
    unstopped = generate(MODEL, prompts, 9, 6, **options, rng=TorchGenerator(seed))
    stopped = generate(MODEL, prompts, 9, 6, **options, eos_id=eos_id, rng=TorchGenerator(seed))
    assert stopped.tolist() == until_eos(unstopped, 2, eos_id)


def test_an_eos_in_the_prompt_stops_nothing_and_a_single_row_ends_before_its_eos():
    greedy = generate_text_simple(MODEL, PROMPTS[:1], 6, 6)[0].tolist()
    eos_id = next(token for token in greedy[3:] if token not in greedy[2:3])
    end = greedy.index(eos_id, 2)
    stopped = generate(MODEL, PROMPTS[:1], 6, 6, eos_id=eos_id)[0].tolist()
    assert stopped == greedy[:end]
    prompt = np.array([[eos_id, *PROMPTS[0]]])
    assert generate(MODEL, prompt, 1, 6, eos_id=eos_id).shape[1] >= prompt.shape[1]
    assert generate(MODEL, prompt, 0, 6, eos_id=eos_id).tolist() == prompt.tolist()


# Streaming


def test_a_stream_has_no_end():
    choices = list(islice(stream(MODEL, PROMPTS, 6), 20))
    assert np.array_equal(np.transpose(choices), generate(MODEL, PROMPTS, 20, 6)[:, 2:])


# What is refused


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 2.0}], ids=str)
def test_bad_options_are_named_at_once_and_not_with_the_first_token(options):
    (name,) = options
    for call in (lambda: generate(MODEL, PROMPTS, 0, 6, **options), lambda: stream(MODEL, PROMPTS, 6, **options)):
        with pytest.raises(InputError, match=f"{name} is "):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1; expected 0 or more"),
        ({"context_size": 0}, "context_size is 0; expected at least 1"),
        ({"temperature": -0.5}, "temperature is -0.5; expected 0 .* or above"),
        ({"temperature": math.nan}, "temperature is nan; expected 0 .* or above"),
        ({"temperature": math.inf}, "temperature is inf; expected 0 .* or above"),
        ({"top_k": 0}, "top_k is 0; expected at least 1"),
        ({"top_k": -3}, "top_k is -3; expected at least 1"),
        ({"top_p": 0.0}, r"top_p is 0.0; expected a number in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p is 1.5; expected a number in \(0, 1\]"),
        ({"top_p": math.nan}, r"top_p is nan; expected a number in \(0, 1\]"),
        ({"idx": np.array([[3, 11]])}, "id 11 is outside .* 11 .*0 to 10"),
        ({"idx": np.array([[-1, 3]])}, "id -1 is outside .* 11 .*0 to 10"),
        ({"idx": np.array([[0.5, 3]])}, r"token ids are float64 \(1, 2\); expected integers"),
        ({"idx": 3}, r"the prompt has shape \(\); expected \(batch, tokens\)"),
        ({"idx": np.array([3, 4])}, r"the prompt has shape \(2,\); expected \(batch, tokens\)"),
        ({"idx": np.zeros((1, 0), int)}, r"the prompt has shape \(1, 0\); expected \(batch, tokens\)"),
        ({"idx": np.zeros((0, 3), int)}, r"the prompt has shape \(0, 3\); expected \(batch, tokens\)"),
        ({"idx": np.zeros((1, 7), int), "context_size": 7}, "a sequence of 7 tokens is longer than context_length 6"),
    ],
)
def test_what_cannot_be_used_is_named(options, message):
    arguments = {"idx": PROMPTS, "max_new_tokens": 2, "context_size": 6, **options}
    with pytest.raises(InputError, match=message):
        generate(MODEL, **arguments)
