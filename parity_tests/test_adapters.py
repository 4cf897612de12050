"""Adapters of low rank equal peft's: what they compute, their gradients, their training, merging and files."""

import copy
import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from numpygpt.adapt import (
    add_lora,
    dequantize,
    freeze,
    load_adapter,
    merge_lora,
    quantize,
    remove_lora,
    save_adapter,
    unfreeze,
    unmerge_lora,
)
from numpygpt.adapt.adapters import paths_of
from numpygpt.adapt.files import fingerprint
from numpygpt.adapt.quantized import quantized_projections
from numpygpt.errors import InputError
from numpygpt.formats import peft_folder
from numpygpt.formats.hugging_face import write_folder
from numpygpt.layers import parameters as p
from numpygpt.layers.projections import with_projections
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.ops import linear, lora
from numpygpt.training.adamw import AdamW
from parity_tests.small_models import FEWER, assert_agrees, configs, ids_of, model_of
from torchgpt.adapters import to_peft
from torchgpt.bridge import to_torch

CONFIG = GPTConfig(vocab_size=13, context_length=6, emb_dim=12, n_heads=3, n_layers=2, drop_rate=0.0, qkv_bias=True)
INPUTS, TARGETS = ids_of(CONFIG, 1), ids_of(CONFIG, 2)


def trained(model, seed=5):
    """The model with values in all matrices of its adapters, as training leaves them."""
    rng = np.random.default_rng(seed)
    for name, array in model.named_parameters().items():
        if ".lora_B." in name:
            array[...] = rng.standard_normal(array.shape) / 4
    return model


def adapted(config=CONFIG, seed=3, **options):
    options = {"rank": 2, "alpha": 7.0, "targets": "all-linear", **options}
    return trained(add_lora(model_of(config, seed), **options))


def loss_of(torch_model, inputs, targets):
    logits = torch_model(torch.from_numpy(inputs))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())


