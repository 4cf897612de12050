"""The properties that must hold for the whole model. Each is a function that raises AssertionError if it does not hold.

The planted bugs are run against these, on one fixed small model with distinct sizes. So if a bug is missed, the checks
are at fault, and not a random draw. The rest of the suite draws the same things at random.
"""

import copy
import math
from functools import cache
from typing import Any

import numpy as np
import torch

import torchgpt
from numpygpt.checks.derivatives import STEP, THRESHOLD
from numpygpt.checks.source import Only
from numpygpt.data.loader import DataLoader
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.data.windows import GPTDatasetV1
from numpygpt.decoding.generation import decode_after, generate
from numpygpt.decoding.prompts import checked_prompts
from numpygpt.decoding.sampling import keep_top_k
from numpygpt.layers import transformer_block
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.objectives import next_token
from numpygpt.ops import attention, cross_entropy, flash_attention, layer_norm
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.shapes import Array
from numpygpt.training.adamw import AdamW, Group
from numpygpt.training.clipping import clip_grad_norm
from numpygpt.training.step import loss_and_grads_of
from numpygpt.tree import mapped
from numpygpt.watch import Watch
from parity_tests.tolerances import FACTOR, FLOAT64_NORMWISE
from torchgpt.bridge import dropout_masks, to_torch

CONFIG = GPTConfig(vocab_size=11, context_length=8, emb_dim=12, n_heads=3, n_layers=2, drop_rate=0.25, qkv_bias=True)
#: Every other way of making a model.
TIED = GPTConfig(
    **{
        **CONFIG.to_dict(),
        "qkv_bias": False,
        "tie_weights": True,
        "position": "sinusoidal",
        "activation": "gelu_erf",
        "bias": False,
        "norm_eps": 0.1,
    }
)
B, T = 2, 6
GRADIENT = "d_"
INPUTS = np.array([[3, 1, 3, 10, 0, 3], [7, 7, 2, 5, 9, 1]])
TARGETS = np.array([[1, 3, 10, 0, 3, 8], [7, 2, -100, 9, 1, 4]])


@cache
def weights(config: GPTConfig) -> dict[str, Array]:
    """Random weights of ordinary size, without symmetries; scale and shift are neither 1 nor 0."""
    rng = np.random.default_rng(1)
    return {
        name: rng.standard_normal(array.shape) / 2
        for name, array in GPTModel(config, dtype=np.float64).named_parameters().items()
    }


def model_of(config: GPTConfig = CONFIG, dtype: Any = np.float64) -> GPTModel:
    return GPTModel.from_state_dict(config, weights(config), dtype)


@cache
def masks(config: GPTConfig) -> Any:
    return GPTModel(config).draw_dropout_masks(np.random.default_rng(2), B, T)


def training_step(model: GPTModel, **options: Any) -> dict[str, Array]:
    """The tensors that `watch_training_step` tells, by name."""
    seen: dict[str, Array] = {}

    def watch(name: str, array: Array) -> None:
        seen[name] = np.array(array)

    watch_training_step(model, watch, **options)
    return seen


def watch_training_step(model: GPTModel, watch: Watch, **options: Any) -> None:
    """Tell activations, loss, their gradients as the backward yields them, and parameters' gradients, last to first.

    The step has dropout, and any options of the model's forward.
    """
    logits, saved = model.forward(INPUTS, watch=watch, **{"masks": masks(model.config), **options})
    loss, scored = next_token.forward(logits, TARGETS)
    watch("loss", loss)
    gradients = model.backward(next_token.backward(loss.dtype.type(1), scored).logits, saved, watch=watch)
    for name in reversed(gradients):
        watch(f"{GRADIENT}{name}", gradients[name])


