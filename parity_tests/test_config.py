"""GPTConfig: what it accepts, what it refuses, and in which words."""

import inspect
import json
import re
from dataclasses import FrozenInstanceError
from fractions import Fraction

import numpy as np
import pytest

from numpygpt import GPT_CONFIG_124M, PRESETS, GPTConfig, InputError

BOOK_KEYS = ["vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate", "qkv_bias"]
SIZES = BOOK_KEYS[:5]
SMALL = GPTConfig(vocab_size=11, context_length=5, emb_dim=6, n_heads=2, n_layers=3, drop_rate=0.1, qkv_bias=True)


def made(**changes):
    """SMALL with changes, made without the suite's check of types, which would refuse some before GPTConfig does."""
    config = object.__new__(GPTConfig)
    inspect.unwrap(GPTConfig.__init__)(config, **{**SMALL.to_dict(), **changes})
    return config


def test_the_124m_configuration_is_the_books_dict():
    assert list(GPT_CONFIG_124M) == BOOK_KEYS
    assert list(GPT_CONFIG_124M.values()) == [50257, 1024, 768, 12, 12, 0.1, False]


@pytest.mark.parametrize(
    ("released", "book", "emb_dim", "n_layers", "n_heads"),
    [
        ("gpt2", "book-124M", 768, 12, 12),
        ("gpt2-medium", "book-355M", 1024, 24, 16),
        ("gpt2-large", "book-774M", 1280, 36, 20),
        ("gpt2-xl", "book-1558M", 1600, 48, 25),
    ],
)
def test_the_gpt2_family_as_released_and_as_the_book_trains_it(released, book, emb_dim, n_layers, n_heads):
    sizes = {**GPT_CONFIG_124M, "emb_dim": emb_dim, "n_layers": n_layers, "n_heads": n_heads}
    assert PRESETS[book] == GPTConfig.of(sizes)
    assert PRESETS[released] == GPTConfig.of({**sizes, "qkv_bias": True, "tie_weights": True})
    assert PRESETS[released].head_dim == 64


def test_no_other_model_has_a_name():
    assert len(PRESETS) == 8


def test_a_configuration_comes_from_a_dict_or_itself_and_goes_back():
    assert GPTConfig.of(SMALL) is SMALL
    assert GPTConfig.of(SMALL.to_dict()) == SMALL
    assert GPTConfig.of(json.loads(json.dumps(SMALL.to_dict()))) == SMALL
    assert not GPTConfig.of(GPT_CONFIG_124M).tie_weights
    assert GPTConfig.of({**GPT_CONFIG_124M, "tie_weights": True}).tie_weights


def test_it_cannot_be_changed_after_the_checks():
    with pytest.raises(FrozenInstanceError):
        SMALL.n_heads = 4


def test_numpys_numbers_become_pythons():
    sizes = {name: np.int64(getattr(SMALL, name)) for name in SIZES}
    config = made(**sizes, drop_rate=np.float64(0.1), norm_eps=np.float64(1e-5))
    assert config == SMALL
    assert json.dumps(config.to_dict()) == json.dumps(SMALL.to_dict())
    assert {type(getattr(config, name)) for name in SIZES} == {int}
    assert type(config.drop_rate) is type(config.norm_eps) is float


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [0, -1, 2.0, True, "6", None])
def test_sizes_are_positive_integers(name, size):
    with pytest.raises(InputError, match=f"^{name} is {size!r}; expected a positive integer$"):
        made(**{name: size})


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, float("nan"), float("inf"), "0.1", True, None])
def test_the_dropout_rate_is_a_number_from_0_up_to_1(rate):
    with pytest.raises(InputError, match=f"^drop_rate is {rate!r}; expected a number in "):
        made(drop_rate=rate)


@pytest.mark.parametrize("rate", [0, 0.0, Fraction(1, 2), np.nextafter(1, 0)])
def test_every_rate_below_1_will_do(rate):
    assert made(drop_rate=rate).drop_rate == rate


@pytest.mark.parametrize("name", ["qkv_bias", "tie_weights", "bias"])
@pytest.mark.parametrize("value", [0, 1, "True", None])
def test_switches_are_bools(name, value):
    with pytest.raises(InputError, match=f"^{name} is {value!r}; expected True or False$"):
        made(**{name: value})


@pytest.mark.parametrize("eps", [0, -1e-5, float("nan"), float("inf"), 10**400, "1e-5", True, None])
def test_the_norms_eps_is_a_positive_finite_number(eps):
    with pytest.raises(InputError, match=f"^norm_eps is {eps!r}; expected a positive finite number, such as 1e-5$"):
        made(norm_eps=eps)


@pytest.mark.parametrize(
    ("name", "words"), [("position", "learned, sinusoidal"), ("activation", "gelu_tanh, gelu_erf")]
)
@pytest.mark.parametrize("value", ["relu", "", None, 1, ["gelu_erf"]])
def test_words_are_those_that_are_known(name, words, value):
    with pytest.raises(InputError, match=f"^{name} is {re.escape(repr(value))}; expected one of: {words}$"):
        made(**{name: value})


def test_a_configuration_from_before_a_field_was_there_has_its_default():
    older = {name: value for name, value in SMALL.to_dict().items() if name not in ("activation", "bias", "norm_eps")}
    assert GPTConfig.of(older) == SMALL
    assert (SMALL.activation, SMALL.bias, SMALL.norm_eps) == ("gelu_tanh", True, 1e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(InputError, match=r"^emb_dim 6 is not divisible by n_heads 4: "):
        made(n_heads=4)


def test_missing_and_unexpected_keys_are_all_listed():
    cfg = {**GPT_CONFIG_124M, "n_embd": 768, "heads": 12}
    del cfg["emb_dim"], cfg["qkv_bias"]
    with pytest.raises(InputError, match=r"missing \['emb_dim', 'qkv_bias'\], unexpected \['n_embd', 'heads'\]"):
        GPTConfig.of(cfg)


def test_other_things_are_no_configuration():
    with pytest.raises(InputError, match="the configuration is a list; expected a GPTConfig or a dict"):
        inspect.unwrap(GPTConfig.of.__func__)(GPTConfig, list(SMALL.to_dict().values()))
