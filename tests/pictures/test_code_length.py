"""Bounds on bits per dimension, held against the exact mass of each level under a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dgjax

RANGE = (-0.5, 2.0)
WIDTH = 2.5 / 255
LEVELS = np.array([[40, 41], [90, 200]], np.uint8)
# A density that is narrow against a level, and with its mean off the middle of one.
MEANS = -0.5 + LEVELS * WIDTH + 0.3 * WIDTH
SCALE = 0.4 * WIDTH
COUNT = 20_000


def log_density(x):
    return jnp.sum(jax.scipy.stats.norm.logpdf(x, MEANS, SCALE), (-2, -1))


def uniform(key):
    x = dgjax.dequantize(key, LEVELS, RANGE)
    return log_density(x) + LEVELS.size * np.log(WIDTH)  # the noise has the density 1/WIDTH


def truncated(sigma):
    def weigh(key):
        found = dgjax.dequantize_truncated(key, LEVELS, RANGE, sigma=sigma)
        return log_density(found.x) - found.noise_density

    return weigh


def exact_bits():
    low, high = -0.5 + (LEVELS - 0.5) * WIDTH, -0.5 + (LEVELS + 0.5) * WIDTH
    mass = stats.norm.cdf(high, MEANS, SCALE) - stats.norm.cdf(low, MEANS, SCALE)
    return -np.mean(np.log2(mass))


WAYS = {"uniform": uniform, "as the density": truncated(SCALE), "wide": truncated(50 * WIDTH)}


@pytest.mark.parametrize("way", WAYS)
def test_the_mean_weight_is_the_mass_of_the_levels(way):
    log_weights = np.asarray(jax.vmap(WAYS[way])(jax.random.split(jax.random.key(0), COUNT)))
    weights = np.exp(log_weights - np.log(2) * -exact_bits() * LEVELS.size)
    error = weights.std() / np.sqrt(COUNT)
    assert error < 0.05
    assert abs(weights.mean() - 1) < 4 * error


def test_more_draws_and_a_better_noise_are_tighter():
    keys = jax.random.split(jax.random.key(1), COUNT)

    def bits(way, draws):
        log_weights = jax.vmap(WAYS[way])(keys).reshape(-1, draws)
        return float(jnp.mean(dgjax.bits_per_dim_bound(log_weights, LEVELS.size)))

    one, some, many = (bits("uniform", draws) for draws in (1, 5, 500))
    assert one > some + 0.1 > many + 0.1
    assert many == pytest.approx(exact_bits(), abs=0.02)
    assert exact_bits() < bits("as the density", 1) < one - 0.02
    assert bits("wide", 1) == pytest.approx(one, abs=0.05)


def test_one_draw_of_uniform_noise_is_the_usual_figure():
    key = jax.random.key(2)
    usual = dgjax.bits_per_dim(log_density(dgjax.dequantize(key, LEVELS, RANGE)), 4, RANGE)
    np.testing.assert_allclose(dgjax.bits_per_dim_bound(uniform(key)[None], 4), usual, rtol=1e-6)


def test_the_noise_stays_within_its_level(float32):
    sigma = 0.5 * WIDTH
    found = dgjax.dequantize_truncated(jax.random.key(3), LEVELS, RANGE, sigma=sigma)
    assert found.x.dtype == jnp.float32
    assert jnp.all(jnp.abs(found.x - MEANS + 0.3 * WIDTH) <= 0.501 * WIDTH)


def test_floats_are_refused():
    with pytest.raises(ValueError, match="only 8-bit levels"):
        dgjax.dequantize_truncated(jax.random.key(0), np.zeros(3), sigma=0.1)