@cache
def reference(config: GPTConfig) -> dict[str, Array]:
    """The same from PyTorch in float64. It is computed before a bug is planted."""
    model = to_torch(model_of(config), copy=True)
    model.train()
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str, tensor: torch.Tensor) -> None:
        if tensor.requires_grad:
            tensor.retain_grad()
        seen[name] = tensor

    inputs, targets = torch.from_numpy(INPUTS), torch.from_numpy(TARGETS)
    with dropout_masks(model, masks(config)):
        logits = model(inputs, watch=watch)
    seen["loss"] = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    seen["loss"].backward()
    activations = {name: tensor.detach().numpy() for name, tensor in seen.items()}
    gradients = {f"{GRADIENT}{name}": tensor.grad.numpy() for name, tensor in seen.items() if tensor.retains_grad}
    parameters = {f"{GRADIENT}{name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return activations | gradients | parameters


def differs(ours: Array, expected: Array) -> bool:
    """Whether shape or dtype differ, NaN or infinity is elsewhere, or finite values are too far apart.

    They are too far apart if the error is more than FLOAT64_NORMWISE.
    """
    ours, expected = np.asarray(ours), np.asarray(expected)
    if ours.shape != expected.shape or ours.dtype != expected.dtype:
        return True
    finite = np.isfinite(expected)
    if not np.array_equal(ours[~finite], expected[~finite]):
        return True
    difference = np.linalg.norm(ours[finite] - expected[finite])
    return not difference <= FLOAT64_NORMWISE * np.linalg.norm(expected[finite])


def agree(ours: Array, expected: Array, what: str) -> None:
    assert not differs(ours, expected), what


def _zero_by_theory(name: str) -> bool:
    return name.endswith("W_key.bias")  # adding a constant to a query's scores changes no weight


def forward() -> None:
    for config in (CONFIG, TIED):
        expected = reference(config)
        seen = training_step(model_of(config))
        for name in expected:
            if not name.startswith(GRADIENT):
                agree(seen[name], expected[name], name)


def gradients() -> None:
    for config in (CONFIG, TIED):
        expected = reference(config)
        seen = training_step(model_of(config))
        names = [name for name in expected if name.startswith(GRADIENT) and not _zero_by_theory(name)]
        assert set(names) <= set(seen)
        assert model_of(config).named_parameters().keys() == weights(config).keys()
        for name in names:
            agree(seen[name], expected[name], name)


def complex_step() -> None:
    """Check the derivative along random directions of all parameters at once, with one complex forward for each.

    The tied model takes three products for queries, keys and values, and computes its blocks again in the backward.
    """
    rng = np.random.default_rng(3)
    for config in (CONFIG, TIED):

        def forward(arrays: dict[str, Array], config: GPTConfig = config) -> Any:
            model = GPTModel.from_state_dict(config, arrays)
            if config.tie_weights:
                model.parameters = mapped(lambda array: array, model.parameters)
                model.checkpoint_activations = True
            logits, saved = model.forward(INPUTS, masks=masks(config))
            return logits, lambda d_logits: model.backward(d_logits, saved)

        agrees_with_complex_step(forward, weights(config), rng)
    arguments, options = flash_call()

    def attend(arrays: dict[str, Array]) -> Any:
        context, saved = flash_attention.forward(*arrays.values(), **options)
        return context, lambda d_context: flash_attention.backward(d_context, saved)._asdict()

    agrees_with_complex_step(attend, arguments, rng)


def agrees_with_complex_step(forward: Any, arrays: dict[str, Array], rng: np.random.Generator) -> None:
    """Check a `forward`, which returns an output and a function from its gradient to the gradients of the arrays."""
    output, backward = forward(arrays)
    d_output = rng.standard_normal(output.shape)
    gradients = backward(d_output)
    for _ in range(3):
        directions = {name: rng.standard_normal(array.shape) for name, array in arrays.items()}
        stepped, _ = forward({name: array + 1j * STEP * directions[name] for name, array in arrays.items()})
        expected = (d_output * stepped).sum().imag / STEP
        products = [(directions[name] * gradients[name]).sum() for name in arrays]
        error = np.abs(sum(products) - expected) / np.linalg.norm(products)
        assert error <= THRESHOLD, error


#: A few leaves, with frozen ones above and between them. The weights of queries and values without those of the keys
#: need three products.
SOME = Only(
    {"pos_emb.weight", "trf_blocks.0.att.W_query.weight", "trf_blocks.0.att.W_value.weight", "final_norm.scale"}
)
LAST = Only({"trf_blocks.1.ff.layers.2.bias", "trf_blocks.1.norm2.shift"})


def frozen() -> None:
    for config in (CONFIG, TIED):
        model, names = model_of(config), set(weights(config))
        full = training_step(model)
        for some in (SOME, LAST, Only({"tok_emb.weight"})):
            seen = training_step(model, trained=some)
            assert {name for name in names if f"{GRADIENT}{name}" in seen} == names & some
            for name in names & some:
                agree(seen[f"{GRADIENT}{name}"], full[f"{GRADIENT}{name}"], name)


def recomputation() -> None:
    for config in (CONFIG, TIED):
        model = model_of(config)
        expected = training_step(model)
        model.checkpoint_activations = True
        seen = training_step(model)
        assert seen.keys() == expected.keys()
        assert all(np.array_equal(seen[name], expected[name]) for name in expected)


def flash_call() -> tuple[dict[str, Array], dict[str, Any]]:
    """Arguments and options of attention in tiles of 2, with dropout. The queries are at the keys' last positions."""
    rng = np.random.default_rng(17)
    lengths = {"queries": T - 2, "keys": T, "values": T}
    arguments = {name: 2 * rng.standard_normal((B, 3, length, 4)) for name, length in lengths.items()}
    return arguments, {"keep": rng.random((B, 3, T - 2, T)) < 0.75, "drop_rate": 0.25, "tile": 2}


def some_keys() -> Array:
    """Which of T keys the last T - 2 queries see: some queries see some keys, others all or none."""
    visible = np.random.default_rng(19).random((B, 1, T - 2, T)) < 0.5
    visible[0, 0, 1], visible[1, 0, 2], visible[1, 0, :2, :2] = False, True, False
    return visible


def tiles() -> None:
    arguments, options = flash_call()
    tile = options.pop("tile")
    for visible in ("causal", some_keys()):
        context, saved = flash_attention.forward(*arguments.values(), **options, visible=visible, tile=tile)
        expected, expected_saved = attention.forward(*arguments.values(), **options, visible=visible)
        agree(context, expected, "context")
        d_context = np.random.default_rng(18).standard_normal(context.shape)
        ours = flash_attention.backward(d_context, saved)._asdict()
        for name, gradient in attention.backward(d_context, expected_saved)._asdict().items():
            agree(ours[name], gradient, f"d_{name}")


def masked() -> None:
    arguments, _ = flash_call()
    tensors = [torch.from_numpy(array).requires_grad_() for array in arguments.values()]
    d_context = np.random.default_rng(20).standard_normal(arguments["queries"].shape)
    for visible in ("all", some_keys()):
        seen = torch.from_numpy(np.ones((B, 1, T - 2, T), bool) if isinstance(visible, str) else visible)
        sees_any = seen.any(dim=-1, keepdim=True)
        expected = sees_any * torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=seen | ~sees_any)
        expected_gradients = torch.autograd.grad(expected, tensors, torch.from_numpy(d_context))
        for operation, options in ((attention, {}), (flash_attention, {"tile": 2})):
            context, saved = operation.forward(*arguments.values(), visible=visible, **options)
            agree(context, expected.detach().numpy(), "context")
            for ours, theirs in zip(operation.backward(d_context, saved), expected_gradients, strict=True):
                agree(ours, theirs.numpy(), "gradient")


