"""Likelihood by the PF-ODE: closed forms, the way back, and honest standard errors."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dgjax
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.sample import sample

W_MIN, W_MAX = 0.05, 20.0


@pytest.fixture(scope="module")
def model(mixture16):
    """The 16-D mixture on the cosine path, where alpha is neither 1 nor constant."""
    edm = dgjax.closed_form(mixture16.model, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    return dgjax.repath(edm, dgjax.cosine())


@pytest.fixture(scope="module")
def data(model):
    """Exact samples at t_min, and their exact log-densities."""

    @jax.jit
    @jax.vmap
    def draw(key):
        alpha = model.path.alpha(model.t_min)
        x = alpha * model.network.sample(key, W_MIN)
        return x, dgjax.log_density(model, model.t_min, x)

    return draw(jax.random.split(jax.random.key(1), 6))


@pytest.mark.slow
def test_closed_form_and_the_way_back(model, data):
    """Data -> noise equals the truth; noise -> data returns the point and its log-density."""
    x, exact = data
    options = {
        "key": jax.random.key(0),
        "divergence": dgjax.Exact(),
        "solver": diffrax.Dopri5(),
    }
    grid = dgjax.grid_logsnr(model, 128)
    there = jax.jit(jax.vmap(lambda x: likelihood(model, x, grid, **options)))(x)
    np.testing.assert_allclose(there.log_density, exact, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(there.info.log_densities[:, 0], there.log_density)
    assert there.info.finite.all()
    assert (there.info.standard_error == 0).all()

    back = jax.jit(jax.vmap(lambda x: sample(model, x, grid, **options)))(there.latent)
    np.testing.assert_allclose(back.x, x, rtol=0, atol=1e-7)
    np.testing.assert_allclose(back.log_density, there.log_density, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_adaptive_steps_reach_their_tolerance(model, data):
    x, exact = data
    ends = jnp.stack([model.t_max, model.t_min])

    @jax.jit
    def run(tolerance):
        options = {
            "key": jax.random.key(0),
            "divergence": dgjax.Exact(),
            "solver": diffrax.Dopri5(),
            "controller": diffrax.PIDController(rtol=tolerance, atol=tolerance),
        }
        return jax.vmap(lambda x: likelihood(model, x, ends, **options))(x).log_density

    coarse, fine = (np.abs(run(tolerance) - exact).max() for tolerance in (1e-4, 1e-8))
    assert coarse < 1e-1
    assert fine < 1e-5


def spread(model, x, estimator, grid, *, keys=600, solver=None):
    """Log-densities and standard errors of one x under so many keys."""

    def one(key):
        probes = estimator(jax.random.fold_in(key, 1))
        out = likelihood(model, x, grid, key=key, divergence=probes, solver=solver)
        return out.log_density, out.info.standard_error

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), keys))


@pytest.mark.slow
def test_hutchinson_is_unbiased_and_knows_its_error(model, data):
    """Against the exact trace on the same steps, so that only the probes differ."""
    x, grid, probes = data[0][0], dgjax.grid_logsnr(model, 32), 4
    reference = spread(model, x, lambda key: dgjax.Exact(), grid, keys=1)[0][0]
    value, error = spread(model, x, lambda key: dgjax.Hutchinson(probes), grid)
    z = (value - reference) / error
    assert abs(value.mean() - reference) < 4 * value.std() / np.sqrt(len(value))
    # The mean square of the stated errors is the variance: each has 3 degrees of freedom.
    ratio = np.mean(error**2) / np.var(value)
    assert ratio == pytest.approx(1, abs=4 * np.sqrt((2 / 3 + 2) / len(value)))
    assert stats.kstest(z, stats.t(probes - 1).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_fixed_probes_do_not_average_out_along_the_way(model, data):
    """One probe for the whole solve is unbiased too, and several times as noisy."""
    x, grid = data[0][0], dgjax.grid_logsnr(model, 32)
    one = dgjax.Hutchinson()
    fresh, stated = spread(model, x, lambda key: one, grid)
    fixed, unknown = spread(model, x, lambda key: dgjax.FixedProbe(one, key), grid)
    assert jnp.isposinf(unknown).all()  # one probe says nothing of its own spread
    assert jnp.isfinite(stated).all()  # but fresh ones do, by their scatter in time
    assert fixed.std() > 2.5 * fresh.std()
    error = np.sqrt((fresh.var() + fixed.var()) / len(fresh))
    assert abs(fresh.mean() - fixed.mean()) < 4 * error


def test_bad_input(model, data):
    x, grid, key = data[0][0], dgjax.grid_logsnr(model, 4), jax.random.key(0)
    cases = [
        (x.at[0, 0].set(jnp.nan), grid, "NaN or infinite"),
        (x.reshape(16), grid, r"shape \(16,\)"),
        (jnp.zeros((2, 8), jnp.uint8), grid, "must be floating"),
        (x, grid[::-1], "grid decreases"),
        (x, grid[:1], "at least one step"),
        (x, grid[1:], "prior is known at t_max"),
        (x, 1.02 * grid, "outside the model's own range"),
    ]
    for x, grid, message in cases:
        with pytest.raises(ValueError, match=message):
            likelihood(model, x, grid, key=key)
