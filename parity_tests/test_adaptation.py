"""The words that say how a model is adapted, and the values that adapted models have if nothing is said."""

import numpy as np
import peft
import pytest
import torch

from numpygpt.adapt import (
    add_lora,
    class_head,
    dequantize,
    freeze,
    load_adapter,
    merge_lora,
    packed,
    quantize,
    replace_linear_with_lora,
    resize_embeddings,
    save_adapter,
)
from numpygpt.adapt.adaptation import Adaptation, lora_of, quantization_of
from numpygpt.adapt.adapters import paths_of, refuse_values
from numpygpt.adapt.files import fingerprint
from numpygpt.adapt.packed import packed_arrays, packed_section
from numpygpt.adapt.quantized import quantized_projections, weight_bytes
from numpygpt.adapt.saving import Base, adapted_section
from numpygpt.adapt.saving import model_of as saved_model
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint, write_checkpoint
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_section
from numpygpt.numerics import schemes
from parity_tests.small_models import assert_equal, model_of

#: What `refuse_values` lets pass.
USUAL = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "scaling": "lora", "name": "default"}
CONFIG = GPTConfig(vocab_size=13, context_length=6, emb_dim=12, n_heads=3, n_layers=1, drop_rate=0.0, qkv_bias=True)


def trained_names(model):
    return {name for name in model.named_parameters() if model.trained(name)}


# Words


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("r=8,alpha=16", {"rank": 8, "alpha": 16.0}),
        ("r=2, alpha=0.5,dropout=0.1 ,scaling=rslora", {"rank": 2, "alpha": 0.5, "dropout": 0.1, "scaling": "rslora"}),
        ("targets=W_key+out_proj", {"targets": ("W_key", "out_proj")}),
        ("targets=out_proj+W_key", {"targets": ("out_proj", "W_key")}),
        ("r=1,targets=all-linear", {"rank": 1, "targets": "all-linear"}),
        ("r=1,targets=W_key", {"rank": 1, "targets": ("W_key",)}),
        ("r=" + "9" * 13, {"rank": 10**13 - 1}),
    ],
)
def test_the_words_of_an_adapter_are_the_arguments_of_add_lora(words, arguments):
    assert lora_of(words) == {"targets": ("W_query", "W_value"), **arguments}


@pytest.mark.parametrize(
    ("words", "scheme", "options"),
    [
        ("nf4", "nf4", {}),
        ("nf4,double,block=64", "nf4", {"double": True, "block_size": 64}),
        ("int8, block=row", "int8", {"block_size": "row"}),
        ("int8,block=tensor", "int8", {"block_size": "tensor"}),
        ("int8,block=" + "9" * 12, "int8", {"block_size": 10**12 - 1}),
    ],
)
def test_the_words_of_a_quantization_are_the_arguments_of_quantize(words, scheme, options):
    assert quantization_of(words) == (scheme, options)


@pytest.mark.parametrize(
    ("read", "words", "said"),
    [
        (lora_of, "r", "lora has 'r'; expected r=8,alpha=16 and any of r, alpha, dropout, scaling, targets, each with"),
        (lora_of, "r=" + "1" * 14, "lora has r=11111111111111; expected a whole number"),
        (lora_of, "alpha=big", "lora has alpha=big; expected a number"),
        (lora_of, "r=1,r=1,r=1", "lora has 'r' 3 times; expected each word once"),
        (lora_of, "", "lora is ''; expected words with commas between them"),
        (quantization_of, "nf4,double=1", "quantize has 'double=1'; expected a scheme such as nf4, and any of double"),
        (quantization_of, "nf4,block", "quantize has 'block'; expected"),
        (quantization_of, "nf4,block=x", "quantize has 'block=x'; expected"),
        (quantization_of, "nf4,size=64", "quantize has 'size=64'; expected"),
        (quantization_of, "nf4,bits=64", "quantize has 'bits=64'; expected"),
        (quantization_of, "nf4,size=row", "quantize has 'size=row'; expected"),
        (quantization_of, "nf4,bits=row", "quantize has 'bits=row'; expected"),
        (quantization_of, "nf4,block=" + "1" * 13, "quantize has 'block=1111111111111'; expected"),
        (quantization_of, "nf4,block=" + "1" * 14, "quantize has 'block=11111111111111'; expected"),
        (quantization_of, "nf4=", "quantize is 'nf4='; expected the name of a scheme first, such as nf4"),
    ],
)
def test_words_that_mean_nothing_are_named(read, words, said):
    with pytest.raises(InputError) as raised:
        read(words)
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    ("adaptation", "words"),
    [
        (Adaptation(), ""),
        (Adaptation(lora="r=2"), "--lora r=2"),
        (Adaptation(freeze=("*.bias", "tok_emb.weight")), "--freeze '*.bias' tok_emb.weight"),
        (Adaptation("r=2", "nf4", (), 3), "a head of 3 scores --quantize nf4 --lora r=2"),
    ],
)
def test_an_adaptation_is_said_by_its_options_and_is_saved_as_it_is(adaptation, words):
    assert str(adaptation) == words
    assert Adaptation.of_dict(adaptation.to_dict()) == adaptation