#: The document to which each token of INPUTS belongs; -1 is padding, which sees no token and is not seen.
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, -1]])


def packed() -> dict[str, Any]:
    """Options of a forward without dropout in which a token sees only its document, whose start has the position 0."""
    same = (DOCUMENTS[:, :, np.newaxis] == DOCUMENTS[:, np.newaxis]) & (DOCUMENTS[:, np.newaxis] >= 0)
    positions = np.array([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 0]])
    return {"positions": positions, "visible": np.tril(same)[:, np.newaxis], "masks": None}


def packing() -> None:
    rng = np.random.default_rng(21)
    d_logits = rng.standard_normal((B, T, CONFIG.vocab_size)) * (DOCUMENTS >= 0)[..., np.newaxis]
    for attention_kind in ("math", "flash"):
        model = model_of()
        model.attention = attention_kind
        logits, saved = model.forward(INPUTS, **packed())
        grads = model.backward(d_logits, saved)
        expected = {name: np.zeros_like(array) for name, array in grads.items()}
        for row, document in ((0, 0), (0, 1), (1, 0), (1, 1)):
            where = DOCUMENTS[row] == document
            alone, saved = model.forward(INPUTS[row : row + 1, where])
            agree(logits[row, where], alone[0], f"document {document} of row {row}")
            for name, gradient in model.backward(d_logits[row : row + 1, where], saved).items():
                expected[name] += gradient
        for name, gradient in expected.items():
            if not _zero_by_theory(name):
                agree(grads[name], gradient, name)


