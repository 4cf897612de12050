"""Beam search, against its definition in plain lists and against the best of all continuations."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from numpygpt.decoding.beams import beam_search
from numpygpt.decoding.generation import generate
from numpygpt.errors import InputError
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from torchgpt.bridge import to_torch

V, CONTEXT, NEW = 4, 5, 3
CONFIG = GPTConfig(vocab_size=V, context_length=CONTEXT, emb_dim=6, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=True)
PROMPTS = np.array([[1, 3], [2, 0], [0, 0]])


def model_of(seed):
    return GPTModel(CONFIG, seed, dtype=np.float64)


class Erratic(GPTModel):
    """A model whose logits are random and differ from text to text. Its cache is the text."""

    def __init__(self, seed):
        super().__init__(CONFIG, dtype=np.float64)
        self.seed = seed

    def logits_after(self, text):
        return np.random.default_rng([self.seed, *text]).standard_normal(V)

    def decode(self, in_idx, past=None):
        text = in_idx if past is None else np.append(past[0].keys[:, 0, :, 0].astype(int), in_idx, axis=1)
        cached = text[:, np.newaxis, :, np.newaxis].astype(float)
        cache = KeyValueCache.empty(len(text), 1, 1, 1, np.dtype(float)).extended(cached, cached)
        return np.array([self.logits_after(row) for row in text]), (cache,)


class LogProbs:
    """The log-probability of each next token after the last tokens of a text, by PyTorch. Each is computed once."""

    def __init__(self, logits_after, context_size):
        self.logits_after, self.context_size, self.seen = logits_after, context_size, {}

    @classmethod
    def of_twin(cls, model):
        """The log-probabilities from the logits of the model's PyTorch twin."""
        twin = to_torch(model)
        return cls(lambda text: twin(torch.tensor([text]))[0, -1].detach(), CONTEXT)

    def __call__(self, tokens):
        window = tuple(tokens[-self.context_size :])
        if window not in self.seen:
            self.seen[window] = torch.log_softmax(torch.as_tensor(self.logits_after(window)), dim=-1).tolist()
        return self.seen[window]


def score(log_probs, prompt, continuation, length_penalty):
    total = sum(log_probs([*prompt, *continuation[:n]])[token] for n, token in enumerate(continuation))
    return total / len(continuation) ** length_penalty


def continuations(eos_id, longest):
    """Every continuation that ends with its first eos, or has no eos and is as long as allowed."""
    for length in range(1, longest + 1):
        for tokens in product(range(V), repeat=length):
            if eos_id not in tokens[:-1] and (length == longest or tokens[-1] == eos_id):
                yield list(tokens)


def best_of_all(log_probs, prompt, eos_id, length_penalty, longest=NEW):
    return max(continuations(eos_id, longest), key=lambda tokens: score(log_probs, prompt, tokens, length_penalty))


def beam_of_lists(log_probs, prompt, eos_id, length_penalty, num_beams, longest=NEW):
    """The definition of beam search, with lists, and without cache and batch."""
    beam, complete = [[]], []
    for _ in range(longest):
        extensions = [[*tokens, token] for tokens in beam for token in range(V)]
        extensions.sort(key=lambda tokens: score(log_probs, prompt, tokens, 0), reverse=True)
        complete += [tokens for tokens in extensions[:num_beams] if tokens[-1] == eos_id]
        beam = [tokens for tokens in extensions[:num_beams] if tokens[-1] != eos_id]
        num_beams -= len(extensions[:num_beams]) - len(beam)
    return max([*complete, *beam], key=lambda tokens: score(log_probs, prompt, tokens, length_penalty))


def filled(prompts, continuations, eos_id):
    """The continuations as `generate` returns them: without their own eos, and filled with eos to equal lengths."""
    texts = [
        [*prompt, *(tokens[:-1] if tokens[-1] == eos_id else tokens)]
        for prompt, tokens in zip(prompts.tolist(), continuations, strict=True)
    ]
    longest = max(map(len, texts))
    return [text + [eos_id] * (longest - len(text)) for text in texts]


@given(
    seed=st.integers(0, 2**32 - 1),
    num_beams=st.integers(1, 6),
    eos_id=st.sampled_from([None, 0, 2]),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.7, 1.0, 2.0]),
    context_size=st.integers(2, CONTEXT),
)
@example(seed=0, num_beams=2, eos_id=0, length_penalty=0.7, context_size=3)  # a beam that is narrower for two steps
def test_a_beam_is_the_best_extensions_of_the_beam_before(seed, num_beams, eos_id, length_penalty, context_size):
    """With batches, the cache and windows that slide, against the definition, which has none of them."""
    model = Erratic(seed)
    log_probs = LogProbs(model.logits_after, context_size)
    ids = beam_search(model, PROMPTS, NEW, context_size, num_beams, eos_id, length_penalty)
    expected = [beam_of_lists(log_probs, prompt, eos_id, length_penalty, num_beams) for prompt in PROMPTS.tolist()]
    assert ids.tolist() == filled(PROMPTS, expected, eos_id)


