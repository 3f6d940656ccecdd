"""Score alignment against flows whose Jacobian is known.

A Gaussian's flow scales each principal direction; in one dimension the flow is the map of
quantiles, whatever the density, so that dx_0/dx_T = p_T(x_T)/p_0(x_0).
"""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.evaluation.alignment import Alignment, align, alignment_statistics
from dgjax.guidance.guide import with_score_weight
from dgjax.sampling.sample import sample
from dgjax.typing import inner

EXACT = dgjax.Exact()
KEY = jax.random.key(0)
W_MIN, W_MAX = 0.05, 20.0


def model_of(mixture):
    path = dgjax.edm(7.0)
    return dgjax.closed_form(mixture, path, t_min=W_MIN ** (1 / 7), t_max=W_MAX ** (1 / 7))


@functools.partial(jax.jit, static_argnames=("steps", "solver"))
@functools.partial(jax.vmap, in_axes=(None, 0, None, None))
def aligned(model, x, steps, solver):
    grid = dgjax.grid_karras(model, steps)
    return align(model, x, grid, key=KEY, divergence=EXACT, solver=solver)


def score(model, t, x):
    return jax.grad(lambda x: dgjax.log_density(model, t, x))(x)


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


@pytest.mark.slow
def test_gaussian_flow_in_closed_form_and_order():
    """On a path with alpha below 1, so that the flow scales by alpha as well."""
    variances = jnp.array([4.0, 1.0, 0.25, 0.01])
    mixture = dgjax.gaussian(jnp.ones(4), jnp.diag(variances))
    path = dgjax.rectified_flow()
    ends = [path.time(jnp.asarray(-2 * np.log(w))) for w in (W_MIN, W_MAX)]
    model = dgjax.closed_form(mixture, path, t_min=ends[0], t_max=ends[1])
    alphas = [path.alpha(t) for t in ends]
    latents = alphas[1] * jax.vmap(lambda key: mixture.sample(key, W_MAX))(jax.random.split(KEY, 5))
    starts = jax.vmap(lambda x: score(model, model.t_max, x))(latents)
    scale = alphas[0] / alphas[1] * jnp.sqrt((variances + W_MIN**2) / (variances + W_MAX**2))
    pushed = starts * scale[None]
    ends = alphas[0] + (latents - alphas[1]) * scale[None]
    scores = jax.vmap(lambda x: score(model, model.t_min, x))(ends)
    # For a linear flow with this score, <s, v> keeps its first value |s_T|^2.
    prior = jnp.sum(starts**2, 1)

    def errors(steps, solver):
        run = aligned(model, latents, steps, solver)
        np.testing.assert_allclose(run.prior, prior, rtol=1e-9)
        assert np.all(run.aligned)
        cosine = prior / jnp.sqrt(jnp.sum(scores**2, 1) * jnp.sum(pushed**2, 1))
        return np.array(
            [
                np.abs(run.pushed - pushed).max() / np.abs(pushed).max(),
                np.abs(run.product / prior - 1).max(),
                np.abs(run.omega / prior - 1).max(),
                np.abs(run.cosine - cosine).max(),
            ]
        )

    heun = [errors(steps, diffrax.Heun()) for steps in (64, 128)]
    falling = [0, 1, 3]  # omega is exact here: the divergence is the same everywhere
    assert np.all(np.abs(np.log2(heun[0] / heun[1])[falling] - 2) < 0.3)
    assert heun[1][2] < 1e-12
    best = errors(128, diffrax.Dopri5())
    assert np.all(best < 1e-6)