#: Prompts of several lengths.
PROMPTS = [INPUTS[0, :2], INPUTS[1, :4], INPUTS[0, 2:5]]


def padding() -> None:
    model, context_size = model_of(), CONFIG.context_length
    prompts = checked_prompts(PROMPTS, context_size)
    logits, past = decode_after(model, prompts, None, context_size)
    longer = prompts.followed_by(np.array([5, 2, 9]))
    next_logits, _ = decode_after(model, longer, past, context_size)
    for row, prompt in enumerate(PROMPTS):
        agree(logits[row], model(prompt[np.newaxis])[0, -1], f"prompt {row}")
        longer_alone = model(np.append(prompt, longer.ids[row, -1])[np.newaxis])
        agree(next_logits[row], longer_alone[0, -1], f"prompt {row}, one token longer")
    together = generate(model, PROMPTS, 3, context_size)
    for prompt, ids in zip(PROMPTS, together, strict=True):
        assert np.array_equal(ids, _greedy(model, prompt[np.newaxis], 3)[0])


def causality() -> None:
    for size in (1, 300):  # with weights 300 times as large, scores reach 1e5 and more
        model = model_of()
        for block in model.parameters.trf_blocks:
            block.att.W_query.weight[...] *= size
            block.att.W_key.weight[...] *= size
        changed = INPUTS.copy()
        changed[:, 3:] = (changed[:, 3:] + 5) % CONFIG.vocab_size
        for run in (model, lambda ids, model=model: model.forward(ids, masks=masks(CONFIG))[0]):
            assert np.array_equal(run(INPUTS)[:, :3], run(changed)[:, :3])
            assert not np.array_equal(run(INPUTS)[:, 3:], run(changed)[:, 3:])
        every, every_changed = (model.forward(ids, visible="all")[0] for ids in (INPUTS, changed))
        assert not np.array_equal(every[:, :3], every_changed[:, :3]), "where all may be seen, all is seen"
    queries, keys, values = np.random.default_rng(4).standard_normal((3, B, 3, T, 4))
    with_nan = keys.copy()
    with_nan[:, :, 4:] = np.nan
    expected, _ = attention.forward(queries, keys, values)
    ours, _ = attention.forward(queries, with_nan, values)
    assert np.array_equal(ours[:, :, :4], expected[:, :, :4])


def cache_equals_full() -> None:
    model = model_of()
    full = model(INPUTS)
    logits, past = model.decode(INPUTS[:, :2])
    agree(logits, full[:, 1], "prefill")
    for t in range(2, T):
        logits, past = model.decode(INPUTS[:, t : t + 1], past)
        agree(logits, full[:, t], f"token {t}")
    model.attention = "flash"
    chunks = model.decode(INPUTS[:, 2:5], model.decode(INPUTS[:, :2])[1])[0]
    agree(chunks, full[:, 4], "several tokens after a past, by flash attention")
    model.attention = "math"
    continued_twice, of_swapped_rows = continuations(model)
    agree(continued_twice, full[:, 3], "a past gone on from twice")
    agree(of_swapped_rows, full[::-1, 3], "the rows of a cache in another order")
    for row in range(B):
        agree(model(INPUTS[row : row + 1])[0], full[row], f"row {row} alone")
    other = generate(model, INPUTS[:, :3], 2, CONFIG.context_length)
    assert np.array_equal(generate(model, INPUTS[:, :2], 2, CONFIG.context_length), _greedy(model, INPUTS[:, :2], 2))
    assert np.array_equal(generate(model, INPUTS[:, :3], 2, CONFIG.context_length), other)


