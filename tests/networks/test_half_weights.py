"""Weights of half the size do not round the arithmetic of any network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but
from flax import nnx

from dgjax import networks
from dgjax.checkpoints.arrays import from_named, to_named

pytestmark = pytest.mark.usefixtures("float32")

SHAPE, TIME = (4, 4, 2), jnp.float32(0.7)
TRANSFORMER = {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 8}
JOINT = TRANSFORMER | {"joint_attention_dim": 6, "pooled_projection_dim": 5}
TEXT = {"vocabulary": 7, "size": 8, "inner": 8, "layers": 1, "heads": 2}
PROMPT = {"encoder_hidden_states": np.float32(np.linspace(-1, 1, 18).reshape(3, 6))}
POOLED = PROMPT | {"pooled_projections": np.float32(np.linspace(0, 1, 5))}
TOKENS = np.array([1, 5, 2], np.int32)
U_NET = {
    "block_out_channels": (4,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "heads": (1,),
    "layers_per_block": (1,),
    "transformer_layers": (1,),
    "norm_num_groups": 2,
    "cross_attention_dim": 6,
}
EDM2 = {"num_classes": 3, "model_channels": 4, "channel_mult": (1,), "num_blocks": 1}
EDM2 |= {"attn_resolutions": (4,), "channels_per_head": 4}
FLUX = JOINT | {"axes_dims_rope": (2, 2, 4), "guidance_embeds": True, "num_single_layers": 1}
SD3 = JOINT | {"dual_attention_layers": (0,), "qk_norm": True, "pos_embed_max_size": 4}
CASES = {
    "unet2d_condition": (networks.UNet2DCondition, U_NET, PROMPT),
    "sd3": (networks.SD3Transformer, SD3, POOLED),
    "flux": (networks.FluxTransformer, FLUX, POOLED | {"guidance": np.float32(3.5)}),
    "dit": (networks.DiT, TRANSFORMER | {"num_classes": 3}, 1),
    "edm2": (networks.EDM2UNet, EDM2, 1),
    "clip": (networks.CLIPText, TEXT | {"length": 3, "activation": "gelu", "projection": 4}, None),
    "t5": (networks.T5Text, TEXT | {"head_size": 4}, None),
}


@pytest.mark.parametrize("name", slow_but(CASES, "dit", "clip", "t5"))
def test_values_are_those_of_the_same_weights_in_float32(name):
    kind, arguments, cond = CASES[name]
    text = name in ("clip", "t5")
    given = () if text else (SHAPE,)
    like = nnx.eval_shape(lambda: kind(*given, **arguments, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    named = {k: 0.4 * rng.normal(size=v.shape) for k, v in to_named(like).items()}
    wide = from_named(like, named, "the test")
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), wide)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    x = jnp.float32(rng.normal(size=SHAPE))
    run = jax.jit(lambda net: net(TOKENS) if text else net(x, TIME, cond))
    found, expected = map(jax.tree.leaves, (run(half), run(wide)))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max(initial=1.0))  # not 4e-3