def test_what_is_saved_of_an_adaptation_may_be_without_a_head_and_has_nothing_else():
    saved = Adaptation(lora="r=2").to_dict()
    del saved["head"]
    assert Adaptation.of_dict(saved) == Adaptation(lora="r=2")
    for wrong in ({"freeze": [1]}, {"freeze": ["*", None]}, {"lora": 1}, {"head": "two"}):
        with pytest.raises(InputError):
            Adaptation.of_dict({**saved, **wrong})


# What an adaptation does


def test_a_new_head_is_trained_beside_an_adapter_and_an_old_one_stays():
    model = Adaptation(lora="r=2", head=3).of(model_of(CONFIG, 1), seed=5)
    assert {name for name in trained_names(model) if ".lora_" not in name} == {"out_head.weight", "out_head.bias"}
    head = class_head(model_of(CONFIG, 1), 300)
    again = Adaptation(head=int("300")).of(head, seed=5)
    assert again.parameters.out_head is head.parameters.out_head
    plain = Adaptation(lora="r=2").of(model_of(CONFIG, 1), seed=5)
    assert all(".lora_" in name for name in trained_names(plain))


def test_a_quantized_model_needs_an_adapter():
    quantized = quantize(model_of(CONFIG, 1))
    for adaptation in (Adaptation(), Adaptation(head=3)):
        with pytest.raises(InputError, match="the model's matrices are quantized, and frozen; add an adapter"):
            adaptation.of(quantized, 0)
    assert paths_of(Adaptation(lora="r=2").of(quantized, 0))
    assert Adaptation(freeze=("tok_emb.weight",)).of(quantized, 0).frozen >= {"tok_emb.weight"}
    with pytest.raises(InputError, match="an adapter alone is trained under --lora"):
        Adaptation(lora="r=2", freeze=("*.bias",)).of(model_of(CONFIG, 1), 0)


# What is usual


def test_the_usual_values_are_those_that_the_pages_name():
    model = GPTModel(CONFIG)
    for usual, said in (
        (add_lora(model), add_lora(model, 8, 16.0, dropout=0.0, seed=123)),
        (replace_linear_with_lora(model, 2, 4.0), replace_linear_with_lora(model, 2, 4.0, seed=123)),
        (class_head(model, 3), class_head(model, 3, seed=123)),
        (
            resize_embeddings(model, 17, new_rows="drawn"),
            resize_embeddings(model, 17, new_rows="drawn", seed=123, multiple_of=1),
        ),
    ):
        assert_equal(usual.state_dict(), said.state_dict())
        assert usual.frozen == said.frozen
        for (_, node), (_, other) in zip(paths_of(usual), paths_of(said), strict=True):
            assert node.scales == other.scales
            assert node.drop_rates == other.drop_rates
    assert peft.LoraConfig().r == 8
    assert resize_embeddings(model, 17).config.vocab_size == 17


