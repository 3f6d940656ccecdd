"""Omegance and Detail Daemon: their formulas, and log-density along them on a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.guidance.detail_daemon import DetailDaemon

KEY = jax.random.key(0)
SHAPE = (5,)
W_MIN, W_MAX = 0.05, 40.0


def on(path, mixture):
    t_min, t_max = (path.time(jnp.asarray(-2 * np.log(w))) for w in (W_MIN, W_MAX))
    return dgjax.closed_form(mixture, path, t_min=t_min, t_max=t_max)


def cloud():
    factors = jax.random.normal(jax.random.key(1), (3, 5, 5)) / 2
    covariances = 0.1 * jnp.eye(5) + factors @ factors.transpose(0, 2, 1)
    means = 2 * jax.random.normal(KEY, (3, 5)) + 1
    return dgjax.gaussian_mixture(jnp.array([0.2, 0.5, 0.3]), means, covariances)


def make(name, model, grid):
    if name == "omegance":
        return dgjax.omegance(
            dgjax.schedule([0.9, 1.2], [-4.0, 3.0]), part=dgjax.region([1.0, 1, 0.5, 0, 1])
        )
    return dgjax.detail_daemon(0.2, model, grid, start=0.1, end=0.9, bias=0.4, exponent=1.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["omegance", "detail_daemon"])
def test_log_density_along_a_rival_is_that_of_the_closed_form(name):
    """On two paths the same sample, and its tracked log-density is the mixture's."""

    def run(model):
        x = dgjax.prior_sample(model, KEY, SHAPE)
        grid = dgjax.grid_logsnr(model, 64)
        options = {"key": KEY, "divergence": dgjax.Exact()}
        plain, guided = (
            dgjax.sample(model, x, grid, guides=guides, **options)
            for guides in ((), make(name, model, grid))
        )
        exact = dgjax.log_density(model, model.t_min, guided.x)
        return guided.x / model.path.alpha(model.t_min), guided.log_density, exact, plain

    (x, tracked, exact, plain), (other, *_) = (
        jax.jit(run)(on(path, cloud())) for path in (dgjax.edm(), dgjax.vp())
    )
    assert abs(x - plain.x).max() > 0.05
    np.testing.assert_allclose(tracked, exact, atol=2e-3)
    np.testing.assert_allclose(x, other, atol=2e-3)


def test_omegance_is_a_temperature_that_ignores_the_scale():
    model = on(dgjax.vp(), cloud())
    x = dgjax.prior_sample(model, KEY, SHAPE)
    local = dgjax.evaluate(model, 0.4, x, divergence=dgjax.Untracked(), key=KEY)
    before = local.velocity + 0.3
    found = dgjax.omegance(1.25)(before, local)
    wanted = dgjax.temperature(0.8, scale=jnp.inf)(before, local)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert abs(found - before).max() > 1e-3


def test_detail_daemon_on_a_gaussian_is_known():
    """The offset from the mean shrinks by ((c + k^2 w^2)/(c + k^2 w_max^2))^(1/2); k is 1 - m."""
    mean, variance, share = jnp.linspace(-1.0, 2.0, 5), 0.6, 0.15
    model = on(dgjax.vp(), dgjax.gaussian(mean, variance))
    wide = dgjax.closed_form(
        dgjax.gaussian(mean, variance), dgjax.edm(), t_min=W_MIN / 2, t_max=W_MAX
    )
    guide = DetailDaemon(wide, dgjax.schedule(share))
    x = dgjax.prior_sample(model, KEY, SHAPE)
    grid = dgjax.grid_logsnr(model, 64)
    found = dgjax.sample(model, x, grid, key=KEY, guides=guide, divergence=dgjax.Untracked())
    first, last = (model.path.alpha(t) for t in (grid[0], grid[-1]))
    k = 1 - share
    factor = np.sqrt((variance + (k * W_MIN) ** 2) / (variance + (k * W_MAX) ** 2))
    np.testing.assert_allclose(found.x / last - mean, factor * (x / first - mean), rtol=1e-4)


def test_the_bump_of_detail_daemon_is_that_of_the_web_ui():
    """For 21 steps the ends and the top fall on steps 4, 10 and 16."""
    model = on(dgjax.edm(), cloud())
    grid = dgjax.grid_karras(model, 21)
    share = dgjax.detail_daemon(0.3, model, grid, exponent=2.0).share
    wanted = np.zeros(22)
    half = 0.5 - 0.5 * np.cos(np.linspace(0, 1, 7) * np.pi)
    wanted[4:11], wanted[10:17] = half**2, half[::-1] ** 2
    np.testing.assert_allclose(share(dgjax.logsnr(model.path, grid)), 0.3 * wanted, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [{"amount": 1.0}, {"end": 0.1}, {"bias": 0.0}, {"exponent": 0.0}, {"ts": jnp.ones(2)}],
)
def test_detail_daemon_refuses(options):
    model = on(dgjax.edm(), cloud())
    given = {"amount": 0.1, "ts": dgjax.grid_logsnr(model, 4), **options}
    with pytest.raises(ValueError, match=r"must|at least two steps"):
        dgjax.detail_daemon(given.pop("amount"), model, given.pop("ts"), **given)


def test_omegance_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="omega must be finite"):
        dgjax.omegance(jnp.inf)
