"""Closed-form mixtures against SciPy, autodiff and sampling statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import dgjax
from dgjax.model.closed_form import closed_form
from dgjax.model.divergence import Exact
from dgjax.model.gaussian_mixture import gaussian, gaussian_mixture, kernel_density
from dgjax.model.parametrization import NoisePrediction

LEVELS = [0.01, 0.3, 10.0]


def scipy_log_density(mixture, y, w):
    """Return log sum_k weight_k N(y; mean_k, covariance_k + w^2 I), for y of shape (..., D)."""
    noise = w**2 * np.eye(mixture.means.shape[1])
    terms = [
        np.log(weight) + stats.multivariate_normal(mean, covariance + noise).logpdf(y)
        for weight, mean, covariance in zip(
            mixture.weights, mixture.means, mixture.covariances, strict=True
        )
    ]
    return special.logsumexp(terms, axis=0)


@jax.jit
def everything(model, y, w):
    """Return log-density, score, Laplacian and denoised sample by the closed forms."""
    return model.log_density(y, w), model.score(y, w), model.laplacian(y, w), model(y, w)


@jax.jit
def draw(model, seed, w):
    return model.sample(jax.random.key(seed), w)


@pytest.fixture(scope="module")
def draws(mixture):
    """Draw one noisy sample at each level."""
    return [draw(mixture.model, i, w) for i, w in enumerate(LEVELS)]


def test_log_density_is_scipys(mixture, draws):
    for w, y in zip(LEVELS, draws, strict=True):
        expected = scipy_log_density(mixture, np.asarray(y).ravel(), w)
        np.testing.assert_allclose(everything(mixture.model, y, w)[0], expected, rtol=1e-9)


def test_score_and_laplacian_are_derivatives_and_the_denoiser_is_tweedies(mixture, draws):
    @jax.jit
    def derivatives(y, w):
        flat = y.ravel()

        def log_density(flat):
            return mixture.model.log_density(flat.reshape(y.shape), w)

        return jax.grad(log_density)(flat), jnp.trace(jax.hessian(log_density)(flat))

    for w, y in zip(LEVELS, draws, strict=True):
        _, score, laplacian, denoised = everything(mixture.model, y, w)
        gradient, trace = derivatives(y, w)
        np.testing.assert_allclose(score.ravel(), gradient, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(laplacian, trace, rtol=1e-8)
        np.testing.assert_allclose(denoised, y + w**2 * score, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("w", [0.0, 0.5])
def test_samples_have_the_mean_covariance_and_log_density_of_the_mixture(mixture2, w):
    count = 20_000
    keys = jax.random.split(jax.random.key(1), count)

    @jax.jit
    def draws(keys):
        y = jax.vmap(lambda k: mixture2.model.sample(k, w))(keys)
        return y, jax.vmap(lambda y: mixture2.model.log_density(y, w))(y)

    y, log_density = map(np.asarray, draws(keys))
    mean = mixture2.weights @ mixture2.means
    second = mixture2.covariances + np.einsum("ki,kj->kij", mixture2.means, mixture2.means)
    covariance = np.tensordot(mixture2.weights, second, 1) - np.outer(mean, mean) + w**2 * np.eye(2)
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(y.mean(axis=0) - mean) < 4 * spread / np.sqrt(count)).all()
    error = np.abs(np.cov(y.T) - covariance) / np.outer(spread, spread)
    assert (error < 0.05).all()
    # The distribution of the log-density, against draws by NumPy.
    rng = np.random.default_rng(0)
    pick = rng.choice(3, size=4000, p=mixture2.weights)
    factors = np.linalg.cholesky(mixture2.covariances + w**2 * np.eye(2))
    own = mixture2.means[pick] + np.einsum("nij,nj->ni", factors[pick], rng.normal(size=(4000, 2)))
    other = scipy_log_density(mixture2, own, w)
    assert stats.ks_2samp(log_density, other).pvalue > 1e-3


def low_rank_numbers(size=7, rank=2, count=3):
    rng = np.random.default_rng(5)
    basis = np.linalg.qr(rng.normal(size=(count, size, size)))[0][:, :, :rank]
    variances = rng.uniform(1, 4, (count, rank))
    rest = rng.uniform(0.01, 0.2, count)
    covariances = np.einsum("kdr,kr,ker->kde", basis, variances - rest[:, None], basis)
    covariances += rest[:, None, None] * np.eye(size)
    return rng.dirichlet(np.ones(count)), rng.normal(size=(count, size)), covariances


def test_a_low_rank_mixture_equals_the_full_one():
    """All directions left out have one variance, so their mean variance is exact."""
    numbers = low_rank_numbers()
    full, low = gaussian_mixture(*numbers), gaussian_mixture(*numbers, rank=2)
    assert low.basis.shape == (3, 7, 2)
    for w in LEVELS:
        y = draw(full, 2, w)
        for a, b in zip(everything(full, y, w), everything(low, y, w), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_samples_of_a_low_rank_mixture_have_its_covariance():
    weights, means, covariances = low_rank_numbers(count=1)
    model = gaussian_mixture(weights, means, covariances, rank=2)
    keys = jax.random.split(jax.random.key(3), 20_000)
    y = np.asarray(jax.jit(jax.vmap(lambda k: model.sample(k, 0.3)))(keys))
    whitener = np.linalg.inv(np.linalg.cholesky(covariances[0] + 0.09 * np.eye(7)))
    z = (y - means[0]) @ whitener.T
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=4 / np.sqrt(20_000))
    np.testing.assert_allclose(np.cov(z.T), np.eye(7), atol=0.05)


def test_truncation_keeps_the_trace():
    """A rank below that of the covariances replaces the least variances by their mean."""
    covariance = np.diag([4.0, 3.0, 2.0, 1.0])
    model = gaussian_mixture([1.0], np.zeros((1, 4)), covariance[None], rank=1)
    expected = stats.multivariate_normal(np.zeros(4), np.diag([4.0, 2, 2, 2])).logpdf(np.arange(4))
    np.testing.assert_allclose(model.log_density(jnp.arange(4.0), 0.0), expected, rtol=1e-12)


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 3.0, 4.0, 5.0])])
def test_kernel_density_is_the_direct_sum(weights):
    rng = np.random.default_rng(6)
    data, y, bandwidth, w = rng.normal(size=(5, 2, 3)), rng.normal(size=(2, 3)), 0.2, 0.3
    model = kernel_density(data, bandwidth, weights)
    variance = bandwidth**2 + w**2
    shares = np.ones(5) / 5 if weights is None else weights / 15
    kernels = (
        np.exp(-np.sum((data - y) ** 2, (1, 2)) / (2 * variance)) / (2 * np.pi * variance) ** 3
    )
    np.testing.assert_allclose(model.log_density(y, w), np.log(shares @ kernels), rtol=1e-12)
    post = shares * kernels / (shares @ kernels)
    centre = np.tensordot(post, data, 1)
    np.testing.assert_allclose(model.score(y, w), (centre - y) / variance, rtol=1e-10)
    denoised = (w**2 * centre + bandwidth**2 * y) / variance
    np.testing.assert_allclose(model(y, w), denoised, rtol=1e-10)


def test_a_gaussian_with_a_scalar_or_a_full_covariance():
    mean, y = np.array([[1.0, -2.0]]), np.array([[0.3, 0.4]])
    covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
    full = stats.multivariate_normal(mean[0], covariance + 0.25 * np.eye(2))
    round_ = stats.multivariate_normal(mean[0], (3 + 0.25) * np.eye(2))
    np.testing.assert_allclose(gaussian(mean, covariance).log_density(y, 0.5), full.logpdf(y[0]))
    np.testing.assert_allclose(gaussian(mean, 3.0).log_density(y, 0.5), round_.logpdf(y[0]))


def test_log_density_on_a_path_is_that_of_the_scaled_and_noisy_mixture(span, mixture2):
    model = closed_form(mixture2.model, span.path, t_min=span.t_min, t_max=span.t_max)
    t = span.path.time(jnp.array(0.4))
    alpha, sigma = float(span.path.alpha(t)), float(span.path.sigma(t))
    x = np.array([0.3, -0.4])
    scaled = mixture2._replace(
        means=alpha * mixture2.means, covariances=alpha**2 * mixture2.covariances
    )
    expected = scipy_log_density(scaled, x, sigma)
    np.testing.assert_allclose(dgjax.log_density(model, t, x), expected, rtol=1e-10)


@pytest.fixture(scope="module", params=[1e-3, 0.1])
def rounded(request, mixture16):
    """Numbers rounded to float32, and results computed from them in float64."""
    w = np.float32(request.param)
    y = np.asarray(draw(mixture16.model, 7, float(w)), np.float32)
    single = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), mixture16.model)
    exact = jax.tree.map(lambda leaf: leaf.astype(float), single)
    return single, y, w, [np.asarray(a) for a in everything(exact, y.astype(float), float(w))]


def test_float32_at_small_noise(rounded, float32):
    """The spread of the mixture is up to 2,000 times w."""
    single, y, w, (log_density, score, laplacian, denoised) = rounded
    got = everything(single, y, w)
    assert all(a.dtype == jnp.float32 for a in got)
    np.testing.assert_allclose(got[0], log_density, atol=2e-3)
    np.testing.assert_allclose(got[1], score, atol=2e-4 * np.abs(score).max())
    np.testing.assert_allclose(got[2], laplacian, rtol=2e-4)
    np.testing.assert_allclose(got[3], denoised, atol=1e-5)


def test_the_fields_score_is_as_exact_in_float32(rounded, float32):
    """(y - x0)/w would have a hundred times the error at w = 0.001."""
    single, y, w, (_, score, _, _) = rounded
    model = closed_form(single, dgjax.edm(), t_min=1e-3, t_max=80.0)
    local = dgjax.evaluate(model, w, y, divergence=Exact(), key=jax.random.key(0))
    np.testing.assert_allclose(local.score, single.score(y, w), atol=1e-6 * np.abs(score).max())


SQUARE = np.eye(2)[None]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian_mixture([1.0, 1.0], np.zeros((1, 2)), SQUARE), "must be"),
        (lambda: gaussian_mixture([1.0], np.zeros((1, 3)), SQUARE), "must be"),
        (lambda: gaussian_mixture([1.0], np.zeros((1, 2)), np.eye(2)), "must be"),
        (lambda: gaussian_mixture(1.0, 0.0, 1.0), "must be"),
        (lambda: gaussian_mixture([-1.0], np.zeros((1, 2)), SQUARE), "weights must be positive"),
        (lambda: gaussian_mixture([1.0], np.zeros((1, 2)), -SQUARE), "positive semi-definite"),
        (
            lambda: gaussian_mixture([1.0], np.zeros((1, 2)), [[[1.0, 0.5], [0.0, 1.0]]]),
            "must be symmetric",
        ),
        (lambda: gaussian_mixture([1.0], np.zeros((1, 2)), SQUARE, rank=3), "rank must be"),
        (lambda: gaussian_mixture([1.0], np.zeros((1, 2)), SQUARE, rank=-1), "rank must be"),
        (lambda: gaussian(np.zeros(3), np.eye(2)), "must be"),
        (lambda: kernel_density(np.zeros((0, 2)), 0.1), "K > 0"),
        (lambda: kernel_density(1.0, 0.1), "K > 0"),
        (lambda: kernel_density(np.zeros((2, 2)), 0.1, [1.0, 0.0]), "weights must be positive"),
        (lambda: kernel_density(np.zeros((2, 2)), 0.1, [1.0]), "weights"),
        (lambda: kernel_density(np.zeros((2, 2)), [0.1, 0.1, 0.1]), "bandwidth"),
        (lambda: kernel_density(np.zeros((2, 2)), -0.1), "bandwidth must"),
        (lambda: kernel_density(np.full((2, 2), np.nan), 0.1), "data must be finite"),
        (lambda: gaussian(np.zeros(2), -1.0), "variance must"),
        (lambda: gaussian(np.zeros(2), np.nan), "variance must"),
        (lambda: gaussian_mixture([1.0], [[np.inf, 0.0]], SQUARE), "means must be finite"),
        (lambda: gaussian_mixture([1.0], np.zeros((1, 2)), SQUARE * np.nan), "must be finite"),
        (
            lambda: gaussian_mixture([1.0], np.zeros((1, 2)), [[[1e-7, 0.9e-7], [0.0, 1e-7]]]),
            "must be symmetric",
        ),
    ],
)
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mixtures_are_made_of_traced_numbers_too():
    """Traced numbers are not checked."""

    @jax.jit
    def log_densities(v):
        models = (
            gaussian(jnp.zeros(2), v),
            kernel_density(jnp.zeros((3, 2)), jnp.sqrt(v)),
            gaussian_mixture([1.0], jnp.zeros((1, 2)), v * SQUARE),
        )
        return jnp.stack([m.log_density(jnp.ones(2), 0.5) for m in models])

    expected = stats.multivariate_normal(np.zeros(2), 1.25 * np.eye(2)).logpdf(np.ones(2))
    np.testing.assert_allclose(log_densities(1.0), expected, rtol=1e-12)


@pytest.mark.parametrize("method", ["log_density", "score", "laplacian", "__call__"])
@pytest.mark.parametrize("shape", [(16,), (3, 2, 8), ()])
def test_a_sample_of_another_shape_is_refused(mixture16, method, shape):
    with pytest.raises(ValueError, match=r"samples of shape \(2, 8\)"):
        getattr(mixture16.model, method)(jnp.zeros(shape), 0.1)


def test_only_a_closed_form_field_has_an_exact_log_density():
    model = dgjax.field(lambda x, t, cond: x, dgjax.vp(), NoisePrediction(), t_min=0.1, t_max=1.0)
    with pytest.raises(ValueError, match="closed_form"):
        dgjax.log_density(model, 0.5, jnp.zeros(2))