@FEWER
@given(config=configs(drop_rate=0.0), data=st.data())
def test_logits_loss_and_gradients_are_pefts(config, data):
    rank = data.draw(st.sampled_from([1, 2, config.emb_dim // 2]))
    scaling = data.draw(st.sampled_from(["lora", "rslora", "book"]))
    all_targets = ["all-linear", ("W_query", "W_value"), ("layers.2",), ("trf_blocks.0.att.W_key",)]
    targets = data.draw(st.sampled_from(all_targets))
    model = adapted(config, rank=rank, alpha=3.0, scaling=scaling, targets=targets)
    twin = to_peft(model)
    inputs, targets = ids_of(config, 1), ids_of(config, 2)
    loss = loss_of(twin, inputs, targets)
    loss.backward()
    ours, gradients = model.loss_and_grads(inputs, targets)
    assert_agrees(model(inputs), twin(torch.from_numpy(inputs)).detach().numpy())
    assert_agrees(np.array(ours), loss.detach().numpy())
    theirs = {name: q.grad for name, q in twin.named_parameters() if q.grad is not None}
    assert {f"base_model.model.{name}" for name in gradients} == theirs.keys()
    for name, gradient in gradients.items():
        if not name.endswith("W_key.bias"):
            assert_agrees(gradient, theirs[f"base_model.model.{name}"].numpy())


@pytest.mark.parametrize("tie_weights", [False, True])
def test_the_full_rank_and_several_adapters_are_pefts(tie_weights):
    """What they compute, and the gradients of all of them, beside a head that is tied or is not."""
    model = adapted(GPTConfig(**{**CONFIG.to_dict(), "tie_weights": tie_weights}), rank=CONFIG.emb_dim, alpha=5.0)
    model = add_lora(model, 1, 9.0, targets="out_head", name="other", scaling="rslora")
    model = trained(add_lora(model, 3, 2.0, targets=("W_query", "ff.layers.0"), name="third"))
    twin = to_peft(model)
    assert_agrees(model(INPUTS), twin(torch.from_numpy(INPUTS)).detach().numpy())
    loss_of(twin, INPUTS, TARGETS).backward()
    _, gradients = unfreeze(model, "*.lora_*").loss_and_grads(INPUTS, TARGETS)
    theirs = {name: q.grad for name, q in twin.named_parameters() if q.grad is not None}
    assert {f"base_model.model.{name}" for name in gradients} == theirs.keys()
    for name, gradient in gradients.items():
        assert_agrees(gradient, theirs[f"base_model.model.{name}"].numpy())


@pytest.mark.parametrize("tie_weights", [False, True])
def test_merging_is_pefts(tie_weights):
    config = GPTConfig(**{**CONFIG.to_dict(), "tie_weights": tie_weights})
    model = adapted(config, targets=("W_query", "out_proj", "layers.0"))
    merged = merge_lora(model)
    theirs = to_peft(model).merge_and_unload().state_dict()
    for name, array in merged.named_parameters().items():
        assert_agrees(array, theirs[name].numpy())
    assert merge_lora(merged).named_parameters().keys() == merged.named_parameters().keys()
    assert all(
        np.array_equal(array, merged.named_parameters()[name])
        for name, array in merge_lora(merged).named_parameters().items()
    )
    assert_agrees(unmerge_lora(merged)(INPUTS), model(INPUTS))
    assert_agrees(remove_lora(merged)(INPUTS), model(INPUTS))


def test_a_merged_head_is_tied_no_longer():
    config = GPTConfig(**{**CONFIG.to_dict(), "tie_weights": True})
    model = adapted(config, targets="out_head")
    merged = merge_lora(model)
    assert model.config.tie_weights
    assert not merged.config.tie_weights
    assert_agrees(merged(INPUTS), model(INPUTS))
    again = GPTModel.from_state_dict(merged.config, merged.state_dict())
    assert_agrees(again(INPUTS), model(INPUTS))


# What it costs


def test_what_does_not_change_is_shared():
    base = model_of(CONFIG, 3)
    model = add_lora(base, 2, 4.0)
    own, before = model.state_dict(), base.state_dict()
    assert all(np.shares_memory(own[name], array) for name, array in before.items())
    assert np.array_equal(model(INPUTS), base(INPUTS))
    merged = merge_lora(trained(model)).state_dict()
    assert {name for name in before if not np.shares_memory(merged[name], before[name])} == {
        f"trf_blocks.{block}.att.{matrix}.weight" for block in (0, 1) for matrix in ("W_query", "W_value")
    }


def test_what_is_frozen_has_no_gradient_and_no_state():
    model = adapted(targets="W_query")
    _, gradients = model.loss_and_grads(INPUTS, TARGETS)
    names = {f"trf_blocks.{block}.att.W_query.lora_{matrix}.default.weight" for block in (0, 1) for matrix in "AB"}
    assert gradients.keys() == names
    optimizer = AdamW(model)
    assert optimizer.exp_avg.keys() == names
    assert model.num_parameters(trained_only=True) == sum(array.size for array in optimizer.exp_avg.values())
    before = {name: array.copy() for name, array in model.state_dict().items()}
    optimizer.step(gradients)
    moved = {name for name, array in model.state_dict().items() if not np.array_equal(array, before[name])}
    assert moved == names


def test_freezing_goes_by_patterns():
    model = freeze(model_of(CONFIG, 3), ["trf_blocks.0.*", "*emb.weight"])
    _, gradients = model.loss_and_grads(INPUTS, TARGETS)
    frozen = {name for name in model.named_parameters() if name.startswith("trf_blocks.0.") or "emb" in name}
    assert gradients.keys() == model.named_parameters().keys() - frozen
    assert unfreeze(model, "*emb.weight").frozen == {name for name in frozen if "emb" not in name}
    _, full = model_of(CONFIG, 3).loss_and_grads(INPUTS, TARGETS)
    assert all(np.array_equal(gradient, full[name]) for name, gradient in gradients.items())


def test_a_quantized_model_computes_with_what_its_codes_stand_for():
    base = model_of(CONFIG, 3)
    model = quantize(base, "nf4", block_size=5, double=True)
    whole = dequantize(model)
    assert_agrees(model(INPUTS), whole(INPUTS))
    assert not np.array_equal(whole(INPUTS), base(INPUTS))
    _, gradients = model.loss_and_grads(INPUTS, TARGETS)
    _, expected = whole.loss_and_grads(INPUTS, TARGETS)
    assert gradients.keys() == expected.keys() == whole.named_parameters().keys() - whole.frozen
    for name, gradient in gradients.items():
        if not name.endswith("W_key.bias"):
            assert_agrees(gradient, expected[name])
    adapted_first = quantize(adapted(rank=2), "nf4", block_size=5, double=True)
    assert_agrees(adapted_first(INPUTS), trained(add_lora(model, 2, 7.0, targets="all-linear"))(INPUTS))
    assert_agrees(merge_lora(adapted_first)(INPUTS), adapted_first(INPUTS))


def test_a_quantized_base_is_an_eighth():
    """Codes of four bits, and a byte for each 64 of them with double quantization."""
    config = GPTConfig(**{**CONFIG.to_dict(), "emb_dim": 96})
    base = model_of(config, 3, np.float32)
    for scheme, share in (("nf4", 0.16), ("int8", 0.27)):
        nodes = quantized_projections(quantize(base, scheme)).values()
        whole = sum(4 * np.prod(node.weight.shape) for node in nodes)
        assert len(nodes) == 12
        assert sum(node.weight.bytes() for node in nodes) <= share * whole


def test_what_is_frozen_costs_no_products(monkeypatch):
    """An adapter beside the last head alone: the backward ends there, and none of the base's matrices has a product."""
    shapes = []
    for module in (linear, lora):
        monkeypatch.setattr(module, "product", lambda a, b: shapes.append((a.shape, b.shape)) or a @ b)
    model = adapted(targets="out_head")
    logits, back = model.forward(INPUTS)
    shapes.clear()
    gradients = model.backward(logits, back)
    assert gradients.keys() == {f"out_head.lora_{matrix}.default.weight" for matrix in "AB"}
    rows, (V, D) = INPUTS.size, (CONFIG.vocab_size, CONFIG.emb_dim)
    assert sorted(shapes) == sorted([((V, rows), (rows, 2)), ((rows, V), (V, 2)), ((2, rows), (rows, D))])


def test_frozen_and_quantized_models_share_what_they_do_not_change():
    base = model_of(CONFIG, 3)
    before = base.state_dict()
    for model, changed in ((freeze(base, "*"), set()), (quantize(base), set(quantized_projections(quantize(base))))):
        after = model.state_dict()
        shared = {name for name in before if name in after and np.shares_memory(after[name], before[name])}
        assert shared == before.keys() - {f"{name}.weight" for name in changed}
    assert not base.frozen


# Files


def test_pefts_folder_is_read(tmp_path):
    model = adapted(targets=("W_query", "W_value", "layers.2"))
    twin = to_peft(model)
    twin.save_pretrained(tmp_path)
    base = model_of(CONFIG, 3)
    assert_agrees(load_adapter(base, tmp_path)(INPUTS), model(INPUTS))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_folder_that_peft_made_by_itself_is_read(tmp_path, use_rslora):
    """Ranks and α of single projections, dropout, and the scale of rsLoRA."""
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["W_query", "layers.0", "out_head"], use_rslora=use_rslora, lora_dropout=0.1,
        rank_pattern={"layers.0": 2}, alpha_pattern={"trf_blocks.1.att.W_query": 11}, init_lora_weights=False,
    )  # fmt: skip
    twin = peft.get_peft_model(to_torch(model_of(CONFIG, 3), copy=True), config).eval()
    twin.save_pretrained(tmp_path)
    model = load_adapter(model_of(CONFIG, 3), tmp_path)
    assert_agrees(model(INPUTS), twin(torch.from_numpy(INPUTS)).detach().numpy())
    assert set(model.parameters.out_head.drop_rates.values()) == {0.1}


def test_peft_reads_our_folder(tmp_path):
    model = add_lora(adapted(rank=3, alpha=4.0, targets=("W_query", "layers.2")), 1, 5.0, targets="out_head", name="b")
    one = trained(model)
    save_adapter(one, tmp_path / "a")
    save_adapter(one, tmp_path / "b", name="b")
    base = to_torch(model_of(CONFIG, 3), copy=True)
    twin = peft.PeftModel.from_pretrained(base, tmp_path / "a", adapter_name="a")
    twin.load_adapter(tmp_path / "b", adapter_name="b")
    twin.base_model.set_adapter(["a", "b"])
    assert_agrees(twin.eval()(torch.from_numpy(INPUTS)).detach().numpy(), one(INPUTS))


HUGGING_FACE = GPT2Config(
    vocab_size=13, n_positions=6, n_embd=12, n_layer=2, n_head=3, bos_token_id=None, eos_token_id=None,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip
TIED = GPTConfig(**{**CONFIG.to_dict(), "tie_weights": True})
#: peft asks a model of transformers for an attribute of an older name.
PEFT_IS_OLDER = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def hugging_face(folder):
    write_folder(folder, TIED, model_of(TIED, 3).named_parameters(), None)
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float64).eval()


@PEFT_IS_OLDER
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target module is:UserWarning")
@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "lm_head"]])
def test_an_adapter_of_hugging_faces_model_is_read(tmp_path, targets):
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, lora_alpha=7, target_modules=targets, fan_in_fan_out=True, init_lora_weights=False)
    theirs = peft.get_peft_model(hugging_face(tmp_path / "base"), config).eval()
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)  # it would save the base's head, too
    model = load_adapter(model_of(TIED, 3), tmp_path / "adapter")
    assert_agrees(model(INPUTS), theirs(torch.from_numpy(INPUTS)).logits.detach().numpy())


