"""Networks of latent diffusion give what PyTorch gives, with every weight drawn at random."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgjax.checkpoints.checkpoint import load
from dgjax.importing import import_diffusers, load_state_dict
from dgjax.model.divergence import Untracked
from dgjax.networks import AutoencoderKL, DiT
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import SOLVERS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

RNG = np.random.default_rng(0)


def drawn(module):
    """`module` with all weights drawn anew: none is zero, and no norm is the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            size = 0.3 if weight.ndim == 1 else 0.7 / np.sqrt(weight[0].numel())
            one = "norm" in name and name.endswith("weight")
            weight.copy_(float(one) + size * torch.randn(weight.shape, generator=generator))
    return module.eval()


def imported(module, make):
    weights = {name: array.numpy() for name, array in module.state_dict().items()}
    network = load_state_dict(nnx.eval_shape(make), weights, "the test")
    return jax.tree.map(jnp.asarray, network)


def to_torch(x):
    return torch.tensor(np.moveaxis(x, -1, 0)[None])


def to_numpy(x):
    return np.moveaxis(x[0].numpy(), 0, -1)


def assert_equal(ours, theirs):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


DIT = {
    "one patch size, learned variance": (
        {"num_layers": 2, "out_channels": 8},
        {"num_layers": 2, "out_channels": 8},
    ),
    "other patches, norm and activation": (
        {
            "num_layers": 1,
            "patch_size": 4,
            "attention_bias": False,
            "activation_fn": "gelu",
            "norm_elementwise_affine": True,
            "norm_eps": 1e-2,
        },
        {
            "num_layers": 1,
            "patch_size": 4,
            "attention_bias": False,
            "activation": "gelu",
            "norm_affine": True,
            "norm_eps": 1e-2,
        },
    ),
}


@pytest.mark.parametrize("case", DIT)
def test_dit_is_diffusers_own(case, float32):
    theirs, ours = DIT[case]
    size = {"num_attention_heads": 2, "attention_head_dim": 8}
    module = drawn(
        diffusers.DiTTransformer2DModel(**size, sample_size=8, num_embeds_ada_norm=5, **theirs)
    )
    network = imported(
        module, lambda: DiT((8, 8, 4), num_classes=5, **size, **ours, rngs=nnx.Rngs(0))
    )
    run = jax.jit(lambda network, x, t, label: network(x, t, label))
    for t, label in ((0.0, 1), (731.5, 4), (999.0, 5)):
        x = RNG.standard_normal((8, 8, 4)).astype(np.float32)
        with torch.no_grad():
            out = module(to_torch(x), torch.tensor([t]), torch.tensor([label])).sample
        # The variance, where there is one, is dropped.
        assert_equal(run(network, x, jnp.float32(t), label), to_numpy(out)[..., :4])
    # The label after the last, here that of the last call, is no label.
    assert_equal(run(network, x, jnp.float32(t), None), to_numpy(out)[..., :4])


KL = {
    "as usual": ({}, {}),
    "without quant convolutions": (
        {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1},
        {"quant": False, "post_quant": False, "shift_factor": 0.1},
    ),
    "three levels, no attention": (
        {"block_out_channels": (8, 16, 8), "mid_block_add_attention": False, "layers_per_block": 2},
        {"channels": (8, 16, 8), "attention": False, "layers": 2},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", KL)
def test_autoencoder_is_diffusers_own(case, float32):
    theirs, ours = KL[case]
    theirs = {"block_out_channels": (8, 16), **theirs}
    ours = {"channels": (8, 16), "layers": 1, **ours}
    levels = len(ours["channels"])
    module = drawn(
        diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            norm_num_groups=4,
            latent_channels=2,
            scaling_factor=0.4,
            **theirs,
        )
    )
    shift = module.config.shift_factor or 0.0
    shape = (4, 6, 2)
    network = imported(
        module, lambda: AutoencoderKL(shape, groups=4, scaling_factor=0.4, **ours, rngs=nnx.Rngs(0))
    )
    image = RNG.standard_normal(network.image_shape).astype(np.float32)
    x = RNG.standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        z = module.encode(to_torch(image)).latent_dist
        decoded = to_numpy(module.decode(to_torch(x) / 0.4 + shift).sample)
    mean, log_variance = jax.jit(lambda network, image: network.posterior(image))(network, image)
    assert_equal(mean, (to_numpy(z.mean) - shift) * 0.4)
    assert_equal(jnp.exp(0.5 * log_variance), to_numpy(z.std) * 0.4)
    assert_equal(jax.jit(lambda network, x: network.decode(x))(network, x), decoded)


@pytest.fixture(scope="module")
def dit_folder(tmp_path_factory):
    """A pipeline of random weights, as diffusers saves it."""
    transformer = drawn(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=2,
            out_channels=4,
            num_layers=1,
            sample_size=4,
            num_embeds_ada_norm=3,
        )
    )
    with torch.no_grad():  # of the size of noise
        transformer.proj_out_2.weight.mul_(0.02)
    vae = drawn(
        diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 4),
            norm_num_groups=2,
            latent_channels=2,
            scaling_factor=0.3,
        )
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(0.3)
    pipeline = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())
    folder = tmp_path_factory.mktemp("dit")
    pipeline.save_pretrained(folder)
    # Published ones name their classes, and diffusers reads the names but does not save them.
    index = folder / "model_index.json"
    names = {"id2label": {"0": "cat", "1": "dog", "2": "owl"}}
    index.write_text(json.dumps(json.loads(index.read_text()) | names))
    return folder, transformer, vae


