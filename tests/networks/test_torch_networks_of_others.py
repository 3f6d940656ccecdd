"""Networks of other projects by `torch_network`, against the same log-density by PyTorch alone.

The other side is written here in PyTorch only: Runge-Kutta steps of its own along the
probability-flow ODE, and the trace of its own Jacobian. Weights are random.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.networks import torch_network
from dgjax.sampling.solvers import RK4

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow

STEPS = 6
W_MIN, W_MAX = 0.2, 5.0


class Case(NamedTuple):
    """A network, how it is called, and a sample."""

    module: Any
    call: Callable[..., Any]
    shape: tuple[int, ...]  # of a sample of dgjax
    cond: dict[str, np.ndarray]
    time_scale: float = 1000.0
    output: Callable[[Any], Any] | None = None
    dtype: str = "float64"


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def unet2d_condition():
    """Stable Diffusion's U-Net at a small width, with prompt embeddings."""
    diffusers = pytest.importorskip("diffusers")
    module = diffusers.UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return Case(module, module, (4, 4, 4), {"encoder_hidden_states": noise(5, 12)})


def sd3_transformer():
    diffusers = pytest.importorskip("diffusers")
    module = diffusers.SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        caption_projection_dim=8,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        pos_embed_max_size=4,
    )
    cond = {"encoder_hidden_states": noise(5, 12), "pooled_projections": noise(6, seed=1)}
    call = lambda x, t, **cond: module(hidden_states=x, timestep=t, **cond)
    return Case(module, call, (4, 4, 4), cond)


def flux_transformer():
    diffusers = pytest.importorskip("diffusers")
    module = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        axes_dims_rope=(4, 2, 2),
    )
    height, width = np.mgrid[:4, :4].reshape(2, 1, 16)
    places = np.concatenate([0 * height, height, width]).T.astype(float)

    def call(x, t, encoder_hidden_states, pooled_projections):
        """Pixels are tokens, which have a place; the module keeps places of no batch."""
        out = module(
            hidden_states=x.flatten(2).transpose(1, 2),
            timestep=t,
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            img_ids=torch.tensor(places),
            txt_ids=torch.zeros(5, 3, dtype=x.dtype),
        )
        return out.sample.transpose(1, 2).reshape(x.shape)

    cond = {"encoder_hidden_states": noise(5, 12), "pooled_projections": noise(6, seed=1)}
    return Case(module, call, (4, 4, 4), cond, 1.0)


def dit():
    diffusers = pytest.importorskip("diffusers")
    module = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=1,
        sample_size=4,
        num_embeds_ada_norm=10,
    )
    call = lambda x, t, label: module(x, timestep=t, class_labels=label)
    cond = {"label": np.array(3)}
    return Case(module, call, (4, 4, 4), cond, output=lambda out: out.sample[:, :4])


def denoising_diffusion_pytorch():
    library = pytest.importorskip("denoising_diffusion_pytorch")
    module = library.Unet(dim=8, dim_mults=(1, 2), channels=3, flash_attn=False)
    return Case(module, module, (8, 8, 3), {})


def azula_denoiser():
    noise_schedules = pytest.importorskip("azula.noise")
    denoise = pytest.importorskip("azula.denoise")
    nn = pytest.importorskip("azula.nn.unet")

    class Backbone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            options = {"hid_channels": (16, 32), "hid_blocks": (1, 1), "mod_features": 8}
            self.net = nn.UNet(3, 3, **options)
            self.embedding = torch.nn.Linear(1, 8)

        def forward(self, x, t):
            return self.net(x, self.embedding(t.reshape(-1, 1)))

    module = denoise.KarrasDenoiser(Backbone(), noise_schedules.VESchedule())
    return Case(module, module, (8, 8, 3), {}, 0.1, output=lambda out: out.mean)


def torchcfm_unet():
    models = pytest.importorskip("torchcfm.models.unet")
    module = models.UNetModel(
        dim=(3, 8, 8),
        num_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_resolutions="4",
    )
    return Case(module, lambda x, t: module(t, x), (8, 8, 3), {}, 1.0, None, "float32")


CASES = {
    "diffusers UNet2DConditionModel": unet2d_condition,
    "diffusers SD3Transformer2DModel": sd3_transformer,
    "diffusers FluxTransformer2DModel": flux_transformer,
    "diffusers DiTTransformer2DModel": dit,
    "denoising_diffusion_pytorch Unet": denoising_diffusion_pytorch,
    "azula KarrasDenoiser": azula_denoiser,
    "torchcfm UNetModel": torchcfm_unet,
}