@PEFT_IS_OLDER
@pytest.mark.parametrize("targets", ["all-linear", ("W_query", "W_value"), ("W_key", "layers.0")])
def test_peft_reads_our_folder_on_hugging_faces_model(tmp_path, targets):
    """The three projections in one get a path of their ranks together, which gives zeros where we have no path."""
    model = adapted(TIED, rank=2, targets=targets)
    save_adapter(model, tmp_path / "adapter", names="hugging-face")
    theirs = peft.PeftModel.from_pretrained(hugging_face(tmp_path / "base"), tmp_path / "adapter").eval()
    assert_agrees(theirs(torch.from_numpy(INPUTS)).logits.detach().numpy(), model(INPUTS))
    back = load_adapter(model_of(TIED, 3), tmp_path / "adapter")
    assert_agrees(back(INPUTS), model(INPUTS))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    beside = 3 if targets == "all-linear" else len({"W_query", "W_key", "W_value"} & set(targets))
    assert tensors[name].shape == (2 * beside, CONFIG.emb_dim)


@PEFT_IS_OLDER
def test_paths_of_other_ranks_and_scales_are_written_in_one(tmp_path):
    model = add_lora(model_of(TIED, 3), 1, 5.0, targets="W_key")
    model = trained(add_lora(model, 3, 2.0, targets="trf_blocks.0.att.W_value", name="b", scaling="rslora"))
    names = {path: node.scales.popitem()[0] for path, node in paths_of(copy.deepcopy(model))}
    one = with_projections(
        lambda path, node: p.LoRA(
            node.base, *({"default": one[names[path]]} for one in (node.lora_A, node.lora_B)),
            {"default": node.scales[names[path]]}, {"default": 0.0},
        ) if path in names else node,
        model.parameters,
    )  # fmt: skip
    model = model.with_parameters(one)
    save_adapter(model, tmp_path / "adapter", names="hugging-face")
    theirs = peft.PeftModel.from_pretrained(hugging_face(tmp_path / "base"), tmp_path / "adapter").eval()
    assert_agrees(theirs(torch.from_numpy(INPUTS)).logits.detach().numpy(), model(INPUTS))