def continuations(model: GPTModel) -> tuple[Array, Array]:
    """Logits after a past that was already continued in another way, and after a past whose rows were reordered."""
    _, past = model.decode(INPUTS[:, :2])
    _, present = model.decode(INPUTS[:, 2:3], past)
    model.decode(INPUTS[:, 5:6], past)
    swapped = tuple(cache.rows(np.array([1, 0])) for cache in present)
    return model.decode(INPUTS[:, 3:4], present)[0], model.decode(INPUTS[::-1, 3:4], swapped)[0]


def _greedy(model: GPTModel, idx: Array, new_tokens: int) -> Array:
    """Greedy decoding without a cache."""
    for _ in range(new_tokens):
        logits = model.forward(idx[:, -model.config.context_length :])[0]
        idx = np.concatenate([idx, logits[:, -1].argmax(-1)[:, np.newaxis]], axis=1)
    return idx


def evaluation() -> None:
    model = model_of()
    before, _ = model.loss_and_grads(INPUTS, TARGETS, rng=np.random.default_rng(5))
    without, _ = model.forward(INPUTS)
    agree(model(INPUTS), without, "evaluation has no dropout")
    assert np.array_equal(model(INPUTS), model(INPUTS))
    after, _ = model.loss_and_grads(INPUTS, TARGETS, rng=np.random.default_rng(5))
    assert before == after
    assert before != model.loss_and_grads(INPUTS, TARGETS)[0]


def optimizer() -> None:
    _optimizer_steps(CONFIG, 1.0, [NORMS_AND_BIASES])
    _optimizer_steps(TIED, 1e-8, [])  # gradients near eps
    rng = np.random.default_rng(6)
    grads = {"a": rng.standard_normal((3, 4)), "b": 5 * rng.standard_normal(7)}
    tensors = [torch.nn.Parameter(torch.zeros(g.shape, dtype=torch.float64)) for g in grads.values()]
    for tensor, gradient in zip(tensors, grads.values(), strict=True):
        tensor.grad = torch.from_numpy(gradient.copy())
    expected = torch.nn.utils.clip_grad_norm_(tensors, 2.0).item()
    assert math.isclose(clip_grad_norm(grads, 2.0), expected, rel_tol=FLOAT64_NORMWISE)
    for (name, gradient), tensor in zip(grads.items(), tensors, strict=True):
        agree(gradient, tensor.grad.numpy(), f"clipped {name}")


#: This group has half the learning rate, and does not decay.
NORMS_AND_BIASES = Group(lambda name, array: array.ndim < 2, lr_scale=0.5, weight_decay=0.0)