@pytest.mark.slow
def test_a_dit_pipeline_samples_latents_and_shows_pixels(dit_folder, tmp_path, run):
    folder, transformer, vae = dit_folder
    code, printed, complaint = run("import", folder, tmp_path / "model")
    assert code == 0, complaint
    assert "latents 4 x 4 x 2" in printed
    assert "8 x 8 x 3" in printed
    model, meta = load(tmp_path / "model")
    assert meta.latent
    t = 437.0
    x = RNG.standard_normal((4, 4, 2)).astype(np.float32)
    with torch.no_grad():
        out = transformer(to_torch(x), torch.tensor([t]), torch.tensor([2])).sample
    assert_equal(model.pair(jnp.float32(t), x, 2).eps, to_numpy(out)[..., :2])
    options = ("--class", "dog", "--num", 2, "--q", 0.5, "--steps", 8, "--out", tmp_path / "out")
    code, _, complaint = run("sample", "--model", tmp_path / "model", *options)
    assert code == 0, complaint
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        x, pixels = arrays["x"][0], arrays["pixels"][0]
    with torch.no_grad():
        images = vae.decode(torch.tensor(np.moveaxis(x, -1, 1)) / 0.3).sample.numpy()
    expected = np.clip(127.5 * np.moveaxis(images, 1, -1) + 127.5, 0, 255)
    assert expected.std() > 5
    assert np.abs(pixels - expected).max() < 1


@pytest.mark.slow
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_is_diffusers_own(shift, tmp_path, float32):
    """The network's velocity, its clock, the noise it was trained on, and a run of Euler steps."""
    unet = drawn(
        diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(4, 4),
            norm_num_groups=2,
            attention_head_dim=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    unet.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    model = import_diffusers(tmp_path / "unet", scheduler=tmp_path / "scheduler").model
    model = jax.tree.map(jnp.asarray, model)
    assert float(model.t_min) == pytest.approx(scheduler.sigma_min, rel=1e-6)
    grid = jnp.linspace(model.t_max, model.t_min, 7)
    x, eps = RNG.standard_normal((2, 8, 8, 1)).astype(np.float32)
    t = scheduler.timesteps[300]
    noisy = to_numpy(scheduler.scale_noise(to_torch(x), t[None], to_torch(eps)))
    sigma = jnp.float32(t / 1000)
    np.testing.assert_allclose(
        model.path.alpha(sigma) * x + model.path.sigma(sigma) * eps, noisy, atol=1e-5
    )

    # A shift would move these sigmas too: they are given as they are after it.
    unshifted = np.asarray(grid) / (shift - (shift - 1) * np.asarray(grid))
    scheduler.set_timesteps(sigmas=unshifted)
    state = to_torch(eps)
    with torch.no_grad():
        for t in scheduler.timesteps[:-1]:
            state = scheduler.step(unet(state, t).sample, t, state).prev_sample
    found = sample(
        model, eps, grid, key=jax.random.key(0), divergence=Untracked(), solver=SOLVERS["euler"]()
    )
    assert np.abs(to_numpy(state) - eps).max() > 0.1
    assert_equal(found.x, to_numpy(state))
