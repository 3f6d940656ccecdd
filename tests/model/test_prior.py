"""Prior guidance: norms, chi quantiles, and their effect on the prior log-density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import dgjax
from dgjax.model.parametrization import NoisePrediction
from dgjax.model.prior import chi_quantile

SHAPE = (3, 8)
SIZE = 24


@pytest.fixture(scope="module")
def model():
    """A field on the cosine path, where neither alpha nor sigma is 1 at t_max."""
    return dgjax.field(
        lambda x, t, cond: x, dgjax.cosine(), NoisePrediction(), t_min=0.01, t_max=0.8
    )


@pytest.fixture(scope="module")
def draws(model):
    keys = jax.random.split(jax.random.key(0), 2000)
    return jax.jit(jax.vmap(lambda k: dgjax.prior_sample(model, k, SHAPE)))(keys)


def norms(model, x):
    return jnp.sqrt(jnp.sum(x**2, axis=(-2, -1))) / model.path.sigma(model.t_max)


def test_norms_of_prior_samples_follow_the_chi_law(model, draws):
    assert draws.shape == (2000, *SHAPE)
    assert stats.kstest(norms(model, draws), stats.chi(SIZE).cdf).pvalue > 1e-3
    np.testing.assert_allclose(
        jnp.std(draws), model.path.sigma(model.t_max), rtol=4 / np.sqrt(2 * draws.size)
    )


def test_with_norm_keeps_the_direction(model, draws):
    x = dgjax.with_norm(model, draws[0], 3.5)
    np.testing.assert_allclose(norms(model, x), 3.5, rtol=1e-12)
    np.testing.assert_allclose(x / x[0, 0], draws[0] / draws[0, 0, 0], rtol=1e-10)


@pytest.mark.parametrize("size", [1, 24, 784, 196_608])
def test_chi_quantile_inverts_the_chi_law(size):
    """P(|z| <= r) is the regularized incomplete gamma function of (D/2, r^2/2)."""
    q = jnp.array([0.001, 0.3, 0.5, 0.99])
    r = jax.jit(jax.vmap(lambda q: chi_quantile(q, size)))(q)
    np.testing.assert_allclose(special.gammainc(size / 2, r**2 / 2), q, rtol=1e-8)


SIZES = [1, 2, 5, 127, 128, 784, 4095, 4096, 49_152, 786_432, 3_145_728, 100_000_000]


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
def test_chi_quantiles_in_float32_at_any_dimension():
    """The dimension as a Python number and as an argument of `jit`."""
    q = np.array([1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999], np.float32)
    of_each = lambda size: jax.vmap(lambda q: chi_quantile(q, size))(jnp.asarray(q))
    traced = jax.jit(jax.vmap(of_each))(jnp.array(SIZES, jnp.float32))
    for size, row in zip(SIZES, traced, strict=True):
        assert row.dtype == jnp.float32
        for r in (row, of_each(size)):
            reached = stats.chi.cdf(np.asarray(r, np.float64), size)
            np.testing.assert_allclose(reached, q, atol=1e-4)


def test_chi_quantiles_in_float64_meet_where_the_method_changes():
    """The series takes over at D = 4096; scipy's root of the same law is the oracle."""
    q = jnp.array([1e-6, 0.01, 0.5, 0.99, 1 - 1e-6])
    for size in (4095, 4096, 100_000):
        r = jax.vmap(lambda q, size=size: chi_quantile(q, size))(q)
        np.testing.assert_allclose(r, stats.chi.ppf(np.asarray(q), size), atol=1e-8)


@pytest.mark.parametrize("size", [24, 5000])
def test_the_derivative_of_a_chi_quantile(size):
    """dr/dq is one over the chi density."""
    for q in (0.1, 0.7):
        slope = jax.grad(lambda q: chi_quantile(q, size))(q)
        expected = 1 / stats.chi.pdf(stats.chi.ppf(q, size), size)
        np.testing.assert_allclose(slope, expected, rtol=1e-6)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.999])
def test_prior_guidance_of_large_samples_in_float32(quantile):
    size = 3_145_728
    identity = lambda x, t, cond: x
    model = dgjax.field(identity, dgjax.edm(), NoisePrediction(), t_min=0.02, t_max=80.0)
    x = dgjax.prior_sample(model, jax.random.key(0), (size // 3, 3))
    guided = np.asarray(dgjax.prior_guidance(model, x, quantile), np.float64)
    reached = stats.chi.sf(np.linalg.norm(guided) / 80, size)
    assert abs(reached - quantile) < 1e-3


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_quantile_is_that_of_the_priors_log_density(model, draws, quantile):
    """The log p_T of the guided latent exceeds that of a fraction `quantile` of all latents."""
    log_prior = jax.jit(jax.vmap(lambda x: dgjax.log_prior(model, x)))
    guide = jax.jit(jax.vmap(lambda x: dgjax.prior_guidance(model, x, quantile)))
    reached = log_prior(guide(draws[:8]))
    np.testing.assert_allclose(reached, reached[0], rtol=1e-12)  # for every latent
    ordinary = np.asarray(log_prior(draws))
    share = np.mean(ordinary < float(reached[0]))
    assert abs(share - quantile) < 4 * np.sqrt(quantile * (1 - quantile) / len(draws))


def test_log_prior_is_that_of_the_norm(model, draws):
    """The prior log-density is log N(x; 0, sigma^2 I), written with the norm r."""
    sigma = model.path.sigma(model.t_max)
    for r in (2.0, 5.0, 8.0):
        reached = dgjax.log_prior(model, dgjax.with_norm(model, draws[0], r))
        expected = -0.5 * r**2 - SIZE * jnp.log(sigma * jnp.sqrt(2 * jnp.pi))
        np.testing.assert_allclose(reached, expected, rtol=1e-12)


def test_bad_norms_and_quantiles(model, draws):
    with pytest.raises(ValueError, match="norm must be positive"):
        dgjax.with_norm(model, draws[0], 0.0)
    with pytest.raises(ValueError, match="zero latent"):
        dgjax.with_norm(model, jnp.zeros(SHAPE), 5.0)
    for q in (0.0, 1.0, 1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            dgjax.prior_guidance(model, draws[0], q)