def _optimizer_steps(config: GPTConfig, sizes: float, groups: list[Group]) -> None:
    options = {"lr": 1e-2, "weight_decay": 0.3}
    ours = model_of(config)
    adamw = AdamW(ours, **options, groups=groups)
    theirs = [torch.nn.Parameter(torch.from_numpy(array.copy())) for array in weights(config).values()]
    norms_and_biases = {
        "params": [tensor for tensor in theirs if groups and tensor.ndim < 2],
        "lr": 0.5 * options["lr"],
        "weight_decay": 0.0,
    }
    rest = {"params": [tensor for tensor in theirs if not groups or tensor.ndim >= 2]}
    torch_adamw = torch.optim.AdamW([norms_and_biases, rest], **options)
    for _ in range(3):
        batches = [(INPUTS[:1], TARGETS[:1]), (INPUTS[1:], TARGETS[1:])]
        _, grads = loss_and_grads_of(ours, batches)
        _, expected = model_of_state(config, theirs).loss_and_grads(INPUTS, TARGETS)
        for parameter, name in zip(theirs, weights(config), strict=True):
            parameter.grad = torch.from_numpy(expected[name] * sizes)
        torch_adamw.step()
        adamw.step({name: gradient * sizes for name, gradient in grads.items()})
        for parameter, (name, array) in zip(theirs, ours.named_parameters().items(), strict=True):
            if not _zero_by_theory(name):
                agree(adamw.exp_avg[name], torch_adamw.state[parameter]["exp_avg"].numpy(), f"exp_avg {name}")
                agree(adamw.exp_avg_sq[name], torch_adamw.state[parameter]["exp_avg_sq"].numpy(), f"exp_avg_sq {name}")
                agree(array, parameter.detach().numpy(), name)
            parameter.data = torch.from_numpy(array.copy())


def copies() -> None:
    """A copy of a model and its optimizer, made of both together, is trained as they are."""
    model = model_of()
    adamw = AdamW(model, lr=1e-2)
    other, others_adamw = copy.deepcopy((model, adamw))
    _, grads = model.loss_and_grads(INPUTS, TARGETS)
    adamw.step(grads)
    others_adamw.step(grads)
    for name, array in model.named_parameters().items():
        agree(other.named_parameters()[name], array, name)


def model_of_state(config: GPTConfig, parameters: list[torch.nn.Parameter]) -> GPTModel:
    return GPTModel.from_state_dict(
        config,
        {name: parameter.detach().numpy() for name, parameter in zip(weights(config), parameters, strict=True)},
    )


def micro_batches() -> None:
    model = model_of()
    expected_loss, expected = model.loss_and_grads(INPUTS, TARGETS)
    expected = {name: gradient.copy() for name, gradient in expected.items()}
    ignored = (INPUTS[:1], np.full((1, T), cross_entropy.IGNORE_INDEX))
    loss, grads = loss_and_grads_of(model, [(INPUTS[:1], TARGETS[:1]), ignored, (INPUTS[1:], TARGETS[1:])])
    assert math.isclose(loss, expected_loss, rel_tol=FLOAT64_NORMWISE)
    for name, gradient in expected.items():
        if not _zero_by_theory(name):
            agree(grads[name], gradient, name)


def purity() -> None:
    model = model_of()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    logits, saved = model.forward(INPUTS, masks=masks(CONFIG))
    d_logits = np.random.default_rng(7).standard_normal(logits.shape)
    d_before = d_logits.copy()
    first = {name: gradient.copy() for name, gradient in model.backward(d_logits, saved).items()}
    second = model.backward(d_logits, saved)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    model(INPUTS)
    assert model.config == CONFIG
    assert np.array_equal(d_logits, d_before)
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    x = np.random.default_rng(8).standard_normal((B, T, CONFIG.emb_dim))
    x_before = x.copy()
    transformer_block.forward(x, model.parameters.trf_blocks[0], n_heads=CONFIG.n_heads)
    assert np.array_equal(x, x_before)
    _, past = model.decode(INPUTS[:, :2])
    _, present = model.decode(INPUTS[:, 2:3], past)
    present_before = [cache.keys.copy() for cache in present]
    model.decode(INPUTS[:, 5:6], past)
    assert all(map(np.array_equal, (cache.keys for cache in present), present_before))


def extremes() -> None:
    x = (2000 + np.random.default_rng(9).standard_normal((5, 64))).astype(np.float32)
    scale, shift = np.ones(64, np.float32), np.zeros(64, np.float32)
    truth, _ = layer_norm.forward(*(array.astype(np.float64) for array in (x, scale, shift)))
    ours, _ = layer_norm.forward(x, scale, shift)
    pytorch = torch.nn.functional.layer_norm(torch.from_numpy(x), (64,)).numpy()
    assert np.linalg.norm(ours - truth) <= FACTOR * np.linalg.norm(pytorch - truth)
    model = model_of()
    loss, grads = model.loss_and_grads(INPUTS, np.full_like(TARGETS, cross_entropy.IGNORE_INDEX))
    assert loss == 0
    assert not any(gradient.any() for gradient in grads.values())
    for block in model.parameters.trf_blocks:
        block.att.W_query.weight[...] *= 1e5
    assert np.isfinite(model(INPUTS)).all()


