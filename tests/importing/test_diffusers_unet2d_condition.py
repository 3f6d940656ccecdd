"""UNet2DCondition is diffusers' UNet2DConditionModel, as in Stable Diffusion 1, 2 and XL."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgjax.checkpoints.configuration import construct
from dgjax.checkpoints.spec import NETWORKS
from dgjax.importing.diffusers_unet2d_condition import RENAMES, read_unet2d_condition
from dgjax.importing.state_dict import load_state_dict

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("float32")

SMALL = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
CONFIGS = {
    # Convolutions project; one number of heads for all levels.
    "1.5": {},
    # Linear layers project; heads of one size, so a number for each level.
    "2.1": {
        "use_linear_projection": True,
        "attention_head_dim": (2, 4),
        "upcast_attention": True,
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "sample_size": (8, 4),
    },
    # The first level has no transformers, the others have several blocks; pooled text and sizes.
    "xl": {
        "use_linear_projection": True,
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 3),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 10,
    },
    "other": {
        "layers_per_block": (1, 2),
        "transformer_layers_per_block": (2, 1),
        "reverse_transformer_layers_per_block": (1, 3),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "mid_block_scale_factor": 1.5,
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "gelu",
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "center_input_sample": True,
        "time_embedding_dim": 24,
    },
    "no middle": {"mid_block_type": None},
    # As the U-Net of the latent upscaler of Stable Diffusion, which has this order of blocks.
    "k blocks": {
        "act_fn": "gelu",
        "block_out_channels": (32, 32, 64, 64),
        "time_embedding_dim": 64,
        "layers_per_block": (1, 2, 1, 2),
        "norm_num_groups": None,
        "attention_head_dim": (8, 16, 32, 16),
        "mid_block_type": None,
        "down_block_types": ("KDownBlock2D", *3 * ("KCrossAttnDownBlock2D",)),
        "up_block_types": (*3 * ("KCrossAttnUpBlock2D",), "KUpBlock2D"),
        "sample_size": 16,
    },
}
K_BLOCKS = CONFIGS["k blocks"]


def randomize(network):
    """Change all weights, also those that start as zero or one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in network.parameters():
            size = weights.abs().mean() + 0.1
            weights.add_(0.3 * size * torch.randn_like(weights))
    return network.eval()


def original(**config):
    torch.manual_seed(1)
    return randomize(diffusers.UNet2DConditionModel(**(SMALL | config)))


def copied(network):
    """The same network here, and the shape of its samples."""
    config = json.loads(network.to_json_string())
    shape, spec, time = read_unet2d_condition(config)
    assert time == "time_step"
    make = lambda: construct("network", NETWORKS, spec, shape=shape, rngs=nnx.Rngs(0))
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    loaded = load_state_dict(nnx.eval_shape(make), weights, "it", renames=RENAMES)
    return jax.tree.map(jnp.asarray, loaded), shape


def inputs(shape, added=False):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    cond = {"encoder_hidden_states": draw(2, 7, 12)}
    if added:
        sizes = np.array([[64, 48, 0, 3, 64, 64], [32, 16, 8, 0, 64, 48]], np.float32)
        cond["added_cond_kwargs"] = {"text_embeds": draw(2, 10), "time_ids": sizes}
    return draw(2, *shape), np.array([3.0, 700.0], np.float32), cond


def torch_output(network, x, t, cond):
    as_torch = lambda tree: jax.tree.map(torch.from_numpy, tree)
    with torch.no_grad():
        x = torch.from_numpy(x).movedim(-1, 1).contiguous()
        return network(x, torch.from_numpy(t), **as_torch(cond)).sample.movedim(1, -1).numpy()


def ours(network, x, t, cond):
    # One at a time and not compiled, which takes less time here than to compile.
    one = lambda i: network(x[i], t[i], jax.tree.map(lambda a: a[i], cond))
    return np.stack([one(i) for i in range(len(x))])


SLOW = ("1.5", "2.1", "xl", "other", "k blocks")  # in the time they take


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CONFIGS]
)
def test_outputs_are_equal(name):
    network = original(**CONFIGS[name])
    here, shape = copied(network)
    x, t, cond = inputs(shape, name == "xl")
    expected = torch_output(network, x, t, cond)
    assert np.abs(expected).max() > 0.1
    found = ours(here, x, t, cond)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.slow