def test_the_first_of_several_patterns_has_the_alpha(tmp_path):
    folder = saved(tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["alpha_pattern"] = {"W_query": 3, "att.W_query": 5, "layers.0": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model = load_adapter(model_of(CONFIG, 3), folder)
    twin = peft.PeftModel.from_pretrained(to_torch(model_of(CONFIG, 3), copy=True), folder).eval()
    assert_agrees(model(INPUTS), twin(torch.from_numpy(INPUTS)).detach().numpy())


def test_the_rate_of_dropout_is_written(tmp_path):
    save_adapter(adapted(dropout=0.3), tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_dropout"] == 0.3
    again = load_adapter(model_of(CONFIG, 3), tmp_path / "adapter")
    assert {rate for _, node in paths_of(again) for rate in node.drop_rates.values()} == {0.3}


@PEFT_IS_OLDER
def test_an_adapter_that_was_read_from_one_projection_is_written_at_its_rank(tmp_path):
    torch.manual_seed(2)
    config = peft.LoraConfig(r=2, lora_alpha=7, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    theirs = peft.get_peft_model(hugging_face(tmp_path / "base"), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    model = load_adapter(model_of(TIED, 3), tmp_path / "adapter")
    save_adapter(model, tmp_path / "again", names="hugging-face")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["r"] == 2


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("peft's page")
    save_adapter(model, tmp_path / "a")
    (tmp_path / "a" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name, message in (("a", "an adapter's, such as mine.txt"), ("file", "is no fo"), ("link", "is no fo")):
        with pytest.raises(InputError, match=message):
            save_adapter(model, tmp_path / name)
    assert (tmp_path / "a" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("number", [float, np.float64])
def test_float32_stays_float32(number):
    model = add_lora(model_of(CONFIG, 3, np.float32), 2, number(7), targets="all-linear", dropout=number(0.1))
    assert model(INPUTS).dtype == np.float32
    _, gradients = model.loss_and_grads(INPUTS, TARGETS, rng=np.random.default_rng(0))
    assert {gradient.dtype for gradient in gradients.values()} == {np.dtype(np.float32)}
    assert merge_lora(model)(INPUTS).dtype == np.float32


def test_a_second_adapter_freezes_the_first_and_whole_weights_stay_frozen():
    first = add_lora(model_of(CONFIG, 3), 2, 4.0, targets="W_query")
    second = add_lora(first, 2, 4.0, targets="W_key", name="second")
    _, gradients = second.loss_and_grads(INPUTS, TARGETS)
    assert gradients
    assert all(".second." in name for name in gradients)
    quantized = add_lora(quantize(model_of(TIED, 3)), 2, 4.0, targets=("W_query", "out_head"))
    for model in (merge_lora(quantized), unmerge_lora(merge_lora(quantized)), remove_lora(merge_lora(quantized))):
        trained_names = {name for name in model.named_parameters() if model.trained(name)}
        assert all(".lora_" in name for name in trained_names)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0; expected an integer of 1 or more"),
        ({"rank": 13}, r"rank is 13, but the matrix of trf_blocks.0.att.W_query is \(12, 12\); expected from 1 to 12"),
        ({"targets": "W_querry"}, "the target 'W_querry' is no projection of the model; expected one of"),
        ({"targets": ()}, "there are no targets"),
        ({"alpha": 0.0}, "alpha is 0.0; expected a positive number"),
        ({"alpha": float("nan")}, "alpha is nan; expected a positive number"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a rate from 0 to below 1"),
        ({"scaling": "alpha"}, "scaling is 'alpha'; expected one of 'lora', 'rslora', 'book'"),
        ({"name": "a.b"}, "the adapter's name is 'a.b'; expected a text without dots"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(options, message):
    model = model_of(CONFIG, 3)
    with pytest.raises(InputError, match=message):
        add_lora(model, **options)
    assert not model.frozen


def test_a_second_adapter_needs_a_name_and_no_merged_one():
    model = add_lora(model_of(CONFIG, 3), 2, 4.0)
    with pytest.raises(InputError, match="already has an adapter 'default'; give the other one another name"):
        add_lora(model, 2, 4.0)
    for targets in (("W_query", "W_value"), "W_key"):
        with pytest.raises(InputError, match="has a merged adapter; take it out with unmerge_lora"):
            add_lora(merge_lora(model), 2, 4.0, targets=targets, name="other")
    with pytest.raises(InputError, match="has a merged adapter; make the model plain with remove_lora"):
        quantize(merge_lora(model))
    with pytest.raises(InputError, match="W_query is quantized already"):
        quantize(quantize(model_of(CONFIG, 3)))
    spoiled = model_of(CONFIG, 3)
    spoiled.state_dict()["trf_blocks.1.att.W_key.weight"][2, 3] = np.nan
    with pytest.raises(InputError, match=r"trf_blocks\.1\.att\.W_key: .* not finite"):
        quantize(spoiled)
    with pytest.raises(InputError, match="out_head is tied to the token embedding, which stays as it is"):
        quantize(model_of(TIED, 3), targets="out_head")
    for function in (merge_lora, unmerge_lora, remove_lora):
        with pytest.raises(InputError, match="the model has no adapter; add one with add_lora, or load one"):
            function(model_of(CONFIG, 3))
    with pytest.raises(InputError, match=r"the pattern 'trf_block.\*' matches no parameter of the model"):
        freeze(model, "trf_block.*")


def saved(folder, **options):
    save_adapter(adapted(targets=("W_query", "layers.0")), folder, **options)
    return folder


def test_an_adapter_for_another_base_is_refused(tmp_path):
    folder = saved(tmp_path / "adapter", base_sha256=fingerprint(model_of(CONFIG, 3)))
    load_adapter(model_of(CONFIG, 3), folder)
    with pytest.raises(InputError, match="was trained on other weights than this model's, whose SHA-256 is"):
        load_adapter(model_of(CONFIG, 4), folder)
    shallow = GPTConfig(**{**CONFIG.to_dict(), "n_layers": 1})
    with pytest.raises(InputError, match=r"another model: this one has no projections trf_blocks.1.att.W_query"):
        load_adapter(model_of(shallow, 3), folder)
    wide = GPTConfig(**{**CONFIG.to_dict(), "emb_dim": 15})
    with pytest.raises(InputError, match=r"of another size: trf_blocks.0.att.W_query \(12, 12\), expected \(15, 15\)"):
        load_adapter(model_of(wide, 3), folder)
    narrow = GPTConfig(**{**CONFIG.to_dict(), "emb_dim": 9})
    misfits = r"another size: (trf_blocks\.\d\.(att|ff)\.\S+ \(\d+, 12\), expected \(\d+, 9\)(, )?){4}$"
    with pytest.raises(InputError, match=misfits):
        load_adapter(model_of(narrow, 3), folder)
    save_adapter(adapted(targets=("W_query", "W_key", "W_value")), folder)
    with pytest.raises(InputError, match=r"no projections (trf_blocks\.1\S+, ){2}trf_blocks\.1\.att\.W_value; give"):
        load_adapter(model_of(shallow, 3), folder)
    save_adapter(adapted(targets="all-linear"), folder)
    with pytest.raises(InputError, match=r"no projections (trf_blocks\.1\S+, ){4}trf_blocks\.1\S+ and 1 more; give"):
        load_adapter(model_of(shallow, 3), folder)
    with pytest.raises(InputError, match="the model has no adapter 'other'; it has default"):
        save_adapter(load_adapter(model_of(CONFIG, 3), folder), tmp_path / "other", name="other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "has peft_type 'IA3'; expected 'LORA'"),
        ({"use_dora": True}, "has use_dora True; expected False"),
        ({"bias": "all"}, "has bias 'all'; expected 'none'"),
        ({"modules_to_save": ["out_head"]}, "has modules_to_save"),
        ({"lora_alpha": "8"}, "lora_alpha of the adapter .* is '8'; expected a number"),
        ({"lora_dropout": 2}, "lora_dropout of the adapter .* is 2.0; expected a rate"),
        ({"alpha_pattern": [1]}, "alpha_pattern of the adapter .* is .1.; expected an object"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern of the adapter .* has '.'; expected names of projections"),
        ({"alpha_pattern": {"*": 3}}, "alpha_pattern of the adapter .* has '.'; expected names of projections"),
        ({"alpha_pattern": {"([a-zA-Z_.0-9]+)+x": 3}}, "expected names of projections"),
        ({"lora_alpha": 10**400}, "lora_alpha of the adapter .* expected a number"),
        ({"lora_alpha": 1e308}, "lora_alpha of the adapter .* expected a number"),
        ({"use_rslora": "false"}, "use_rslora of the adapter .* is 'false'; expected true or false"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa'; expected True"),
        ({"alora_invocation_tokens": [2]}, "has alora_invocation_tokens"),
    ],
)
def test_another_kind_of_adapter_is_refused(tmp_path, changes, message):
    file = saved(tmp_path / "adapter") / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InputError, match=message):
        load_adapter(model_of(CONFIG, 3), file.parent)


def test_the_page_names_every_field_for_which_a_folder_is_refused():
    page = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text(encoding="utf-8")
    assert {field for field in peft_folder._PLAIN if f"`{field}`" not in page} == set()


QUERY = "base_model.model.trf_blocks.0.att.W_query.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(QUERY), "has one of two matrices of trf_blocks.0.att.W_query; expected A and B"),
        (lambda tensors: tensors.clear(), "has no tensors"),
        (lambda tensors: tensors.update(extra=np.ones(2)), "has the tensor extra; expected base_model.model.PROJ"),
        (lambda tensors: tensors.update({QUERY: np.ones((3, 12))}), r"has A \(3, 12\) and B \(12, 2\)"),
        (lambda tensors: tensors.update({QUERY: np.full((2, 12), np.nan)}), "that are not finite"),
        (lambda tensors: tensors.update({QUERY: np.ones((2, 12), np.int32)}), "as int32; expected floats"),
        (
            lambda tensors: tensors.update({QUERY: np.ones((0, 12)), QUERY.replace("_A", "_B"): np.ones((12, 0))}),
            "with the same R of 1 or more",
        ),
    ],
)
def test_a_damaged_adapter_is_refused(tmp_path, change, message):
    file = saved(tmp_path / "adapter") / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(InputError, match=message):
        load_adapter(model_of(CONFIG, 3), file.parent)


def test_values_that_float32_cannot_hold_are_refused(tmp_path):
    file = saved(tmp_path / "adapter") / "adapter_model.safetensors"
    save_file({**load_file(file), QUERY: np.full((2, 12), 1e300)}, file)
    with pytest.raises(InputError, match=r"values of trf_blocks.0.att.W_query that are too large for float32"):
        load_adapter(model_of(CONFIG, 3, np.float32), file.parent)


def test_a_missing_or_truncated_adapter_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read the adapter's configuration"):
        load_adapter(model_of(CONFIG, 3), tmp_path / "none")
    file = saved(tmp_path / "adapter") / "adapter_model.safetensors"
    with pytest.raises(InputError, match=f"holds no adapter: it has no adapter_config.json; name {file.parent}"):
        load_adapter(model_of(CONFIG, 3), tmp_path)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="is truncated, damaged or no safetensors file"):
        load_adapter(model_of(CONFIG, 3), file.parent)
    with pytest.raises(InputError, match="names is 'theirs'; expected 'ours' or 'hugging-face'"):
        save_adapter(adapted(), tmp_path / "x", names="theirs")