@pytest.mark.parametrize(("scaling", "scale"), [("lora", 6 / 4), ("rslora", 6 / 2), ("book", 6)])
def test_what_a_path_is_multiplied_by(scaling, scale):
    (path,) = paths_of(add_lora(GPTModel(CONFIG), 4, 6.0, scaling=scaling, targets="trf_blocks.0.att.W_key"))
    assert path[0] == "trf_blocks.0.att.W_key", "a whole name is one projection's"
    assert path[1].scales == {"default": scale}


@pytest.mark.parametrize("seed", [0, 3])
def test_a_new_adapters_values_are_drawn_as_torch_draws_them(seed):
    """kaiming_uniform_ with a = √5 takes the second axis for the inputs, and so peft and the book differ."""
    model = GPTModel(CONFIG)
    of_peft = add_lora(model, 2, targets=("W_query", "layers.2"), seed=seed)
    torch.manual_seed(seed)
    for _, node in paths_of(of_peft):
        expected = torch.nn.init.kaiming_uniform_(torch.empty(node.lora_A["default"].weight.shape), a=5**0.5)
        assert np.array_equal(node.lora_A["default"].weight, expected.numpy())
        assert not node.lora_B["default"].weight.any()
    of_the_book = replace_linear_with_lora(model, 2, 4.0, seed=seed)
    torch.manual_seed(seed)
    for _, node in paths_of(of_the_book):
        A = node.lora_A["default"].weight
        expected = torch.nn.init.kaiming_uniform_(torch.empty(A.shape[::-1]), a=5**0.5)
        assert np.array_equal(A, expected.numpy().T)
        assert not node.lora_B["default"].weight.any()
        assert node.scales == {"default": 2.0}
        assert node.drop_rates == {"default": 0.0}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": True}, "rank is True; expected an integer of 1 or more"),
        ({"rank": 2.0}, "rank is 2.0; expected an integer of 1 or more"),
        ({"alpha": True}, "alpha is True; expected a positive number"),
        ({"alpha": "1"}, "alpha is '1'; expected a positive number"),
        ({"alpha": -1.0}, "alpha is -1.0; expected a positive number"),
        ({"alpha": float("inf")}, "alpha is inf; expected a positive number"),
        ({"dropout": -0.5}, "dropout is -0.5; expected a rate from 0 to below 1"),
        ({"dropout": 1.5}, "dropout is 1.5; expected a rate from 0 to below 1"),
        ({"dropout": False}, "dropout is False; expected a rate from 0 to below 1"),
        ({"name": ""}, "the adapter's name is ''; expected a text without dots"),
    ],
)
def test_values_that_no_adapter_has_are_named(options, said):
    with pytest.raises(InputError, match=said):
        refuse_values(**{**USUAL, **options})


def test_numbers_may_be_numpys_and_lie_at_the_bounds():
    for options in ({"rank": np.int64(1)}, {"alpha": np.float32(0.5)}, {"alpha": np.int32(3)}, {"dropout": 0}):
        refuse_values(**{**USUAL, **options})


def test_every_rank_up_to_the_smaller_side_is_one():
    model = model_of(CONFIG, 1)
    for rank in (1, 12):
        assert paths_of(add_lora(model, rank, targets="layers.0"))
    for target, shape in (("layers.0", r"\(48, 12\)"), ("layers.2", r"\(12, 48\)")):
        said = rf"rank is 13, but the matrix of trf_blocks.0.ff.{target} is {shape}; expected from 1 to 12"
        with pytest.raises(InputError, match=said):
            add_lora(model, 13, targets=target)
    with pytest.raises(InputError, match=r"expected one of att\.W_query, att\.W_key, .*ff\.layers\.2, out_head, the"):
        add_lora(model, 1, targets="W_querry")


def test_the_bytes_of_a_quantized_model_are_those_of_its_parameters_and_codes():
    model = model_of(CONFIG, 1)
    quantized = quantize(model, "int8", block_size="row", targets="W_key")
    weight = quantized_projections(quantized)["trf_blocks.0.att.W_key"].weight
    assert weight_bytes(model) == sum(array.nbytes for array in model.named_parameters().values())
    assert weight_bytes(quantized) == weight_bytes(model) - 12 * 12 * model.dtype.itemsize + weight.bytes()