def test_products_with_the_jacobian_are_those_of_pytorch():
    network = original(**CONFIGS["xl"])
    here, shape = copied(network)
    x, t, cond = (jax.tree.map(lambda a: a[:1], one) for one in inputs(shape, True))
    direction = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    as_torch = lambda a: torch.from_numpy(a)
    given = jax.tree.map(as_torch, cond)
    call = lambda x: network(x, as_torch(t), **given).sample
    channels_first = lambda a: as_torch(a).movedim(-1, 1).contiguous()
    # The fused attention of PyTorch has no forward mode.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = torch.func.jvp(call, (channels_first(x),), (channels_first(direction),))[1]
    wanted = wanted.movedim(1, -1)[0].detach().numpy()
    run = lambda x: here(x, t[0], jax.tree.map(lambda a: a[0], cond))
    limit = 1e-4 * np.abs(wanted).max()
    value, product = jax.jvp(run, (x[0],), (direction[0],))
    np.testing.assert_allclose(product, wanted, rtol=0, atol=limit)
    linear = jax.linearize(run, x[0])[1]
    np.testing.assert_allclose(linear(direction[0]), wanted, rtol=0, atol=limit)
    cotangent = np.asarray(value)
    (back,) = jax.vjp(run, x[0])[1](cotangent)
    np.testing.assert_allclose(np.vdot(back, direction[0]), np.vdot(cotangent, wanted), rtol=1e-3)


def test_masked_tokens_are_not_attended_to():
    network = original(mid_block_type=None)
    here, shape = copied(network)
    x, t, cond = (jax.tree.map(lambda a: a[:1], one) for one in inputs(shape))
    mask = np.array([[1, 1, 1, 0, 0, 1, 0]])
    wanted = torch_output(network, x, t, {**cond, "encoder_attention_mask": mask})
    for given in (mask, mask > 0):
        found = ours(here, x, t, {**cond, "encoder_attention_mask": given})
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max(), rtol=0)
    prompt = cond["encoder_hidden_states"]
    assert np.abs(ours(here, x, t, cond) - wanted).max() > 1e-2
    np.testing.assert_array_equal(ours(here, x, t, cond), ours(here, x, t, prompt))


@pytest.mark.slow
def test_conditions_that_do_not_fit_are_refused():
    plain, shape = copied(original(mid_block_type=None))
    xl, _ = copied(original(**CONFIGS["xl"]))
    x = jnp.zeros(shape)
    prompt = {"encoder_hidden_states": jnp.zeros((7, 12))}
    short = {"text_embeds": jnp.zeros(9), "time_ids": jnp.zeros(6)}
    for network, cond, message in (
        (plain, None, "trained with a prompt for every image: pass cond"),
        (plain, jnp.zeros((7, 13)), r"shape \(7, 13\), and this network takes \(tokens, 12\)"),
        (plain, {**prompt, "encoder_attention_mask": jnp.ones(6)}, r"shape \(6,\) for 7 tokens"),
        (plain, {**prompt, "added_cond_kwargs": short}, "'added_cond_kwargs', which this network"),
        (xl, prompt, "no 'added_cond_kwargs', which this network needs"),
        (xl, {**prompt, "added_cond_kwargs": {}}, "a mapping of text_embeds and time_ids"),
        (xl, {**prompt, "added_cond_kwargs": short}, "together they must give 34 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            network(x, jnp.float32(1), cond)


BAD = {
    "an unknown setting": ({"spectral": True}, "the setting 'spectral'"),
    "other blocks": ({"down_block_types": ["SimpleCrossAttnDownBlock2D"] * 2}, "is unknown"),
    "levels of other numbers": ({"layers_per_block": [1, 2, 3]}, "as many layers_per_block, got 3"),
    "transformers of several depths": (
        {"transformer_layers_per_block": [1, [2, 3]]},
        "one whole number, or one for each level",
    ),
    "tokens of several lengths": ({"cross_attention_dim": [12, 16]}, "differs between levels"),
    "heads that do not divide": ({"attention_head_dim": 3}, "3 attention heads do not divide 8"),
    "a class": ({"num_class_embeds": 10}, "num_class_embeds 10 .* is not supported"),
    "K blocks without a normalization elsewhere": ({"norm_num_groups": None}, "for K blocks only"),
    "K blocks among others": (
        {"down_block_types": ["KDownBlock2D", "DownBlock2D"]},
        "K blocks go with K blocks only",
    ),
    "K blocks whose lowest levels do not fit": (
        {**K_BLOCKS, "time_embedding_dim": None},
        "KCrossAttnDownBlock2D cannot be followed by KCrossAttnUpBlock2D of 64 channels",
    ),
    "K blocks that attend to themselves too high": (
        {**K_BLOCKS, "block_out_channels": (64, 64, 64, 64)},
        "has no place above the lowest level",
    ),
    "K blocks of few channels": (
        {**K_BLOCKS, "block_out_channels": (16, 32, 64, 64)},
        "16 channels of a K block do not fit 0 groups",
    ),
    # As published: a picture of 4 channels beside the noise, and a fifth that comes out.
    "the latent upscaler": (
        {**K_BLOCKS, "in_channels": 8, "out_channels": 5},
        "take a picture beside the noise .inpainting, upscaling. are not supported",
    ),
    "a size that does not divide": ({"sample_size": 9}, "multiples of 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_other_configs_are_refused(case):
    changes, message = BAD[case]

    def make():
        shape, spec, _ = read_unet2d_condition({**SMALL, **changes})
        return construct("network", NETWORKS, spec, shape=shape, rngs=nnx.Rngs(0))

    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(make)
