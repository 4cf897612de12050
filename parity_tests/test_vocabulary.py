"""A larger vocabulary: resized models, tokenizers with more special tokens, and both read again from a checkpoint."""

import math

import numpy as np
import pytest
from transformers import AutoTokenizer

from numpygpt.adapt import add_lora, freeze, quantize, resize_embeddings
from numpygpt.data.tokenizer import TOKENIZERS, get_tokenizer, text_to_token_ids, token_ids_to_text, with_special_tokens
from numpygpt.decoding.generation import generate
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint, write_checkpoint
from numpygpt.formats.tokenizer_files import named, read_tokenizer, write_tokenizer
from numpygpt.layers import parameters as p
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of as saved_model
from numpygpt.model.saving import model_section, saved_tokenizer
from parity_tests.command import run
from parity_tests.small_models import assert_agrees, model_of

CONFIG = GPTConfig(vocab_size=11, context_length=6, emb_dim=12, n_heads=3, n_layers=1, drop_rate=0.0, qkv_bias=True)
TIED = GPTConfig(**{**CONFIG.to_dict(), "tie_weights": True})
IDS = np.array([[3, 1, 10, 0, 3]])


# The model


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("new_rows", ["mean", "drawn"])
def test_old_tokens_keep_their_logits(config, new_rows):
    model = model_of(config, 1)
    resized = resize_embeddings(model, 14, new_rows=new_rows)
    assert resized.config == GPTConfig(**{**config.to_dict(), "vocab_size": 14})
    assert_agrees(resized(IDS)[..., :11], model(IDS))
    assert (resized.parameters.out_head.weight is resized.parameters.tok_emb.weight) == config.tie_weights
    assert model.config.vocab_size == 11
    assert model.parameters.tok_emb.weight.shape == (11, 12)
    GPTModel.from_state_dict(resized.config, resized.state_dict())


def test_new_logits_are_the_mean_and_take_little_probability():
    model = model_of(CONFIG, 2)
    resized = resize_embeddings(model, 14)
    logits, old = resized(IDS), model(IDS)
    assert_agrees(logits[..., 11:], np.repeat(old.mean(axis=-1, keepdims=True), 3, axis=-1))
    lost = np.log(np.exp(logits).sum(axis=-1)) - np.log(np.exp(old).sum(axis=-1))
    assert (lost > 0).all()
    assert (lost <= math.log(1 + 3 / 11)).all()


def test_rows_are_drawn_as_in_a_new_model():
    model = model_of(CONFIG, 3, np.float32)
    resized = resize_embeddings(model, 14, new_rows="drawn", seed=5)
    fresh = GPTModel(GPTConfig(**{**CONFIG.to_dict(), "vocab_size": 3}), seed=5)
    assert np.array_equal(resized.parameters.tok_emb.weight[11:], fresh.parameters.tok_emb.weight)
    drawn = resized.parameters.out_head.weight[11:]
    assert drawn.shape == (3, 12)
    assert len(np.unique(drawn)) == drawn.size
    assert (np.absolute(drawn) <= 1 / math.sqrt(12)).all()


def test_what_is_frozen_stays_frozen_and_sizes_are_rounded_up():
    model = freeze(model_of(CONFIG, 4), "trf_blocks.*")
    resized = resize_embeddings(model, 12, multiple_of=8)
    assert resized.frozen == model.frozen
    assert resized.config.vocab_size == 16
    assert resize_embeddings(resized, 16, multiple_of=8).config == resized.config
    _, grads = resized.loss_and_grads(np.array([[15, 1]]), np.array([[1, 15]]))
    assert grads["tok_emb.weight"][15].any()


def with_head(rows, *, bias):
    head = p.Linear(np.zeros((rows, 12)), np.zeros(rows) if bias else None)
    return lambda model: model.with_parameters(model.parameters._replace(out_head=head))


def test_a_large_vocabulary_becomes_larger():
    model = GPTModel(GPTConfig(**{**CONFIG.to_dict(), "vocab_size": 300}))
    assert resize_embeddings(model, 301).config.vocab_size == 301