@pytest.mark.slow
def test_quantile_map_and_latents_that_are_not_aligned():
    """Two modes: what moves into a mode's far side goes down where the prior went up."""
    mixture = dgjax.kernel_density(jnp.array([[-1.0], [1.2]]), 0.3, jnp.array([0.4, 0.6]))
    model = model_of(mixture)
    latents = jnp.linspace(-30, 30, 40)[:, None]
    run = aligned(model, latents, 96, diffrax.Dopri5())
    start = jax.vmap(lambda x: score(model, model.t_max, x))(latents)[:, 0]
    end = jax.vmap(lambda x: score(model, model.t_min, x))(run.x)[:, 0]
    log_p = [
        jax.vmap(lambda x, t=t: dgjax.log_density(model, t, x))(x)
        for t, x in ((model.t_max, latents), (model.t_min, run.x))
    ]
    slope = jnp.exp(log_p[0] - log_p[1])
    np.testing.assert_allclose(run.pushed[:, 0], slope * start, rtol=1e-4)
    np.testing.assert_allclose(run.product, end * slope * start, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(run.omega, run.product, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(run.cosine, np.sign(end * start), atol=1e-9)
    assert np.all(run.aligned == (run.angle < 90))
    assert 5 < np.sum(~run.aligned) < 35

    found = alignment_statistics(run)
    assert found.latents == 40
    assert found.failed == 0
    assert found.share == np.mean(end * start > 0)
    assert found.agreement == 1
    assert found.largest_angle == pytest.approx(180)
    assert found.mean_angle == pytest.approx(180 * (1 - found.share))


@pytest.fixture(scope="module")
def model16(mixture16):
    return model_of(mixture16.model)


@pytest.fixture(scope="module")
def latents16(mixture16):
    keys = jax.random.split(jax.random.key(1), 48)
    return jax.vmap(lambda key: mixture16.model.sample(key, W_MAX))(keys)


@pytest.mark.slow
def test_the_two_forms_agree(model16, latents16):
    # One latent here passes so near a boundary between modes that it stretches 10^4-fold.
    run = aligned(model16, latents16, 128, diffrax.Dopri5())
    assert np.std(run.product / run.prior) > 0.02
    assert correlation(run.product / run.prior, run.omega / run.prior) > 0.9999
    np.testing.assert_allclose(run.product, run.omega, rtol=1e-3)

    coarse = aligned(model16, latents16, 32, diffrax.Heun())
    assert correlation(coarse.product, coarse.omega) > 0.999
    # Solver errors of v_t and of x_t meet the large scores of the end; omega has none of those.
    miss = [np.median(np.abs(a / run.omega - 1)) for a in (coarse.product, coarse.omega)]
    assert miss[1] < 0.2 * miss[0], miss


@pytest.mark.slow
def test_pushed_is_the_derivative_of_the_flow(model16, latents16):
    """Finite differences of the sampler itself: of its sample, and of its tracked log-density."""
    grid = dgjax.grid_karras(model16, 16)
    steer = dgjax.density_guidance(0.6)
    options = {"key": KEY, "divergence": EXACT, "guides": (steer,)}

    @jax.jit
    @jax.vmap
    def both(x):
        run = align(model16, x, grid, **options)
        direction = score(model16, model16.t_max, x)
        up, down = (sample(model16, x + h * direction, grid, **options) for h in (0.01, -0.01))
        return run, (up.x - down.x) / 0.02, (up.log_density - down.log_density) / 0.02

    run, pushed, omega = both(latents16[:8])
    np.testing.assert_allclose(run.pushed, pushed, atol=1e-6 * np.abs(pushed).max())
    np.testing.assert_allclose(run.omega, omega, rtol=1e-5)
    final = jax.vmap(lambda x: score(model16, model16.t_min, x))(run.x)
    np.testing.assert_allclose(run.product, jax.vmap(inner)(final, run.pushed), rtol=1e-9)
    assert run.pushed.shape == latents16[:8].shape


@pytest.mark.slow
def test_guided_flow_has_both_forms_too(model16, latents16):
    """The tracked log-density is log p_t under any drift, and omega is its derivative."""
    grid = dgjax.grid_karras(model16, 64)

    @jax.jit
    @jax.vmap
    def guided(x):
        # Half the score everywhere: a drift without a kink.
        halve = lambda drift, local: with_score_weight(drift, local, 0.5)
        options = {"guides": (halve,), "solver": diffrax.Dopri5()}
        return align(model16, x, grid, key=KEY, divergence=EXACT, **options)

    run = guided(latents16[:8])
    plain = aligned(model16, latents16[:8], 64, diffrax.Dopri5())
    np.testing.assert_allclose(run.product, run.omega, rtol=1e-3)
    assert np.all(np.abs(run.omega / plain.omega - 1) > 0.1)


@pytest.mark.slow
def test_probes(model16, latents16):
    """omega is unbiased and states its error; v and the cosine have no probe in them."""
    grid = dgjax.grid_karras(model16, 16)

    @jax.jit
    @jax.vmap
    def runs(key):
        probes = dgjax.Hutchinson(8)
        return align(model16, latents16[0], grid, key=key, divergence=probes)

    run = runs(jax.random.split(jax.random.key(2), 200))
    exact = align(model16, latents16[0], grid, key=KEY, divergence=EXACT)
    spread = float(np.std(run.omega))
    assert abs(np.mean(run.omega) - exact.omega) < 4 * spread / np.sqrt(200)
    assert float(np.sqrt(np.mean(run.standard_error**2))) == pytest.approx(spread, rel=0.15)
    assert exact.standard_error == 0
    np.testing.assert_allclose(run.cosine, exact.cosine, rtol=1e-12)


@pytest.mark.slow
def test_condition_reaches_flow_and_scores(mixture2):
    def denoiser(y, w, cond):
        return mixture2.model(y - cond, w) + cond

    conditional = dgjax.field(
        denoiser, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.1, t_max=10.0
    )
    plain = dgjax.closed_form(mixture2.model, dgjax.edm(), t_min=0.1, t_max=10.0)
    grid, x, shift = dgjax.grid_karras(plain, 8), jnp.array([6.0, -8.0]), jnp.array([0.5, 2.0])
    moved = align(conditional, x + shift, grid, key=KEY, divergence=EXACT, cond=shift)
    still = align(plain, x, grid, key=KEY, divergence=EXACT)
    for name in ("cosine", "product", "omega", "prior", "pushed"):
        np.testing.assert_allclose(getattr(moved, name), getattr(still, name), rtol=1e-6)


def made_up(product, omega=None):
    product = jnp.asarray(product)
    omega = product if omega is None else jnp.asarray(omega)
    blank = jnp.zeros_like(product)
    return Alignment(product, product, omega, blank, blank, blank, blank, blank)


def test_statistics_count_what_failed_and_give_wilsons_interval():
    found = alignment_statistics(
        made_up([0.5, 1.0, -0.5, jnp.nan, 0.5], [0.1, -0.1, -0.1, 0.1, 0.1]), confidence=0.9
    )
    assert (found.latents, found.failed, found.share, found.agreement) == (4, 1, 0.75, 0.75)
    z, n, p = 1.6448536269514722, 4, 0.75
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert [found.low, found.high] == pytest.approx([middle - half, middle + half])
    assert found.mean_angle == pytest.approx(60)
    assert found.largest_angle == pytest.approx(120)

    everyone = alignment_statistics(made_up(jnp.ones(100)))
    assert everyone.high == 1
    assert everyone.low == pytest.approx(100 / (100 + 1.959963984540054**2))


def test_wrong_use(mixture2):
    model = model_of(mixture2.model)
    grid, x = dgjax.grid_karras(model, 4), jnp.ones(2)
    with pytest.raises(ValueError, match="NaN"):
        align(model, x * jnp.nan, grid, key=KEY)
    with pytest.raises(ValueError, match="floating"):
        align(model, jnp.ones(2, int), grid, key=KEY)
    with pytest.raises(ValueError, match="at least one step"):
        align(model, x, grid[0], key=KEY)
    with pytest.raises(ValueError, match="decreases"):
        align(model, x, grid[::-1], key=KEY)
    with pytest.raises(ValueError, match="vmap align"):
        alignment_statistics(made_up(0.5))
    with pytest.raises(ValueError, match="none of 2"):
        alignment_statistics(made_up([jnp.nan, jnp.nan]))
    with pytest.raises(ValueError, match="confidence"):
        alignment_statistics(made_up([1.0]), confidence=95)
