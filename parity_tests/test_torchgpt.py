"""torchgpt: the book's model and functions on tensors, and the bridge to NumPy."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import numpygpt
import torchgpt
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.errors import InputError
from numpygpt.layers import feed_forward
from numpygpt.layers.transformer_block import DropoutMasks as BlockMasks
from numpygpt.model.body import DropoutMasks
from numpygpt.model.config import ACTIVATIONS, GPTConfig
from numpygpt.random.torch_generator import TorchGenerator
from parity_tests.properties import agree
from torchgpt import model as torch_modules
from torchgpt.model import GELU, GELUErf, LayerNorm

CONFIG = {
    "vocab_size": 37,
    "context_length": 7,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.5,  # kept values are doubled, which is exact
    "qkv_bias": True,
}
B, T = 2, 5
BYTES = get_tokenizer("bytes")

configs = st.builds(
    lambda n_heads, head_dim, **others: GPTConfig(n_heads=n_heads, emb_dim=n_heads * head_dim, **others),
    n_heads=st.integers(1, 3),
    head_dim=st.integers(1, 4),
    drop_rate=st.sampled_from([0.0, 0.1]),
    vocab_size=st.integers(2, 9),
    context_length=st.integers(1, 6),
    n_layers=st.integers(1, 2),
    qkv_bias=st.booleans(),
    tie_weights=st.booleans(),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    norm_eps=st.sampled_from([1e-5, 0.1]),
)


def torch_model(attention="math", dtype=torch.float64, **changes):
    torch.manual_seed(123)
    return torchgpt.GPTModel({**CONFIG, **changes}, attention).to(dtype).eval()


def token_ids(batch=B, tokens=T, vocab_size=CONFIG["vocab_size"]):
    return torch.from_numpy(np.random.default_rng(4).integers(0, vocab_size, (batch, tokens)))


def loss_of(model, inputs, watch=None):
    logits = model(inputs) if watch is None else model(inputs, watch)
    return F.cross_entropy(logits.flatten(0, 1), inputs.roll(1).flatten())


def gradients(model, inputs):
    model.zero_grad()
    loss_of(model, inputs).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# The model


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_state_dict_has_the_names_shapes_and_order_of_the_book(qkv_bias):
    V, C, D, hidden = 37, 7, 12, 48
    expected = {"tok_emb.weight": (V, D), "pos_emb.weight": (C, D)}
    for block in ("trf_blocks.0", "trf_blocks.1"):
        for projection in ("W_query", "W_key", "W_value"):
            expected[f"{block}.att.{projection}.weight"] = (D, D)
            if qkv_bias:
                expected[f"{block}.att.{projection}.bias"] = (D,)
        expected |= {
            f"{block}.att.out_proj.weight": (D, D),
            f"{block}.att.out_proj.bias": (D,),
            f"{block}.ff.layers.0.weight": (hidden, D),
            f"{block}.ff.layers.0.bias": (hidden,),
            f"{block}.ff.layers.2.weight": (D, hidden),
            f"{block}.ff.layers.2.bias": (D,),
            f"{block}.norm1.scale": (D,),
            f"{block}.norm1.shift": (D,),
            f"{block}.norm2.scale": (D,),
            f"{block}.norm2.shift": (D,),
        }
    expected |= {"final_norm.scale": (D,), "final_norm.shift": (D,), "out_head.weight": (V, D)}
    state_dict = torch_model(qkv_bias=qkv_bias).state_dict()
    assert [(name, tuple(tensor.shape)) for name, tensor in state_dict.items()] == list(expected.items())


def test_without_biases_their_names_are_gone_and_the_others_stay_in_order():
    with_biases = torch_model(qkv_bias=False).state_dict()
    expected = [name for name in with_biases if not name.endswith((".bias", ".shift"))]
    assert list(torch_model(qkv_bias=False, bias=False).state_dict()) == expected
    model = numpygpt.GPTModel({**CONFIG, "qkv_bias": False, "bias": False})
    assert list(model.state_dict()) == expected


def test_parameters_are_drawn_in_the_order_of_the_book():
    model = torch_model(dtype=torch.float32)
    torch.manual_seed(123)
    drawn = {"tok_emb": nn.Embedding(37, 12), "pos_emb": nn.Embedding(7, 12)}
    for block in ("trf_blocks.0", "trf_blocks.1"):
        for name in ("att.W_query", "att.W_key", "att.W_value", "att.out_proj"):
            drawn[f"{block}.{name}"] = nn.Linear(12, 12)
        drawn[f"{block}.ff.layers.0"] = nn.Linear(12, 48)
        drawn[f"{block}.ff.layers.2"] = nn.Linear(48, 12)
    drawn["out_head"] = nn.Linear(12, 37, bias=False)
    for path, module in drawn.items():
        for name, parameter in module.named_parameters():
            assert torch.equal(model.get_parameter(f"{path}.{name}"), parameter), f"{path}.{name}"


def test_layer_norm_and_gelu_are_pytorchs_own():
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norm = LayerNorm(6).double()
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.shift)
    agree(norm(x).detach(), F.layer_norm(x, (6,), norm.scale, norm.shift, norm.eps).detach(), "LayerNorm")
    without_shift = LayerNorm(6, eps=0.5, bias=False).double()
    agree(without_shift(x).detach(), F.layer_norm(x, (6,), eps=0.5), "LayerNorm without a shift")
    agree(GELU()(x), F.gelu(x, approximate="tanh"), "GELU")
    agree(GELUErf()(x), F.gelu(x), "GELU's exact form")


def test_each_activation_of_a_configuration_has_an_operation_and_a_module():
    assert tuple(feed_forward.ACTIVATIONS) == tuple(torch_modules.ACTIVATIONS) == ACTIVATIONS


def test_gelu_has_the_bits_of_the_book_in_float32():
    x = torch.randn(100, generator=torch.Generator().manual_seed(1))
    root = torch.sqrt(torch.tensor(2.0 / torch.pi))
    assert torch.equal(GELU()(x), 0.5 * x * (1 + torch.tanh(root * (x + 0.044715 * torch.pow(x, 3)))))


def test_fused_attention_gives_the_explicit_products_logits_and_gradients():
    explicit, fused = torch_model(), torch_model("sdpa")
    inputs = token_ids()
    agree(fused(inputs).detach(), explicit(inputs).detach(), "logits")
    expected = gradients(explicit, inputs)
    for name, gradient in gradients(fused, inputs).items():
        if not name.endswith("W_key.bias"):  # it moves a row's scores alike: its gradient is 0 except for rounding
            agree(gradient, expected[name], name)


@pytest.mark.parametrize("attention", ["math", "sdpa"])
def test_dropout_is_live_in_training_only(attention):
    model, inputs = torch_model(attention), token_ids()
    for site in [model.drop_emb, *(block.drop_shortcut for block in model.trf_blocks)]:
        site.p = 0.0  # only the dropout of attention weights remains
    assert torch.equal(model(inputs), model(inputs))
    model.train()
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


def test_logits_do_not_depend_on_later_tokens():
    model, inputs = torch_model(), token_ids()
    changed = inputs.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % CONFIG["vocab_size"]
    before, after = model(inputs), model(changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])


def test_tied_weights_are_one_parameter_whose_gradient_is_the_sum_of_both_uses():
    tied, untied = torch_model(tie_weights=True), torch_model()
    assert tied.out_head.weight is tied.tok_emb.weight
    assert len(list(tied.parameters())) == len(list(untied.parameters())) - 1
    untied.load_state_dict(tied.state_dict())
    apart, together = gradients(untied, token_ids()), gradients(tied, token_ids())
    assert torch.equal(together["tok_emb.weight"], apart["tok_emb.weight"] + apart["out_head.weight"])


def test_tied_weights_start_as_the_head_is_drawn_in_both_packages():
    tied, untied = torch_model(tie_weights=True), torch_model()
    assert torch.equal(tied.tok_emb.weight, untied.out_head.weight)
    tied, untied = (numpygpt.GPTModel({**CONFIG, "tie_weights": tie}).state_dict() for tie in (True, False))
    assert np.array_equal(tied["tok_emb.weight"], untied["out_head.weight"])


def test_tying_leaves_the_generator_where_it_is_without():
    torch_model(tie_weights=True)
    after_tied = torch.get_rng_state()
    torch_model(tie_weights=False)
    assert torch.equal(after_tied, torch.get_rng_state())


def test_the_masks_in_the_books_files_are_ignored():
    model, other = torch_model(), torch_model(drop_rate=0.0)
    nn.init.normal_(other.out_head.weight)
    saved = other.state_dict()
    saved |= {f"trf_blocks.{i}.att.mask": torch.ones(7, 7).triu(1) for i in range(2)}
    model.load_state_dict(saved)
    assert torch.equal(model.out_head.weight, other.out_head.weight)
    assert "trf_blocks.0.att.mask" in saved
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**saved, "trf_blocks.0.att.task": torch.zeros(1)})


def test_a_tied_model_stays_tied_whatever_it_loads():
    model = torch_model(tie_weights=True)
    saved = {name: tensor + 1 for name, tensor in model.state_dict().items() if name != "out_head.weight"}
    model.load_state_dict(saved, assign=True)
    assert model.out_head.weight is model.tok_emb.weight
    assert torch.equal(model.out_head.weight, saved["tok_emb.weight"])
    with pytest.raises(InputError, match=r"out_head\.weight differs from tok_emb\.weight"):
        model.load_state_dict({**saved, "out_head.weight": saved["tok_emb.weight"] + 1})


def test_unusable_arguments_are_named():
    with pytest.raises(InputError, match="attention is 'flash'; expected one of"):
        torchgpt.GPTModel(CONFIG, "flash")
    with pytest.raises(InputError, match="the input has 8 tokens, more than context_length 7"):
        torch_model()(token_ids(tokens=8))


# Watching


def test_a_watch_is_told_every_activation_in_numpys_order():
    model = torch_model()
    shapes, numpy_shapes = {}, {}
    model(token_ids(), lambda name, tensor: shapes.update({name: tuple(tensor.shape)}))
    torchgpt.to_numpy(model).forward(
        token_ids().numpy(), watch=lambda name, array: numpy_shapes.update({name: array.shape})
    )
    assert list(shapes.items()) == list(numpy_shapes.items())
    assert shapes["trf_blocks.1.att.attn_weights"] == (B, 3, T, T)
    assert shapes["trf_blocks.1.ff.layers.1"] == (B, T, 48)


def test_the_fused_kernel_keeps_the_attention_weights_to_itself():
    names = {"math": [], "sdpa": []}
    for attention, told in names.items():
        torch_model(attention)(token_ids(), lambda name, tensor, told=told: told.append(name))
    hidden = ("attn_scores", "attn_weights", "att.dropout")
    assert names["sdpa"] == [name for name in names["math"] if not name.endswith(hidden)]
    assert len(names["math"]) == len(names["sdpa"]) + 2 * len(hidden)


def test_watching_changes_nothing():
    model, inputs = torch_model(), token_ids()
    assert torch.equal(model(inputs), model(inputs, lambda name, tensor: None))


@pytest.mark.parametrize("tie_weights", [False, True])
def test_watched_activations_and_their_gradients_are_numpys(tie_weights):
    """There is dropout, with the same masks at every site of both models."""
    model, inputs = torch_model(tie_weights=tie_weights), token_ids()
    numpy_model = torchgpt.to_numpy(model)
    masks = numpy_model.draw_dropout_masks(TorchGenerator(5), B, T)
    expected = {}
    logits, saved = numpy_model.forward(inputs.numpy(), masks=masks, watch=expected.__setitem__)
    d_logits = np.random.default_rng(6).standard_normal(logits.shape)
    parameter_gradients = numpy_model.backward(d_logits, saved, watch=expected.__setitem__)

    activations = {}

    def watch(name, tensor):
        tensor.retain_grad()
        activations[name] = tensor

    with torchgpt.dropout_masks(model, masks):
        model(inputs, watch).backward(torch.from_numpy(d_logits))
    for name, tensor in activations.items():
        agree(expected[name], tensor.detach(), name)
        agree(expected[f"d_{name}"], tensor.grad, f"d_{name}")
    for name, parameter in model.named_parameters():
        if not name.endswith("W_key.bias"):
            agree(parameter_gradients[name], parameter.grad, name)


# Dropout masks


def test_given_masks_do_what_pytorchs_own_draws_do():
    """For one seed, NumPy's masks are PyTorch's at every site, in order, bit for bit."""
    model, inputs = torch_model(), token_ids()
    masks = torchgpt.to_numpy(model).draw_dropout_masks(TorchGenerator(9), B, T)
    torch.manual_seed(9)
    model.train()
    drawn = model(inputs)
    model.eval()
    with torchgpt.dropout_masks(model, masks):
        given_once, given_twice = model(inputs), model(inputs)
    assert torch.equal(given_once, drawn)
    assert torch.equal(given_twice, drawn)
    assert not torch.equal(model(inputs), drawn)


@pytest.mark.parametrize(
    ("site", "watched"),
    [
        ("attention", "trf_blocks.1.att.dropout"),
        ("after_attention", "trf_blocks.1.drop_att"),
        ("after_feed_forward", "trf_blocks.1.drop_ff"),
        ("embedding", "drop_emb"),
    ],
)
def test_each_mask_reaches_its_own_site(site, watched):
    shape = (B, 3, T, T) if site == "attention" else (B, T, 12)
    nothing_kept = np.zeros(shape, dtype=bool)
    if site == "embedding":
        masks = DropoutMasks(nothing_kept, (BlockMasks(), BlockMasks()))
    else:
        masks = DropoutMasks(None, (BlockMasks(), BlockMasks(**{site: nothing_kept})))
    zero = []
    with torchgpt.dropout_masks(torch_model(), masks) as model:
        model(token_ids(), lambda name, tensor: zero.append(name) if not tensor.any() else None)
    assert watched in zero
    dropouts = ("drop_emb", "att.dropout", "drop_att", "drop_ff")
    assert [name for name in zero if name.endswith(dropouts)] == [watched]


def test_sampling_is_back_after_an_error():
    model = torch_model()
    masks = torchgpt.to_numpy(model).draw_dropout_masks(TorchGenerator(9), B, T)
    with pytest.raises(KeyboardInterrupt), torchgpt.dropout_masks(model, masks):
        raise KeyboardInterrupt
    assert all(isinstance(site, nn.Dropout) for site in [model.drop_emb, model.trf_blocks[1].drop_shortcut])


def test_the_fused_kernel_takes_no_masks():
    model = torch_model("sdpa")
    masks = torchgpt.to_numpy(model).draw_dropout_masks(TorchGenerator(9), B, T)
    with pytest.raises(InputError, match="draws its own dropout mask"), torchgpt.dropout_masks(model, masks):
        pass
    assert isinstance(model.drop_emb, nn.Dropout)


# The bridge


@given(configs, st.sampled_from([np.float32, np.float64]), st.booleans())
def test_round_trips_keep_every_number(config, dtype, copy):
    start = numpygpt.GPTModel(config, seed=1, dtype=dtype)
    twin = torchgpt.to_torch(start, copy=copy)
    back = torchgpt.to_numpy(twin, copy=copy)
    assert back.config == config
    assert back.dtype == dtype
    arrays, tensors, returned = start.state_dict(), twin.state_dict(), back.state_dict()
    assert list(arrays) == list(tensors) == list(returned)
    for name, array in arrays.items():
        assert np.array_equal(array, tensors[name].numpy()), name
        assert np.array_equal(array, returned[name]), name
        assert np.shares_memory(array, returned[name]) != copy, name
    assert (returned["tok_emb.weight"] is returned["out_head.weight"]) == config.tie_weights


@pytest.mark.parametrize("attention", ["math", "sdpa"])
def test_twins_give_the_same_logits(attention):
    numpy_model = numpygpt.GPTModel(CONFIG, dtype=np.float64)
    twin = torchgpt.to_torch(numpy_model, attention=attention)
    agree(numpy_model(token_ids().numpy()), twin(token_ids()).detach(), "logits")
    agree(torchgpt.to_numpy(twin)(token_ids().numpy()), twin(token_ids()).detach(), "logits")


def test_a_step_on_one_twin_is_seen_by_the_other():
    numpy_model = numpygpt.GPTModel(CONFIG)
    twin = torchgpt.to_torch(numpy_model)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.1)
    before = {name: array.copy() for name, array in numpy_model.state_dict().items()}
    loss_of(twin, token_ids()).backward()
    optimizer.step()
    tensors = twin.state_dict()
    for name, array in numpy_model.state_dict().items():
        assert not np.array_equal(array, before[name]), name
        assert np.array_equal(array, tensors[name].numpy()), name


def test_copied_numpy_weights_are_side_by_side_for_one_product():
    attention = torchgpt.to_numpy(torch_model(), copy=True).parameters.trf_blocks[1].att
    assert attention.W_query.weight.base is attention.W_value.weight.base is not None


def test_to_torch_draws_nothing_and_takes_read_only_arrays():
    numpy_model = numpygpt.GPTModel(CONFIG)
    numpy_model.parameters.pos_emb.weight.flags.writeable = False
    state = torch.get_rng_state()
    twin = torchgpt.to_torch(numpy_model)
    assert torch.equal(state, torch.get_rng_state())
    assert not twin.training
    assert not np.shares_memory(twin.pos_emb.weight.detach().numpy(), numpy_model.parameters.pos_emb.weight)


def test_a_model_of_the_books_own_classes_crosses_over():
    """It has no `.config`, and an `att.mask` buffer in every block."""
    model = torch_model()
    config = model.config
    del model.config
    for block in model.trf_blocks:
        block.att.register_buffer("mask", torch.ones(7, 7).triu(1))
    assert torchgpt.to_numpy(model).config == config


@pytest.mark.parametrize(
    ("module", "activation"), [(nn.GELU(), "gelu_erf"), (nn.GELU(approximate="tanh"), "gelu_tanh")], ids=str
)
def test_a_model_with_pytorchs_own_gelu_crosses_over(module, activation):
    model = torch_model()
    for block in model.trf_blocks:
        block.ff.layers[1] = module
    numpy_model = torchgpt.to_numpy(model)
    assert numpy_model.config == replace(GPTConfig.of(CONFIG), activation=activation)
    agree(numpy_model(token_ids().numpy()), model(token_ids()).detach(), "logits")


def test_another_activation_is_refused():
    model = torch_model()
    model.trf_blocks[0].ff.layers[1] = nn.ReLU()
    with pytest.raises(InputError, match=r"^the activation is a ReLU; expected a GELU$"):
        torchgpt.to_numpy(model)


def test_other_names_are_listed():
    with pytest.raises(InputError) as error:
        torchgpt.to_numpy(nn.Linear(3, 4))
    line = str(error.value)
    assert line.startswith("the parameters of this Linear are not a GPTModel's: missing: tok_emb.weight, ")
    assert "trf_blocks.0.att.W_query.weight" in line
    assert "unexpected: weight, bias;" in line
    renamed = torch_model()
    renamed.trf_blocks[1].norm3 = renamed.trf_blocks[1].norm2
    del renamed.trf_blocks[1].norm2
    with pytest.raises(InputError, match=r"missing: trf_blocks\.1\.norm2\.scale, .*unexpected: .*norm3"):
        torchgpt.to_numpy(renamed)


def test_other_dtypes_are_named():
    with pytest.raises(InputError, match=r"tok_emb\.weight is bfloat16; expected float32 or float64"):
        torchgpt.to_numpy(torch_model(dtype=torch.bfloat16))
    with pytest.raises(InputError, match=r"tok_emb\.weight is complex128; expected float32 or float64"):
        torchgpt.to_torch(numpygpt.GPTModel(CONFIG, dtype=np.complex128))
    mixed = torch_model(dtype=torch.float32)
    mixed.final_norm.double()
    with pytest.raises(InputError, match=r"final_norm\.scale is float64; expected float32"):
        torchgpt.to_numpy(mixed)


def test_without_pytorch_the_import_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; import torchgpt"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == (
        "ImportError: torchgpt needs PyTorch, which is not installed: pip install 'numpygpt[torch]'"
    )


def test_without_pytorch_its_command_says_what_to_install_and_gives_no_traceback():
    code = "import sys; sys.modules['torch'] = None; from numpygpt.commands.main import torchgpt; sys.exit(torchgpt())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = "torchgpt: error: torchgpt needs PyTorch, which is not installed: pip install 'numpygpt[torch]'\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", expected)


# Decoding


class Scripted(nn.Module):
    """A model whose next token depends only on row and length: choices[row][length - 1]."""

    def __init__(self, choices, vocab_size=9):
        super().__init__()
        self.choices, self.vocab_size = torch.tensor(choices), vocab_size

    def forward(self, in_idx):
        return F.one_hot(self.choices[:, : in_idx.shape[1]], self.vocab_size).double()


def test_text_and_token_ids():
    ids = torchgpt.text_to_token_ids("effort", BYTES)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [list(b"effort")]
    assert torchgpt.token_ids_to_text(ids, BYTES) == "effort"


def test_greedy_decoding_crops_to_the_context_and_is_numpys():
    model, prompt = torch_model(), token_ids(tokens=3)
    ids = torchgpt.generate_text_simple(model, prompt, max_new_tokens=9, context_size=4)
    for end in range(3, 12):
        logits = model(ids[:, max(0, end - 4) : end])
        assert torch.equal(ids[:, end], logits[:, -1].argmax(dim=-1))
    assert torch.equal(ids, torchgpt.generate(model, prompt, 9, 4, top_k=1))
    numpy_ids = numpygpt.generate_text_simple(torchgpt.to_numpy(model), prompt.numpy(), 9, 4)
    assert ids.tolist() == numpy_ids.tolist()


@pytest.mark.parametrize(("dtype", "top_k"), [(torch.float32, None), (torch.float64, 5)])
def test_sampled_tokens_are_numpys_for_the_same_seed(dtype, top_k):
    model, prompt = torch_model(dtype=dtype), token_ids(tokens=2)
    torch.manual_seed(11)
    ids = torchgpt.generate(model, prompt, 20, 7, temperature=1.4, top_k=top_k)
    numpy_ids = numpygpt.generate(
        torchgpt.to_numpy(model), prompt.numpy(), 20, 7, temperature=1.4, top_k=top_k, rng=TorchGenerator(11)
    )
    assert ids.tolist() == numpy_ids.tolist()


def test_each_row_stops_at_its_own_eos():
    model = Scripted([[1, 2, 8, 4, 5, 6], [1, 2, 3, 4, 8, 6], [8, 2, 3, 4, 5, 6]])
    prompt = torch.zeros(3, 1, dtype=torch.int64)
    ids = torchgpt.generate(model, prompt, 6, context_size=6, eos_id=8)
    assert ids.tolist() == [[0, 1, 2, 8, 8], [0, 1, 2, 3, 4], [0, 8, 8, 8, 8]]
    assert torchgpt.generate(model, prompt, 3, context_size=6, eos_id=8).shape == (3, 4)


def test_one_row_ends_before_its_eos():
    model = Scripted([[1, 2, 8, 4]])
    ids = torchgpt.generate(model, torch.zeros(1, 1, dtype=torch.int64), 4, context_size=4, eos_id=8)
    assert ids.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("top_k", "allowed"),
    [(1, {1}), (2, {1, 3}), (3, {1, 3, 4}), (4, {1, 3, 4, 6}), (5, {0, 1, 3, 4, 6}), (99, set(range(8)))],
)
def test_top_k_keeps_exactly_k_of_equal_logits(top_k, allowed):
    class Constant(nn.Module):
        def forward(self, in_idx):
            return torch.tensor([0.0, 2.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0]).expand(*in_idx.shape, 8)

    torch.manual_seed(2)
    ids = torchgpt.generate(Constant(), torch.zeros(300, 1, dtype=torch.int64), 1, 1, temperature=2.0, top_k=top_k)
    assert set(ids[:, 1].tolist()) == allowed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"idx": torch.zeros(1, 0, dtype=torch.int64)}, "the prompt has no tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"context_size": 0}, "context_size is 0"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_unusable_decoding_arguments_are_named(changes, message):
    arguments = {"idx": token_ids(), "max_new_tokens": 1, "context_size": 7, **changes}
    with pytest.raises(InputError, match=message):
        torchgpt.generate(torch_model(), **arguments)


NINE_WORDS = ["closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you"]
NINE_LOGITS = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])


def test_the_books_nine_word_vocabulary(capsys):
    state = torch.get_rng_state()
    torchgpt.print_sampled_tokens(torchgpt.softmax_with_temperature(NINE_LOGITS, 1.0), NINE_WORDS)
    assert torch.equal(state, torch.get_rng_state())
    counts = dict(line.split(" x ")[::-1] for line in capsys.readouterr().out.splitlines())
    assert list(counts) == NINE_WORDS
    drawn = {word: int(count) for word, count in counts.items() if count != "0"}
    assert drawn == {"closer": 73, "forward": 582, "inches": 2, "toward": 343}
    assert round(float(torchgpt.softmax_with_temperature(NINE_LOGITS, 5.0)[6]), 2) == 0.04
    with pytest.raises(InputError, match="temperature is 0"):
        torchgpt.softmax_with_temperature(NINE_LOGITS, 0.0)


# Training

TEXT = "No one had ever lingered in the hall quite as long as the cat, who owned it. " * 2
TRAINED = {**CONFIG, "vocab_size": 256, "n_layers": 1, "drop_rate": 0.1}


def torch_loader(text=TEXT, **options):
    options = {"batch_size": 4, "max_length": 7, "stride": 7, "shuffle": True, "drop_last": True, **options}
    return torchgpt.create_dataloader_v1(text, tokenizer=BYTES, **options)


def numpy_loader(rng, text=TEXT, **options):
    options = {"batch_size": 4, "max_length": 7, "stride": 7, "shuffle": True, "drop_last": True, **options}
    return numpygpt.create_dataloader_v1(text, tokenizer=BYTES, rng=rng, **options)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_numpys_for_the_same_seed(shuffle, drop_last):
    torch.manual_seed(8)
    loader = torch_loader(shuffle=shuffle, drop_last=drop_last, stride=5)
    twin = numpy_loader(TorchGenerator(8), shuffle=shuffle, drop_last=drop_last, stride=5)
    for _ in range(2):
        ours = [[part.tolist() for part in batch] for batch in loader]
        assert ours == [[part.tolist() for part in batch] for batch in twin]
    inputs, targets = next(iter(loader))
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_a_text_shorter_than_a_window_is_named():
    with pytest.raises(InputError, match="the text has 3 tokens"):
        torch_loader("cat")


def test_losses_over_a_loader():
    model, loader = torch_model(**TRAINED), torch_loader(shuffle=False)
    losses = [torchgpt.calc_loss_batch(*batch, model, "cpu").item() for batch in loader]
    assert torchgpt.calc_loss_loader(loader, model, "cpu") == sum(losses) / len(losses)
    assert torchgpt.calc_loss_loader(loader, model, "cpu", num_batches=2) == sum(losses[:2]) / 2
    assert torchgpt.calc_loss_loader(loader, model, "cpu", num_batches=99) == sum(losses) / len(losses)
    assert np.isnan(torchgpt.calc_loss_loader(torch_loader(batch_size=999), model, "cpu"))


def test_evaluation_is_without_dropout_and_goes_back_to_training():
    model, loader = torch_model(**TRAINED), torch_loader(shuffle=False)
    expected = torchgpt.calc_loss_loader(loader, model, "cpu", 2)
    model.train()
    assert torchgpt.evaluate_model(model, loader, loader, "cpu", 2) == (expected, expected)
    assert model.training


def test_training_prints_the_books_log_as_numpy_does(capsys):
    """With dropout and shuffling, losses and samples are the same, character by character."""
    model = torch_model(**TRAINED)
    numpy_model = torchgpt.to_numpy(model, copy=True)
    torch.manual_seed(123)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.1)
    train, validation = torch_loader(), torch_loader(shuffle=False, drop_last=False)
    results = torchgpt.train_model_simple(model, train, validation, optimizer, "cpu", 1, 2, 2, "the cat", BYTES)
    log = capsys.readouterr().out

    rng = TorchGenerator(123)
    numpy_results = numpygpt.train_model_simple(
        numpy_model,
        numpy_loader(rng),
        numpy_loader(rng, shuffle=False, drop_last=False),
        numpygpt.AdamW(numpy_model, lr=4e-3, weight_decay=0.1),
        1, 2, 2, "the cat", BYTES,
        rng=rng,
    )  # fmt: skip
    assert log == capsys.readouterr().out
    lines = log.removesuffix("\n").split("\n")  # splitlines would also split at odd bytes of a sample
    assert [line[:20] for line in lines if line.startswith("Ep ")] == [
        "Ep 1 (Step 000000): ", "Ep 1 (Step 000002): ", "Ep 1 (Step 000004): "
    ]  # fmt: skip
    assert [line[:7] for line in lines if not line.startswith("Ep ")] == ["the cat"]
    train_losses, val_losses, tokens_seen = results
    assert tokens_seen == numpy_results[2] == [28, 84, 140]
    assert val_losses[-1] < val_losses[0]
    agree(numpy_results[0], train_losses, "training losses")
    agree(numpy_results[1], val_losses, "validation losses")
