"""The pre-norm transformer block of GPT-2 (Radford et al. 2019, section 2.3).

    x   (B, T, D)   input
    y   (B, T, D)   output

    (1)  a = norm1(x)
    (2)  b = attention(a)
    (3)  r = x + dropout(b)                        the residual between the two halves
    (4)  f = norm2(r)
    (5)  g = feed_forward(f)
    (6)  y = r + dropout(g)

A value used twice gets the sum of the gradients of its uses: x in (1) and (3), r in (4) and (6). The backward ends
as soon as nothing that comes before is trained and the gradient of x is not wanted.
"""

from typing import Any, Literal, NamedTuple

from numpygpt.layers import feed_forward, multi_head_attention
from numpygpt.layers import parameters as p
from numpygpt.layers.key_value_cache import KeyValueCache
from numpygpt.numerics import casting
from numpygpt.numerics.autocast import EXACT, Precision
from numpygpt.ops import dropout, layer_norm
from numpygpt.random.masks import RandomSource, draw_keep_mask
from numpygpt.shapes import Array, Bool, Inexact
from numpygpt.tree import Trained, any_trained, everything, nowhere, wanted, within
from numpygpt.watch import Watch, under, unwatched


class DropoutMasks(NamedTuple):
    """Which elements stay at the block's three sites; None if all do."""

    attention: Bool[Array, "B H T T"] | None = None
    after_attention: Bool[Array, "B T D"] | None = None
    after_feed_forward: Bool[Array, "B T D"] | None = None


NO_MASKS = DropoutMasks()


def draw_masks(rng: RandomSource, shape: tuple[int, int, int], n_heads: int, drop_rate: float) -> DropoutMasks:
    """Masks for x of this shape (B, T, D), drawn in the order in which the forward meets the sites."""
    B, T, _ = shape
    return DropoutMasks(
        draw_keep_mask(rng, (B, n_heads, T, T), drop_rate),
        draw_keep_mask(rng, shape, drop_rate),
        draw_keep_mask(rng, shape, drop_rate),
    )


class Saved(NamedTuple):
    norm1: layer_norm.Saved | casting.Saved
    att: multi_head_attention.Saved
    drop_att: dropout.Saved | casting.Saved
    norm2: layer_norm.Saved | casting.Saved
    ff: feed_forward.Saved
    drop_ff: dropout.Saved | casting.Saved
    parameters: p.TransformerBlock


def forward(
    x: Inexact[Array, "B T D"],
    parameters: p.TransformerBlock,
    *,
    n_heads: int,
    visible: Literal["causal", "all"] | Bool[Array, "B 1 T S"] = "causal",
    masks: DropoutMasks = NO_MASKS,
    drop_rate: float = 0.0,
    past: KeyValueCache | None = None,
    flash: bool = False,
    activation: str = "gelu_tanh",
    norm_eps: float = 1e-5,
    wants_x: bool = True,
    precision: Precision = EXACT,
    trained: Trained = everything,
    watch: Watch = unwatched,
) -> tuple[Inexact[Array, "B T D"], Saved]:
    norm1_trained, att_trained, norm2_trained = (within(trained, name) for name in ("norm1", "att", "norm2"))
    wants_a = wants_x or any_trained(parameters.norm1, norm1_trained)
    wants_r = wants_a or any_trained(parameters.att, att_trained)
    wants_f = wants_r or any_trained(parameters.norm2, norm2_trained)

    a, norm1 = casting.forward(  # (1)
        layer_norm, precision.layer_norm, x, *parameters.norm1, eps=norm_eps,
        wanted=wanted(norm1_trained, "scale", "shift", x=wants_x),
    )  # fmt: skip
    watch("norm1", a)
    b, att = multi_head_attention.forward(  # (2)
        a,
        parameters.att,
        n_heads=n_heads,
        visible=visible,
        keep=masks.attention,
        drop_rate=drop_rate,
        past=past,
        flash=flash,
        precision=precision,
        wants_x=wants_a,
        trained=att_trained,
        watch=under(watch, "att"),
    )
    dropped, drop_att = casting.forward(dropout, precision.dropout, b, masks.after_attention, drop_rate=drop_rate)
    watch("drop_att", dropped)
    r = x + dropped  # (3)
    watch("residual", r)
    f, norm2 = casting.forward(  # (4)
        layer_norm, precision.layer_norm, r, *parameters.norm2, eps=norm_eps,
        wanted=wanted(norm2_trained, "scale", "shift", x=wants_r),
    )  # fmt: skip
    watch("norm2", f)
    g, ff = feed_forward.forward(  # (5)
        f,
        parameters.ff,
        activation=activation,
        precision=precision,
        wants_x=wants_f,
        trained=within(trained, "ff"),
        watch=under(watch, "ff"),
    )
    dropped, drop_ff = casting.forward(dropout, precision.dropout, g, masks.after_feed_forward, drop_rate=drop_rate)
    watch("drop_ff", dropped)
    y = r + dropped  # (6)
    return y, Saved(norm1, att, drop_att, norm2, ff, drop_ff, parameters)


class Gradients(NamedTuple):
    x: Inexact[Array, "B T D"] | None
    parameters: p.TransformerBlock


def backward(d_y: Inexact[Array, "B T D"], saved: Saved, *, watch: Watch = unwatched) -> Gradients:
    d_parameters: Any = nowhere(saved.parameters)
    watch("d_drop_ff", d_y)
    d_g = casting.backward(dropout, d_y, saved.drop_ff).x  # undoes (6)
    d_f, d_ff = feed_forward.backward(d_g, saved.ff, watch=under(watch, "ff"))  # undoes (5)
    d_parameters = d_parameters._replace(ff=d_ff)
    if d_f is None:
        return Gradients(None, d_parameters)
    watch("d_norm2", d_f)
    d_r, *d_norm2 = casting.backward(layer_norm, d_f, saved.norm2)  # undoes (4)
    d_parameters = d_parameters._replace(norm2=p.LayerNorm._make(d_norm2))
    if d_r is None:
        return Gradients(None, d_parameters)
    d_r += d_y
    watch("d_residual", d_r)
    watch("d_drop_att", d_r)
    d_b = casting.backward(dropout, d_r, saved.drop_att).x  # undoes (3)
    d_a, d_att = multi_head_attention.backward(d_b, saved.att, watch=under(watch, "att"))  # undoes (2)
    d_parameters = d_parameters._replace(att=d_att)
    if d_a is None:
        return Gradients(None, d_parameters)
    watch("d_norm1", d_a)
    d_x, *d_norm1 = casting.backward(layer_norm, d_a, saved.norm1)  # undoes (1)
    d_parameters = d_parameters._replace(norm1=p.LayerNorm._make(d_norm1))
    if d_x is not None:
        d_x += d_r
    return Gradients(d_x, d_parameters)
