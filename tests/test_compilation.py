"""One trace serves every number: sweeps never recompile. And what is not read is not computed.

Tracing alone tells (`jax.jit(...).trace` fills the same cache as a call), so most of these
compile nothing.
"""

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.guidance.high_density import HighDensity
from dgjax.guidance.target import Profile
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import RK4


@pytest.fixture(scope="module")
def model():
    return dgjax.closed_form(
        dgjax.gaussian(jnp.zeros(4), 1.0), dgjax.edm(7.0), t_min=0.6, t_max=1.4
    )


@pytest.fixture(scope="module")
def latents(model):
    return jax.random.normal(jax.random.key(0), (2, 4))


def counted(function):
    """`function` under jit, failing at a second trace."""
    chex.clear_trace_counter()
    return jax.jit(chex.assert_max_traces(function, n=1))


KEYS = [jax.random.key(i) for i in range(3)]


def test_the_counter_counts(model, latents):
    """What must never happen, made to happen: a number that is static."""

    def solve(x, guide):
        return sample(model, x, dgjax.grid_uniform(model, 2), key=KEYS[0], guides=(guide,)).x

    run = counted(solve)
    run.trace(latents[0], dgjax.high_density(0.0))
    with pytest.raises(AssertionError, match="traced > 1"):
        run.trace(latents[0], HighDensity(0.0))  # a Python number: weakly typed


def test_sweeping_a_sampler(model, latents):
    """q, threshold, key, latent, t_min and the edges and height of the noise window."""

    @counted
    def run(model, x, guides, term, key):
        grid = dgjax.grid_karras(model, 3)
        return sample(model, x, grid, key=key, guides=guides, noise=term, solver=RK4())

    path = dgjax.edm(7.0)
    for i, (q, low, high, height) in enumerate(
        [(0.2, -1.0, 1.0, 1), (0.5, -jnp.inf, 0, 0.0), (np.float32(0.7), 0, np.inf, jnp.ones(()))]
    ):
        guides = dgjax.high_density(low), dgjax.density_guidance(q, bound=1 + i)
        term = dgjax.level_set_noise(dgjax.window(height, low=low, high=high))
        mixture = dgjax.gaussian(jnp.full(4, 1.0 * i), 1.0 + i)
        swept = dgjax.closed_form(mixture, path, t_min=0.6 + 0.01 * i, t_max=1.4)
        run.trace(swept, latents[0] + i, guides, term, KEYS[i])


def test_sweeping_each_constructor(model):
    """Whatever is given, a Python number, NumPy's or an array, the leaves are of one type."""
    profile = Profile(*jnp.ones((3, 4)))
    makers = {
        "q": dgjax.density_guidance,
        "nats": lambda v: dgjax.density_guidance_nats(v, model, 4),
        "rate": dgjax.rate_guidance,
        "high density": dgjax.high_density,
        "target": lambda v: dgjax.target_guidance(v, model, profile),
        "level set": dgjax.level_set_noise,
        "matched": dgjax.noise_matched,
        "published": dgjax.published_stochastic,
        "reverse": dgjax.reverse_sde,
        "churn": lambda v: dgjax.churn(v, low=-v, high=2 * v),
        "window": lambda v: dgjax.window(v, low=-v, high=2 * v),
    }
    for name, make in makers.items():
        kinds = [
            jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), make(v))
            for v in (0.5, np.float32(0.25), jnp.asarray(0.75))
        ]
        assert kinds[0] == kinds[1] == kinds[2], name


def test_sweeping_targets(model, latents):
    profile = Profile(jnp.linspace(-5, 7, 4), 3 * jnp.arange(3.0, -1, -1), jnp.ones(4))

    @counted
    def loop(x, guide, key):
        grid = dgjax.grid_karras(model, 3)
        return sample(model, x, grid, key=key, guides=(guide,))

    @counted
    def shot(x, target, low, key):
        return dgjax.shoot(model, x, dgjax.grid_karras(model, 3), target, low=low, key=key)

    for i, target in enumerate((-4.0, -5.0)):
        loop.trace(latents[0], dgjax.target_guidance(target, model, profile), KEYS[i])
        shot.trace(latents[0], jnp.asarray(target), jnp.asarray(0.1 + 0.1 * i), KEYS[i])


def test_sweeping_likelihood_and_the_prior(model, latents):
    @counted
    def run(model, x, key, quantile, tolerance):
        control = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        grid = dgjax.grid_logsnr(model, 3)
        out = likelihood(model, x, grid, key=key, controller=control)
        return out, dgjax.prior_guidance(model, out.latent, quantile)

    for i, quantile in enumerate((0.3, 0.5)):
        run.trace(model, latents[i], KEYS[i], jnp.asarray(quantile), jnp.asarray(0.1**i))


@pytest.mark.slow
def test_an_unread_divergence_costs_nothing(mixture16):
    """XLA drops it when the log-density is not kept. Methods that look back, such as Dopri5 and
    Multistep, carry it along: for them there is `Untracked`."""
    edm = dgjax.closed_form(mixture16.model, dgjax.edm(), t_min=0.05, t_max=20.0)

    def flops(trace, keep):
        def run(x, key):
            grid = dgjax.grid_karras(edm, 8)
            return keep(sample(edm, x, grid, key=key, divergence=trace, solver=diffrax.Heun()))

        compiled = jax.jit(run).lower(jnp.ones((2, 8)), KEYS[0]).compile()
        return compiled.cost_analysis()["flops"]

    free = flops(dgjax.Untracked(), lambda out: out.x)
    assert flops(dgjax.Hutchinson(8), lambda out: out.x) < 1.02 * free
    assert flops(dgjax.Hutchinson(8), lambda out: (out.x, out.log_density)) > 2 * free


def test_the_steps_of_a_batch_are_batched_once():
    """Constants that became a batch on the way would have JAX trace all steps a second time."""
    batched = []

    @jax.custom_batching.custom_vmap
    def seen(x):
        return x

    @seen.def_vmap
    def _(size, axes, x):
        batched.append(size)
        return x, axes[0]

    network = lambda x, t, cond: x / (1 + t**2) + 0 * seen(jax.lax.stop_gradient(x))
    model = dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.02, t_max=80.0)
    grid, key, x = dgjax.grid_logsnr(model, 4), jax.random.key(0), jnp.ones((3, 2))
    guides = (dgjax.density_guidance(0.7),)
    for options in ({}, {"guides": guides}, {"solver": dgjax.Multistep(2, 2, 2)}):
        batched.clear()
        run = lambda x, options=options: dgjax.sample(model, x, grid, key=key, **options)
        jax.jit(jax.vmap(run)).lower(x)
        assert batched == [3]
