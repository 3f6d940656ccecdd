"""Products and powers by weighted particles, against Gaussians and a grid."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.sampling.resampling import effective_size, resample, systematic_indices

KEY, T_MIN = jax.random.key(0), 0.05


def gaussian_of(seed, size=3):
    rng = np.random.default_rng(seed)
    root = 0.5 * rng.normal(size=(size, size))
    return 1 + rng.normal(size=size), root @ root.T + 0.3 * np.eye(size)


def model_of(data):
    return dgjax.closed_form(data, dgjax.edm(), t_min=T_MIN, t_max=60.0)


PARTS = gaussian_of(1), gaussian_of(2)
# The second is on another path, where x is scaled.
MODELS = [model_of(dgjax.gaussian(*map(jnp.asarray, part))) for part in PARTS]
MODELS[1] = dgjax.repath(MODELS[1], dgjax.vp())


def truth(powers, scale):
    """Mean, covariance and log normalizer of the product, where x is `scale` times the data."""
    size = len(PARTS[0][0])
    precision, linear, constant = np.zeros((size, size)), np.zeros(size), 0.0
    for b, (mean, covariance) in zip(powers, PARTS, strict=True):
        noised = scale**2 * (covariance + T_MIN**2 * np.eye(size))
        inverse, mean = np.linalg.inv(noised), scale * mean
        precision += b * inverse
        linear += b * inverse @ mean
        constant -= 0.5 * b * (mean @ inverse @ mean + np.linalg.slogdet(2 * np.pi * noised)[1])
    covariance = np.linalg.inv(precision)
    mean = covariance @ linear
    constant += 0.5 * (linear @ mean + np.linalg.slogdet(2 * np.pi * covariance)[1])
    return mean, covariance, constant


def check(powers, *, models=MODELS, scale=1.0, **options):
    options = {"num": 2000, "divergence": dgjax.Exact(), **options}
    grid = dgjax.grid_logsnr(models[0], 40)
    found = dgjax.sample_product(models, powers, grid, key=KEY, **options)
    mean, covariance, constant = truth(powers, scale)
    x, log_weights = np.asarray(found.x), np.asarray(found.log_weights)
    moments = [(x[:, i], mean[i]) for i in range(3)]
    pairs = [(i, j) for i in range(3) for j in range(i + 1)]
    centred = x - mean
    moments += [(centred[:, i] * centred[:, j], covariance[i, j]) for i, j in pairs]
    for values, expected in moments:
        # 9 moments, whose particles are not independent after resampling: four standard errors.
        interval = dgjax.weighted_mean(values, log_weights, confidence=0.99994)
        assert interval.low < expected < interval.high
    assert float(found.log_normalizer) == pytest.approx(constant, abs=0.06)
    size = dgjax.effective_sample_size(log_weights)
    assert float(found.effective_sizes[-1]) == pytest.approx(size)
    assert int(found.fault) == 0
    return found


@pytest.mark.slow
def test_products_and_powers_of_gaussians():
    """Means, covariances and normalizing constants are within their intervals."""
    found = check((1.0, 1.0))
    assert np.all(found.effective_sizes > 1500)
    assert np.all(found.accepted > 0.5)
    assert np.mean(found.accepted) < 0.95
    check((1.3, -0.3))
    check((0.5, 0.2), resample_below=1.0)  # at every step
    alone = check((1.7, 0.0), moves=0)
    assert np.isnan(alone.accepted).all()
    # On the path where x is scaled. Powers are equal, so that the order does not matter.
    alpha = float(MODELS[1].path.alpha(MODELS[1].t_min))
    check((1.0, 1.0), models=MODELS[::-1], scale=alpha)


@pytest.mark.slow
def test_a_product_of_mixtures_against_a_grid():
    """The log normalizer and a mean, by a Riemann sum in 2-D."""
    weights = jnp.array([0.3, 0.7])
    means = jnp.array([[[-1.0, 0.5], [2.0, 1.0]], [[0.0, 2.0], [1.5, -1.0]]])
    covariances = jnp.array([[[0.5, 0.2], [0.2, 0.4]], [[0.6, -0.3], [-0.3, 0.7]]])
    models = [model_of(dgjax.gaussian_mixture(weights, m, covariances)) for m in means]
    line = jnp.linspace(-7, 8, 301)
    points = jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    logs = sum(jax.vmap(lambda x, m=m: dgjax.log_density(m, T_MIN, x))(points) for m in models)
    constant = float(jax.nn.logsumexp(logs) + 2 * jnp.log(line[1] - line[0]))
    mean = float(jax.nn.softmax(logs) @ points[:, 0])
    grid = dgjax.grid_logsnr(models[0], 40)
    found = jax.jit(
        lambda key: dgjax.sample_product(
            models, (1.0, 1.0), grid, key=key, num=3000, divergence=dgjax.Exact()
        )
    )(KEY)
    assert float(found.log_normalizer) == pytest.approx(constant, abs=0.06)
    values, log_weights = np.asarray(found.x[:, 0]), np.asarray(found.log_weights)
    interval = dgjax.weighted_mean(values, log_weights, confidence=0.9995)
    assert interval.low < mean < interval.high


def test_a_model_that_goes_to_larger_noise_starts_where_the_first_one_does():
    wide = replace(model_of(dgjax.gaussian(*map(jnp.asarray, PARTS[1]))), t_max=300.0)
    check([1.0, 1.0], models=[MODELS[0], wide])
    grid = dgjax.grid_logsnr(replace(MODELS[0], t_max=30.0), 8)
    with pytest.raises(ValueError, match="t_max"):
        dgjax.sample_product(MODELS, [1.0, 1.0], grid, key=KEY, num=8)


def test_systematic_resampling():
    """Each particle is drawn floor(n w) or ceil(n w) times; the mean weight stays."""
    log_weights = jnp.asarray(np.random.default_rng(0).normal(size=50) * 2)
    expected = 50 * jax.nn.softmax(log_weights)
    for seed in range(5):
        drawn = systematic_indices(jax.random.key(seed), log_weights)
        counts = np.bincount(drawn, minlength=50)
        assert np.all((counts >= np.floor(expected)) & (counts <= np.ceil(expected)))
    assert float(effective_size(log_weights)) == pytest.approx(
        dgjax.effective_sample_size(log_weights)
    )
    kept = resample(KEY, log_weights, jnp.asarray(1.0))
    assert float(jnp.mean(jnp.exp(kept.log_weights))) == pytest.approx(
        float(jnp.mean(jnp.exp(log_weights)))
    )
    same = resample(KEY, log_weights, jnp.asarray(0.0))
    np.testing.assert_array_equal(same.indices, np.arange(50))
    np.testing.assert_array_equal(same.log_weights, log_weights)


def test_what_is_refused():
    grid = dgjax.grid_logsnr(MODELS[0], 8)
    run = lambda powers, **options: dgjax.sample_product(
        MODELS, powers, grid, key=KEY, num=4, **options
    )
    with pytest.raises(ValueError, match="2 models need as many powers"):
        run((1.0,))
    with pytest.raises(ValueError, match="positive sum"):
        run((1.0, -1.0))
    with pytest.raises(ValueError, match="resample_below"):
        run((1.0, 1.0), resample_below=2.0)
    with pytest.raises(ValueError, match="explicit Runge-Kutta"):
        run((1.0, 1.0), solver=dgjax.Multistep())