def dtypes() -> None:
    for dtype in (np.float32, np.float64, np.complex128):
        model = model_of(dtype=dtype)
        seen = training_step(model)
        assert {array.dtype for array in seen.values()} == {np.dtype(dtype)}
        for name, array in model.named_parameters().items():
            assert seen[f"{GRADIENT}{name}"].shape == array.shape
    for shape in ((5,), (2, 5), (2, 3, 4, 5)):
        x = np.random.default_rng(10).standard_normal(shape)
        y, saved = layer_norm.forward(x, np.ones(5), np.zeros(5))
        assert y.shape == shape
        assert [gradient.shape for gradient in layer_norm.backward(y, saved)] == [shape, (5,), (5,)]


def weights_round_trip() -> None:
    for config in (CONFIG, TIED):
        model = model_of(config)
        for name, array in weights(config).items():
            assert np.array_equal(model.state_dict()[name], array), name
    tied = model_of(TIED).state_dict()
    assert tied["out_head.weight"] is tied["tok_emb.weight"]


def sampling() -> None:
    model = model_of()
    greedy = _greedy(model, INPUTS[:, :3], 4)
    assert np.array_equal(generate(model, INPUTS[:, :3], 4, CONFIG.context_length, temperature=0.0), greedy)
    logits = np.array([[1.0, 3.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0, 5.0]])
    assert np.isfinite(keep_top_k(logits, 2)).sum(axis=-1).tolist() == [2, 2]
    eos = int(greedy[0, 4])
    assert eos not in greedy[1, 3:], "the prompts must stop at different times"
    stopped = generate(model, INPUTS[:, :3], 4, CONFIG.context_length, eos_id=eos)
    assert np.array_equal(stopped[1], greedy[1])
    assert (stopped[0, 4:] == eos).all()


def data() -> None:
    dataset = GPTDatasetV1("abcdefghij", get_tokenizer("bytes"), max_length=4, stride=2)
    text = np.frombuffer(b"abcdefghij", np.uint8)
    for window, (inputs, targets) in enumerate(zip(dataset.input_ids, dataset.target_ids, strict=True)):
        assert np.array_equal(inputs, text[2 * window : 2 * window + 4])
        assert np.array_equal(targets, text[2 * window + 1 : 2 * window + 5])


def closed_form() -> None:
    """Adam's first step is -lr g / (|g| + eps); decay alone is a factor; clipping multiplies all by one factor."""
    lr, weight_decay, eps = 1e-2, 0.3, 1e-8
    gradient = np.array([1e-9, -1e-8, 3e-8, 1.0, -5.0, 0.0])
    start = np.array([1.0, -2.0, 3.0, -4.0, 5.0, -6.0])
    parameter = start.copy()
    AdamW({"p": parameter}, lr=lr, weight_decay=weight_decay, eps=eps).step({"p": gradient})
    agree(parameter, start * (1 - lr * weight_decay) - lr * gradient / (np.abs(gradient) + eps), "first step")
    matrix, bias = np.ones((2, 2)), np.ones(2)
    grouped = AdamW({"w": matrix, "b": bias}, lr=lr, weight_decay=weight_decay, eps=eps, groups=[NORMS_AND_BIASES])
    grouped.step({"w": np.zeros((2, 2)), "b": np.zeros(2)})
    agree(matrix, np.full((2, 2), 1 - lr * weight_decay), "what decays")
    agree(bias, np.ones(2), "what does not decay")
    grads = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    clip_grad_norm(grads, 1.0)
    agree(np.array([*grads["a"], *grads["b"][0]]), np.array([3.0, 0.0, 4.0]) / (5 + 1e-6), "clipped")
    for config in (CONFIG, TIED):
        trained = AdamW(model_of(config)).parameters
        assert len({array.ctypes.data for array in trained.values()}) == len(trained), "a weight under two names"