def test_a_merged_adapter_is_taken_out_before_another_is_loaded(tmp_path):
    model = add_lora(freeze(model_of(CONFIG, 1), "*"), 1)
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(InputError, match=r"^trf_blocks\.0\.att\.W_query has a merged adapter; take it out"):
        load_adapter(merge_lora(model), tmp_path / "adapter", name="other")
    with pytest.raises(InputError, match="the model has no adapter 'second'; it has default"):
        save_adapter(model, tmp_path / "second", name="second")
    with pytest.raises(InputError, match="the model has no adapter 'default'; it has none"):
        save_adapter(model_of(CONFIG, 1), tmp_path / "second")


def test_a_pattern_that_matches_nothing_is_told_the_first_and_the_last_name():
    with pytest.raises(InputError, match=r"have names such as tok_emb\.weight and out_head\.weight, and \* stands for"):
        freeze(model_of(CONFIG, 1), "block.*")


def test_a_head_without_an_adapter_is_replaced():
    for targets in ("W_key", "all-linear"):
        model = class_head(add_lora(model_of(CONFIG, 1), 1, targets=targets), 2)
        assert model.config.classes == 2
    with pytest.raises(InputError, match="the head has an adapter, which fits no other head"):
        class_head(add_lora(model_of(CONFIG, 1), 1, targets="out_head"), 2)


def test_whole_again_are_the_quantized_matrices_alone():
    model = model_of(CONFIG, 1)
    quantized = quantize(model, targets="W_key")
    whole, name = dequantize(quantized), "trf_blocks.0.att.W_key"
    assert not quantized_projections(whole)
    assert whole.frozen == {f"{name}.weight"}
    node = quantized_projections(quantized)[name]
    assert np.array_equal(whole.state_dict()[f"{name}.weight"], schemes.dequantize(node.weight, model.dtype))


def test_one_other_code_is_another_fingerprint():
    quantized = quantize(model_of(CONFIG, 1), targets="W_key")
    before = fingerprint(quantized)
    assert fingerprint(quantize(model_of(CONFIG, 1), targets="W_key")) == before
    packed_arrays(quantized)["trf_blocks.0.att.W_key.weight.codes"][3] ^= 1
    assert fingerprint(quantized) != before


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_adapted_model_is_saved_beside_its_base_and_knows_it(tmp_path, is_packed):
    model, how = model_of(CONFIG, 1, np.float32), Adaptation(lora="r=1")
    model = quantize(model) if is_packed else model
    path = tmp_path / "base"
    write_checkpoint(path, {"model": (packed_section if is_packed else model_section)(model, "bytes")})
    adapted = how.of(model, 3)
    for name, array in adapted.named_parameters().items():
        if adapted.trained(name):
            array[...] = np.random.default_rng(4).standard_normal(array.shape)
    for number, sha256 in enumerate((fingerprint(model), "0" * 64, "g" * 64)):
        folder = tmp_path / str(number)
        write_checkpoint(folder, {"model": adapted_section(adapted, "bytes", Base(path, sha256), how)})
        if number:
            with pytest.raises(InputError, match=f"other weights than those of {path}, .*; expected {sha256}"):
                saved_model(read_checkpoint(folder))
            continue
        again = saved_model(read_checkpoint(folder))
        assert again.dtype == np.float32
        assert_equal(again.state_dict(), adapted.state_dict())
        assert saved_model(read_checkpoint(folder), np.float64).dtype == np.float64
    path.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"the model that was adapted cannot be read: .*; say with --base where it is"):
        saved_model(read_checkpoint(tmp_path / "0"))
    moved = saved_model(read_checkpoint(tmp_path / "0"), base=tmp_path / "moved")
    assert_equal(moved.state_dict(), adapted.state_dict())


def test_a_packed_model_asks_for_the_memory_of_its_arrays(tmp_path, monkeypatch):
    section = packed_section(quantize(model_of(CONFIG, 1, np.float32)), None)
    write_checkpoint(tmp_path, {"model": section})
    asked = []
    monkeypatch.setattr(packed, "check_memory", lambda needed, what: asked.append(needed))
    assert packed.packed_model_of(read_checkpoint(tmp_path)).dtype == np.float32
    assert asked == [sum(array.nbytes for array in section.arrays.values())]