def by_torch_alone(velocity, x, ts):
    """Log-density of x in nats, and its latent: RK4 from data to noise, N(0, ts[-1]^2 I) there."""

    def rate(x, t):
        jacobian = torch.func.jacrev(lambda x: velocity(x, t))(x).reshape(x.numel(), x.numel())
        return velocity(x, t), torch.trace(jacobian)

    gained = 0.0
    for t0, t1 in itertools.pairwise(ts):
        h, middle = t1 - t0, (t0 + t1) / 2
        a, da = rate(x, t0)
        b, db = rate(x + h / 2 * a, middle)
        c, dc = rate(x + h / 2 * b, middle)
        d, dd = rate(x + h * c, t1)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
        gained = gained + h / 6 * (da + 2 * db + 2 * dc + dd)
    prior = -0.5 * (x**2).sum() / ts[-1] ** 2 - x.numel() / 2 * np.log(2 * np.pi * ts[-1] ** 2)
    return float(gained + prior), x.numpy()


@pytest.mark.parametrize("name", CASES)
def test_log_density_is_that_of_pytorch_alone(name):
    torch.manual_seed(0)
    case = CASES[name]()
    dtype = getattr(torch, case.dtype)
    module = case.module.to(dtype).eval()
    for parameter in module.parameters():
        parameter.data = parameter.data + 0.02 * torch.randn_like(parameter)
    network = torch_network(case.call, time_scale=case.time_scale, dtype=dtype, output=case.output)
    predicts = dgjax.NoisePrediction()
    model = dgjax.field(network, dgjax.edm(), predicts, t_min=W_MIN, t_max=W_MAX, shape=case.shape)
    ts = np.geomspace(W_MIN, W_MAX, STEPS + 1)
    x = noise(*case.shape, seed=3)
    cond = {k: jnp.asarray(v) for k, v in case.cond.items()} or None
    found = jax.jit(
        lambda model, x: dgjax.likelihood(
            model,
            x,
            jnp.asarray(ts[::-1]),
            key=jax.random.key(0),
            cond=cond,
            divergence=dgjax.Exact(),
            solver=RK4(),
        )
    )(model, jnp.asarray(x))

    given = {
        k: torch.tensor(v)[None].to(dtype if v.dtype == float else torch.int64)
        for k, v in case.cond.items()
    }

    def velocity(x, t):
        out = case.call(
            x[None].to(dtype), torch.full((1,), float(case.time_scale * t), dtype=dtype), **given
        )
        return (getattr(out, "sample", out) if case.output is None else case.output(out))[0]

    first = torch.tensor(x).movedim(-1, 0)
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.no_grad(), math:
        alone, _ = by_torch_alone(velocity, first, ts)
    print(f"\n{name}: {float(found.log_density):.6f} {alone:.6f} nats, D = {x.size}")
    # Some of these networks compute embeddings of the time in float32 whatever the dtype.
    rtol = 1e-6 if case.dtype == "float64" else 1e-5
    np.testing.assert_allclose(found.log_density, alone, rtol=rtol)


def test_the_dial_turns_a_network_of_prompts_through_the_bridge():
    """Five q from one latent: tracked log-densities rise, and at q = 1/2 the way back agrees.

    Random weights are the gradient of no density, so guided samples have no other log-density.
    """
    torch.manual_seed(0)
    case = CASES["diffusers UNet2DConditionModel"]()
    module = case.module.to(torch.float64).eval()
    network = torch_network(module, time_scale=case.time_scale, dtype=torch.float64)
    predicts = dgjax.NoisePrediction()
    model = dgjax.field(network, dgjax.edm(), predicts, t_min=W_MIN, t_max=W_MAX, shape=case.shape)
    cond = {k: jnp.asarray(v) for k, v in case.cond.items()}
    grid = dgjax.grid_logsnr(model, 12)
    latent = W_MAX * jnp.asarray(noise(*case.shape, seed=4))
    solve = {"key": jax.random.key(0), "cond": cond, "divergence": dgjax.Exact()}

    @jax.jit
    def run(model, q):
        found = dgjax.sample(model, latent, grid, guides=dgjax.density_guidance(q), **solve)
        again = dgjax.likelihood(model, found.x, dgjax.grid_logsnr(model, 24), **solve)
        return found.log_density, again.log_density

    tracked, again = jax.vmap(run, (None, 0))(model, jnp.array([0.3, 0.4, 0.5, 0.6, 0.7]))
    print("\nq = 0.3 ... 0.7:", *(f"{value:.2f}" for value in tracked), "nats")
    assert np.all(np.diff(tracked) > 1)
    assert float(tracked[2]) == pytest.approx(float(again[2]), abs=0.5)
