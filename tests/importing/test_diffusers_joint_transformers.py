"""SD3Transformer and FluxTransformer are the networks of diffusers of about the same names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but
from flax import nnx

from dgjax.checkpoints.configuration import construct
from dgjax.checkpoints.spec import NETWORKS
from dgjax.importing.diffusers import ARCHITECTURES
from dgjax.importing.state_dict import load_state_dict

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("float32")

SD3, FLUX = "SD3Transformer2DModel", "FluxTransformer2DModel"
SMALL = {
    SD3: {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 10,
        "pos_embed_max_size": 6,
    },
    FLUX: {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "axes_dims_rope": (2, 4, 6),
    },
}
# Class, changes of its config, height and width of the latents.
CASES = {
    "3": (SD3, {}, (8, 8)),
    "3 of one block, off the middle": (SD3, {"num_layers": 1}, (6, 10)),
    "3.5 large": (SD3, {"qk_norm": "rms_norm", "num_layers": 3}, (8, 8)),
    # On the largest grid of 7 x 7 the middle is not exact.
    "3.5 medium": (
        SD3,
        {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1), "pos_embed_max_size": 7},
        (4, 8),
    ),
    "3 of its own places": (SD3, {"pos_embed_max_size": 5}, (4, 8)),
    "3 of other patches": (SD3, {"patch_size": 1, "dual_attention_layers": (0,)}, (4, 6)),
    "schnell": (FLUX, {}, (6, 4)),
    "dev": (FLUX, {"guidance_embeds": True, "num_layers": 2, "num_single_layers": 2}, (4, 6)),
    "no double blocks": (FLUX, {"num_layers": 0, "num_attention_heads": 3}, (4, 4)),
    "no single blocks": (FLUX, {"num_single_layers": 0}, (4, 4)),
}


def original(kind, changes):
    """A network with random weights, also where they start as zero or one."""
    torch.manual_seed(1)
    network = getattr(diffusers, kind)(**(SMALL[kind] | changes))
    with torch.no_grad():
        for weights in network.parameters():
            weights.add_(0.3 * (weights.abs().mean() + 0.1) * torch.randn_like(weights))
    return network.eval()


def copied(kind, network, sides):
    """The same network here."""
    architecture = ARCHITECTURES[kind]
    config = json.loads(network.to_json_string()) | {"latent_size": list(sides)}
    shape, spec, time = architecture.read(config)
    assert time == "time_step"
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    spec, weights = architecture.share(spec, weights)
    make = lambda: construct("network", NETWORKS, spec, shape=shape, rngs=nnx.Rngs(0))
    loaded = load_state_dict(nnx.eval_shape(make), weights, "it")
    return jax.tree.map(jnp.asarray, loaded)


def inputs(kind, network, sides):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    cond = {"encoder_hidden_states": draw(5, 12), "pooled_projections": draw(10)}
    if network.config.get("guidance_embeds"):
        cond["guidance"] = np.float32(3.5)
    return draw(*sides, 4), cond


@torch.no_grad()
def predict(kind, network, x, t, cond):
    """The prediction of diffusers, whose pipelines pack the latents of Flux."""
    latent = torch.from_numpy(x).movedim(-1, 0)[None]
    cond = {name: torch.from_numpy(np.asarray(value)[None]) for name, value in cond.items()}
    if kind == SD3:
        out = network(latent, timestep=torch.tensor([t]), **cond).sample
        return out[0].movedim(0, -1).numpy()
    pipeline = diffusers.FluxPipeline
    _, channels, height, width = latent.shape
    out = network(
        pipeline._pack_latents(latent, 1, channels, height, width),
        timestep=torch.tensor([t / 1000]),
        txt_ids=torch.zeros(cond["encoder_hidden_states"].shape[1], 3),
        img_ids=pipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", None),
        **cond,
    ).sample
    out = pipeline._unpack_latents(out, 8 * height, 8 * width, 8)
    return out[0].movedim(0, -1).numpy()


@pytest.mark.parametrize("name", slow_but(CASES, "dev"))
def test_outputs_are_equal(name):
    kind, changes, sides = CASES[name]
    network = original(kind, changes)
    if own := name.endswith("own places"):
        network.pos_embed.pos_embed.add_(torch.randn_like(network.pos_embed.pos_embed))
    here = copied(kind, network, sides)
    if kind == SD3:
        assert (here.pos_embed.pos_embed is not None) == own
    x, cond = inputs(kind, network, sides)
    wanted = predict(kind, network, x, 700.0, cond)
    out = here(jnp.asarray(x), jnp.float32(700.0), cond)
    assert out.shape == x.shape
    assert np.abs(out - wanted).max() < 1e-4 * np.abs(wanted).max()


def construction(kind, changes):
    shape, spec, _ = ARCHITECTURES[kind].read({**SMALL[kind], **changes})
    return construct("network", NETWORKS, spec, shape=shape, rngs=nnx.Rngs(0))


BAD = {
    "an unknown setting": (SD3, {"spectral": True}, "the setting 'spectral' .* is unknown"),
    "another normalization": (SD3, {"qk_norm": "l2"}, "qk_norm 'l2' .* is not supported"),
    "a text of another width": (SD3, {"caption_projection_dim": 8}, "times .*head_dim, 16"),
    "a picture beside": (SD3, {"in_channels": 9}, "takes 9 channels and returns 4"),
    "a size as text": (SD3, {"sample_size": "8"}, "sample_size .* whole number, got '8'"),
    "no blocks": (SD3, {"num_layers": 0}, "num_layers .* positive whole number, got 0"),
    "a latent too large": (SD3, {"latent_size": [14, 8]}, "at most 12 x 12, got 14 x 8"),
    "a side that does not divide": (SD3, {"latent_size": [7, 8]}, "multiples of patch_size"),
    "an unknown setting of Flux": (FLUX, {"sample_size": 8}, "'sample_size' .* is unknown"),
    "patches": (FLUX, {"patch_size": 2}, "patch_size 2 .* is not supported; supported: 1"),
    "Flux with a picture": (FLUX, {"out_channels": 4}, "takes 16 channels and returns 4"),
    "no packed latents": (FLUX, {"in_channels": 6}, "must be a multiple of 4, got 6"),
    "no blocks of Flux": (FLUX, {"num_layers": 0, "num_single_layers": 0}, "must be a block"),
    "rotations": (FLUX, {"axes_dims_rope": [2, 2, 2]}, "sum is attention_head_dim 12"),
    "an odd side": (FLUX, {"latent_size": [7, 8]}, "even H and W"),
}


@pytest.mark.parametrize("case", BAD)
def test_other_configs_are_refused(case):
    kind, changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: construction(kind, changes))


WRONG = {
    "none": (None, "a prompt for every image: pass as cond a dictionary with"),
    "left over": ({"time_ids": np.zeros(2)}, "'time_ids', which this network does not take"),
    "missing": ({"guidance": None}, "no 'guidance', which this network needs"),
    "tokens": ({"encoder_hidden_states": np.zeros((5, 11))}, r"takes \(tokens, 12\)"),
    "pooled": ({"pooled_projections": np.zeros((1, 10))}, r"takes \(10,\)"),
    "guidance": ({"guidance": np.zeros(1)}, "is one number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_conditions_are_refused(case):
    changes, message = WRONG[case]
    changed = {"latent_size": [4, 4], "guidance_embeds": True, "num_layers": 0}
    network = nnx.eval_shape(lambda: construction(FLUX, changed))
    cond = None
    if changes is not None:
        _, cond = inputs(FLUX, diffusers.FluxTransformer2DModel(**SMALL[FLUX]), (4, 4))
        cond |= {"guidance": np.float32(3.5)} | changes
        cond = {name: value for name, value in cond.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        network(jnp.zeros((4, 4, 4)), 1.0, cond)