@pytest.mark.parametrize(
    ("changed", "size", "options", "said"),
    [
        (lambda model: model, 10, {}, "the vocabulary has 11 tokens, and cannot shrink to 10; expected at least 11"),
        (lambda model: model, 12, {"new_rows": "zero"}, "new_rows is 'zero'; expected one of: mean, drawn"),
        (lambda model: model, 12, {"multiple_of": 0}, "multiple_of is 0; expected a positive integer"),
        (lambda model: add_lora(model, 2, targets="out_head"), 12, {}, "head of the model has an adapter; resize"),
        (lambda model: quantize(model, "int8", targets="out_head"), 12, {}, "head of the model is quantized; resize"),
        (with_head(2, bias=True), 12, {}, "head of the model scores 2 classes, and not tokens"),
        (with_head(2, bias=False), 12, {}, "head of the model scores 2 classes, and not tokens"),
        (with_head(20, bias=False), 12, {}, "head of the model scores 20 classes, and not tokens"),
        (with_head(11, bias=True), 12, {}, "head of the model scores 11 classes, and not tokens"),
    ],
)
def test_what_cannot_be_resized_is_refused_in_one_line(changed, size, options, said):
    model = changed(model_of(CONFIG, 5))
    with pytest.raises(InputError, match=said):
        resize_embeddings(model, size, **options)


# The tokenizer


@pytest.mark.parametrize("base", ["bytes", "gpt2"])
def test_special_tokens_get_the_next_ids(base):
    plain = get_tokenizer(base)
    tokenizer = with_special_tokens(plain, ["<|im_start|>", "<|im_end|>"])
    assert tokenizer.name == f"{base}+<|im_start|>+<|im_end|>"
    assert tokenizer.n_vocab == plain.n_vocab + 2
    ids = text_to_token_ids("<|im_start|>né<|im_end|>", tokenizer)
    ordinary = text_to_token_ids("né", plain)[0].tolist()
    assert ids.tolist() == [[plain.n_vocab, *ordinary, plain.n_vocab + 1]]
    assert token_ids_to_text(ids, tokenizer) == "<|im_start|>né<|im_end|>"
    again = get_tokenizer(tokenizer.name)
    assert (again.name, again._special_tokens) == (tokenizer.name, tokenizer._special_tokens)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bytes+", r"the special token '' is empty or has a \+ in it"),
        ("gpt2+<|endoftext|>", r"'gpt2' has the special token '<\|endoftext\|>' already"),
        ("bytes+a+a", "'bytes' has the special token 'a' already"),
        ("words+a", "tokenizer 'words' is unknown; expected one of: bytes, gpt2"),
    ],
)
def test_special_tokens_that_cannot_be_are_refused(name, said):
    with pytest.raises(InputError, match=said):
        get_tokenizer(name)


def test_names_with_special_tokens_are_names_of_tokenizers():
    assert "bytes" in TOKENIZERS
    assert "bytes+<|pad|>" in TOKENIZERS
    assert "words+<|pad|>" not in TOKENIZERS
    assert None not in TOKENIZERS
    assert list(TOKENIZERS) == ["bytes", "gpt2"]


@pytest.mark.parametrize("name", ["bytes+<|im_start|>+<|im_end|>", "bytes+<|endoftext|>"])
def test_the_files_of_such_a_tokenizer_are_those_of_transformers(name, tmp_path):
    write_tokenizer(tmp_path, named(name), 64)
    assert read_tokenizer(tmp_path) == (name, None)
    text = f"Héllo  you{'<|' + name.split('+<|')[-1]} there"
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text, add_special_tokens=False) == text_to_token_ids(text, get_tokenizer(name))[0].tolist()


# Both, from a checkpoint


def test_a_resized_model_and_its_tokenizer_are_read_again_and_generate(tmp_path, capsys):
    tokenizer = get_tokenizer("bytes+<|im_start|>+<|im_end|>")
    config = GPTConfig(**{**TIED.to_dict(), "vocab_size": 256, "context_length": 16})
    resized = resize_embeddings(model_of(config, 6, np.float32), tokenizer.n_vocab)
    write_checkpoint(tmp_path, {"model": model_section(resized, tokenizer.name)})
    checkpoint = read_checkpoint(tmp_path)
    assert get_tokenizer(saved_tokenizer(checkpoint)).n_vocab == 258
    prompt = text_to_token_ids("<|im_start|>a", tokenizer)
    assert prompt.tolist() == [[256, 97]]
    expected = generate(resized, prompt, 3, 16)
    assert np.array_equal(generate(saved_model(checkpoint), prompt, 3, 16), expected)
    asked = ("--prompt", "<|im_start|>a", "--max-new-tokens", "3", "--temperature", "0")
    assert run("generate", "--checkpoint", str(tmp_path), *asked) == 0
    assert token_ids_to_text(expected, tokenizer) in capsys.readouterr().out