def invariance() -> None:
    """The values are whole numbers, their count and the shift are powers of two, so mean and deviations are exact."""
    x = np.random.default_rng(12).integers(-50, 50, (3, 64)).astype(np.float64)
    scale, shift = np.random.default_rng(13).standard_normal((2, 64))
    expected, _ = layer_norm.forward(x, scale, shift)
    ours, _ = layer_norm.forward(x + 2.0**21, scale, shift)
    assert np.array_equal(ours, expected)


def decoding() -> None:
    numpy_model = sharp_model()
    torch_model = reference_model()
    greedy = torchgpt.generate(torch_model, torch.from_numpy(INPUTS[:, :2]), 3, CONFIG.context_length)
    eos_id = int(greedy[0, 3])
    for options in ({"temperature": 0.7}, {"temperature": 2.0, "top_k": 4}, {"eos_id": eos_id}):
        torch.manual_seed(14)
        expected = torchgpt.generate(torch_model, torch.from_numpy(INPUTS[:, :2]), 7, CONFIG.context_length, **options)
        ours = generate(
            numpy_model, INPUTS[:, :2], 7, CONFIG.context_length, rng=TorchGenerator(14), **options
        )
        assert np.array_equal(ours, expected.numpy())
    for prompt, ids in zip(PROMPTS, generate(numpy_model, PROMPTS, 3, CONFIG.context_length), strict=True):
        alone = torchgpt.generate(torch_model, torch.from_numpy(prompt[np.newaxis]), 3, CONFIG.context_length)
        assert np.array_equal(ids, alone[0].numpy())
    level = model_of()
    level.parameters.out_head.weight[...] = 0  # every logit ties
    ids = generate(level, INPUTS[:, :2], 5, CONFIG.context_length, temperature=1.0, top_k=2, rng=TorchGenerator(15))
    assert ids[:, 2:].max() <= 1


def sharp_model() -> GPTModel:
    """A model whose attention weights are far from uniform, so that decoding depends on them."""
    model = model_of()
    for block in model.parameters.trf_blocks:
        block.att.W_query.weight[...] *= 10
    return model


@cache
def reference_model() -> torchgpt.GPTModel:
    return to_torch(sharp_model(), copy=True).eval()


def loader() -> None:
    text = "".join(chr(ord("a") + i % 26) for i in range(60))
    ids = torch.tensor(list(text.encode()))
    windows = torch.utils.data.TensorDataset(ids[:-1].unfold(0, 4, 3), ids[1:].unfold(0, 4, 3))
    torch.manual_seed(16)
    expected = list(torch.utils.data.DataLoader(windows, batch_size=5, shuffle=True, drop_last=True))
    batches = DataLoader(
        GPTDatasetV1(text, get_tokenizer("bytes"), 4, 3), 5, shuffle=True, drop_last=True, rng=TorchGenerator(16)
    )
    for ours, theirs in zip(batches, expected, strict=True):
        assert np.array_equal(ours[0], theirs[0].numpy())
        assert np.array_equal(ours[1], theirs[1].numpy())


PROPERTIES = {
    "forward": forward,
    "gradients": gradients,
    "complex_step": complex_step,
    "frozen": frozen,
    "recomputation": recomputation,
    "causality": causality,
    "masks": masked,
    "packing": packing,
    "padding": padding,
    "cache": cache_equals_full,
    "tiles": tiles,
    "evaluation": evaluation,
    "optimizer": optimizer,
    "closed_form": closed_form,
    "copies": copies,
    "micro_batches": micro_batches,
    "purity": purity,
    "invariance": invariance,
    "extremes": extremes,
    "dtypes": dtypes,
    "weights": weights_round_trip,
    "sampling": sampling,
    "decoding": decoding,
    "data": data,
    "loader": loader,
}
