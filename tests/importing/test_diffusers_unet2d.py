"""UNet2D is diffusers' UNet2DModel: equal outputs, and the samples of diffusers' own DDIM."""

import json
from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgjax.checkpoints.spec import build
from dgjax.importing import import_diffusers
from dgjax.model.paths import edm
from dgjax.model.repath import repath
from dgjax.sampling.sample import sample

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("float32")

SMALL = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
CONFIGS = {
    # As the first DDPMs: one head, sines first, no padding on the way down.
    "ddpm": {
        "attention_head_dim": None,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
        "layers_per_block": 2,
        "center_input_sample": True,
    },
    # As ADM: told of the noise by scale and shift, resampled by residual blocks, with classes.
    "adm": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "block_out_channels": (16, 32, 16),
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "num_class_embeds": 5,
        "out_channels": 6,
        "time_embedding_dim": 40,
    },
    # As NCSN++: filters, a thin copy of the image, noise levels instead of steps.
    "ncsnpp": {
        "sample_size": (16, 8),
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "block_out_channels": (32, 64, 64),
        "norm_num_groups": None,
        "time_embedding_type": "fourier",
        "mid_block_scale_factor": 2**0.5,
    },
    "odd": {
        "mid_block_type": None,
        "in_channels": 1,
        "out_channels": 1,
        "act_fn": "gelu",
        "class_embed_type": "timestep",
        "attention_head_dim": 12,  # does not divide the channels
    },
    "other": {
        "add_attention": False,
        "act_fn": "mish",
        "class_embed_type": "identity",
        "attn_norm_num_groups": 4,
        "down_block_types": ("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
    },
    # As the U-Nets of k-diffusion, with their numbers of layers and groups of 32 channels.
    "k blocks": {
        "act_fn": "gelu",
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "down_block_types": ("KCrossAttnDownBlock2D", "KDownBlock2D"),
        "up_block_types": ("KUpBlock2D", "KCrossAttnUpBlock2D"),
    },
}
SCHEDULER = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
NOISE_LEVELS = {"_class_name": "ScoreSdeVeScheduler"}


def original(folder, scheduler=SCHEDULER, **config):
    """A network of diffusers' with random weights, saved to `folder` as a pipeline's."""
    torch.manual_seed(1)
    network = diffusers.UNet2DModel(**(SMALL | config)).eval()
    with torch.no_grad():  # what starts as zero or one, too
        for weights in network.parameters():
            size = weights.abs().mean() + 0.1
            weights.add_(0.3 * size * torch.randn_like(weights))
    network.save_pretrained(folder / "unet")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return network


def on_device(model):
    return jax.tree.map(jnp.asarray, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_equal(name, tmp_path):
    config = SMALL | CONFIGS[name]
    fourier = name == "ncsnpp"
    network = original(tmp_path, NOISE_LEVELS if fourier else SCHEDULER, **config)
    found = import_diffusers(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *found.meta.shape)).astype(np.float32)
    labels, given = None, None
    if "num_class_embeds" in config:
        labels = np.array([3, 0])
    elif config.get("class_embed_type") == "timestep":
        labels = np.array([3, 700])
    elif config.get("class_embed_type") == "identity":
        labels = rng.standard_normal((2, 64)).astype(np.float32)
    if labels is not None:
        given = torch.from_numpy(labels)
    run = jax.jit(jax.vmap(on_device(found.model.network)))
    for t in (0.7, 431.0) if fourier else (0.0, 431.0):
        with torch.no_grad():
            images = torch.from_numpy(x.transpose(0, 3, 1, 2))
            out = network(images, torch.tensor(t), given).sample.numpy()
        out = out.transpose(0, 2, 3, 1)[..., : x.shape[-1]]
        mine = run(x, jnp.full(2, t), labels)
        assert np.abs(mine - out).max() < 1e-4 * np.abs(out).max()


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_samples_are_those_of_diffusers_own_ddim(prediction, tmp_path):
    """DDIM is Euler's method for x/alpha in the clock sigma/alpha."""
    steps = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    one = {"block_out_channels": (16,), "down_block_types": ("AttnDownBlock2D",)}
    one |= {"up_block_types": ("UpBlock2D",), "mid_block_type": None}
    network = original(tmp_path, SCHEDULER | steps | {"prediction_type": prediction}, **one)
    sampler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    sampler.set_timesteps(10)
    assert sampler.timesteps.tolist() == list(range(900, -1, -100))
    x = np.random.default_rng(2).standard_normal((8, 8, 3)).astype(np.float32)
    images = torch.from_numpy(x.transpose(2, 0, 1)[None])
    with torch.no_grad():
        for t in sampler.timesteps:
            images = sampler.step(network(images, t).sample, t, images).prev_sample
    right = images[0].numpy().transpose(1, 2, 0)

    found = import_diffusers(tmp_path)
    # This sampler starts below the noise of the last step that the network was trained at.
    spec = replace(found.meta.model, t_max=900.0)
    model = build(spec, on_device(found.model.network))
    moved = repath(model, edm())
    path = model.path
    grid = jnp.stack([path.sigma(t) / path.alpha(t) for t in jnp.arange(900.0, -1, -100)])
    grid = grid.at[0].set(moved.t_max).at[-1].set(moved.t_min)

    @jax.jit
    def draw(model, x):
        return sample(model, x, grid, key=jax.random.key(0), solver=diffrax.Euler()).x

    drawn = draw(moved, x / path.alpha(model.t_max)) * path.alpha(model.t_min)
    assert np.abs(drawn - right).max() < 1e-3 * np.abs(right).max()
    assert np.abs(drawn - x).max() > 0.1  # it moved