@settings(max_examples=4)
@given(
    seed=st.integers(0, 2**32 - 1),
    eos_id=st.sampled_from([None, 0, 2]),
    length_penalty=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_a_beam_of_every_continuation_finds_the_best_of_all(seed, eos_id, length_penalty):
    model = model_of(seed)
    log_probs = LogProbs.of_twin(model)
    ids = beam_search(model, PROMPTS, NEW, CONTEXT, V**NEW, eos_id, length_penalty)
    expected = [best_of_all(log_probs, prompt, eos_id, length_penalty) for prompt in PROMPTS.tolist()]
    assert ids.tolist() == filled(PROMPTS, expected, eos_id)


@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**32 - 1),
    eos_id=st.sampled_from([None, 0, 2]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_one_beam_decodes_greedily(seed, eos_id, dtype):
    model = GPTModel(CONFIG, seed, dtype=dtype)
    ids = beam_search(model, PROMPTS, 5, context_size=4, num_beams=1, eos_id=eos_id)
    assert ids.tolist() == generate(model, PROMPTS, 5, context_size=4, eos_id=eos_id).tolist()


def test_a_wider_beam_finds_what_greedy_decoding_misses():
    model = model_of(21)
    log_probs = LogProbs.of_twin(model)
    greedy, wide = (
        score(log_probs, [1, 3], beam_search(model, [[1, 3]], NEW, CONTEXT, num_beams)[0, 2:].tolist(), 0)
        for num_beams in (1, 4)
    )
    assert wide > greedy


def test_the_length_penalty_moves_between_short_and_long():
    model = model_of(1)
    lengths = [beam_search(model, PROMPTS, NEW, CONTEXT, 64, 2, penalty).shape[1] for penalty in (-9.0, 9.0)]
    assert lengths[0] < lengths[1] == PROMPTS.shape[1] + NEW


def test_no_new_tokens_is_the_prompt():
    assert beam_search(model_of(1), PROMPTS, 0, CONTEXT, 2).tolist() == PROMPTS.tolist()


def test_a_search_leaves_nothing_behind():
    model = model_of(1)
    first = beam_search(model, PROMPTS, NEW, CONTEXT, 3)
    beam_search(model, PROMPTS[::-1], NEW, CONTEXT, 2)
    assert beam_search(model, PROMPTS, NEW, CONTEXT, 3).tolist() == first.tolist()
    assert PROMPTS.tolist() == [[1, 3], [2, 0], [0, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0; expected at least 1"),
        ({"length_penalty": float("nan")}, "length_penalty is nan; expected a number from -50 to 50"),
        ({"length_penalty": 51.0}, "length_penalty is 51.0; expected"),
        ({"length_penalty": -1000.0}, "length_penalty is -1000.0; expected"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; expected 0 or more"),
        ({"context_size": 0}, "context_size is 0; expected at least 1"),
        ({"idx": [1, 3]}, "the prompt has shape"),
        ({"idx": [[1, V]]}, f"id {V} is outside the table's {V} rows"),
    ],
)
def test_unusable_arguments_are_named(changes, message):
    arguments = {"idx": PROMPTS, "max_new_tokens": NEW, "context_size": CONTEXT, "num_beams": 2, **changes}
    with pytest.raises(InputError, match=message):
        beam_search(model_of(1), **arguments)


def test_logits_past_what_an_exponential_takes_are_compared():
    """exp(1000) is infinite in float64. The search takes no probability of it, only differences of logits."""
    model = model_of(1)
    model.parameters.out_head.weight[...] *= 1e4
    expected = beam_of_lists(LogProbs.of_twin(model), PROMPTS[0].tolist(), None, 1.0, num_beams=3)
    assert model(PROMPTS).max() > 1000
    assert beam_search(model, PROMPTS[:1], NEW, CONTEXT, 3).tolist() == filled(PROMPTS[:1], [expected], None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_told(value):
    model = model_of(1)
    model.parameters.out_head.weight[:, 0] = value
    with pytest.raises(InputError, match="the model's logits are not finite: its weights are damaged or too large"):
        beam_search(model, PROMPTS, NEW, CONTEXT, 2)


@pytest.mark.parametrize("length_penalty", [-50.0, 50.0])
def test_the_largest_length_penalties_leave_scores_that_differ(length_penalty):
    """A short continuation of a likely text has the largest score at -50, and a long one at 50."""
    continuations = {
        eos_id: beam_search(model_of(1), PROMPTS[:1], NEW, CONTEXT, V**NEW, eos_id, length_penalty)[0]
        for eos_id in range(V)
    }
    lengths = {len(tokens) - PROMPTS.shape[1] for tokens in continuations.values()}
    assert lengths == ({0} if length_penalty < 0 else {NEW})
