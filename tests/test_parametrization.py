"""One model, expressed in every way: the same pair, score and velocity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import W_MAX, W_MIN

from dgjax import analytic, fields, parametrization, paths
from dgjax.divergence import Hutchinson

SIGMA_DATA = 0.7


def denoiser(path, mixture):
    """E[x0 | x] of the mixture, from its score by Tweedie's formula."""

    def x0(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        score = jax.grad(lambda x: mixture.log_density(x / alpha, sigma / alpha))(x)
        return (x + sigma**2 * score) / alpha

    return x0


def noise(x0, path):
    def network(x, t, cond):
        return (x - path.alpha(t) * x0(x, t)) / path.sigma(t)

    return network


def denoised(x0, path):
    return lambda x, t, cond: x0(x, t)


def score(x0, path):
    return lambda x, t, cond: (path.alpha(t) * x0(x, t) - x) / path.sigma(t) ** 2


def v(x0, path):
    eps = noise(x0, path)
    return lambda x, t, cond: path.alpha(t) * eps(x, t, cond) - path.sigma(t) * x0(x, t)


def velocity(x0, path):
    eps, dalpha, dsigma = noise(x0, path), jax.grad(path.alpha), jax.grad(path.sigma)
    return lambda x, t, cond: dalpha(t) * x0(x, t) + dsigma(t) * eps(x, t, cond)


def karras(x0, path):
    """The inverse of Karras et al. 2022, eq. 7, which also undoes c_in and c_noise."""

    def network(scaled, c_noise, cond):
        w = jnp.exp(4 * c_noise)
        y = scaled * jnp.sqrt(w**2 + SIGMA_DATA**2)
        t = path.time(-2 * jnp.log(w))
        skip = SIGMA_DATA**2 / (w**2 + SIGMA_DATA**2)
        out = w * SIGMA_DATA / jnp.sqrt(w**2 + SIGMA_DATA**2)
        return (x0(y * path.alpha(t), t) - skip * y) / out

    return network


WAYS = {
    "noise": (noise, parametrization.NoisePrediction()),
    "denoised": (denoised, parametrization.DenoisedPrediction()),
    "score": (score, parametrization.ScorePrediction()),
    "v": (v, parametrization.VPrediction()),
    "velocity": (velocity, parametrization.VelocityPrediction()),
    "karras": (karras, parametrization.preconditioned(SIGMA_DATA)),
}


@jax.jit
def outputs(model, ts, xs):
    def at(t, x):
        local = fields.evaluate(model, t, x, divergence=Hutchinson(), key=jax.random.key(0))
        return *model.pair(t, x), local.velocity, local.score, local.divergence

    return jax.vmap(at)(ts, xs)


@pytest.fixture(scope="module")
def case(span, mixture2):
    """Three points on a path, from small noise to large, and what is true there."""
    mixture, path = mixture2.model, span.path
    levels = jnp.array([-2 * np.log(W_MIN), 0.5, -2 * np.log(W_MAX)])
    ts = jax.vmap(path.time)(levels)
    keys = jax.random.split(jax.random.key(1), 3)

    @jax.jit
    @jax.vmap
    def truth(key, t):
        c = paths.coefficients(path, t)
        x = c.alpha * mixture.sample(key, c.sigma / c.alpha)

        def log_p(x):
            return mixture.log_density(x / c.alpha, c.sigma / c.alpha)

        score = jax.grad(log_p)(x)
        return x, (
            (x + c.sigma**2 * score) / c.alpha,
            -c.sigma * score,
            c.f * x - c.g2 / 2 * score,
            score,
        )

    return span, ts, *truth(keys, ts)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_true_pair_velocity_and_score(case, mixture2, way):
    span, ts, xs, expected = case
    express, form = WAYS[way]
    network = express(denoiser(span.path, mixture2.model), span.path)
    model = fields.field(network, span.path, form, t_min=span.t_min, t_max=span.t_max)
    x0, eps, velocity, score, divergence = outputs(model, ts, xs)
    for got, true in zip((x0, eps, velocity, score), expected, strict=True):
        # What is small beside its neighbours is right beside them, too.
        scale = np.abs(true).max(axis=1, keepdims=True)
        np.testing.assert_allclose(got / scale, true / scale, atol=1e-9)
    c = jax.vmap(lambda t: paths.coefficients(span.path, t))(ts)
    np.testing.assert_allclose(c.alpha[:, None] * x0 + c.sigma[:, None] * eps, xs, rtol=1e-10)
    # The same probe for all: the same estimate, whichever the network's output.
    exact = analytic.closed_form(mixture2.model, span.path, t_min=span.t_min, t_max=span.t_max)
    np.testing.assert_allclose(divergence, outputs(exact, ts, xs)[-1], rtol=1e-8)


def test_preconditioning_is_karras_table_1():
    """D = c_skip y + c_out F(c_in y, ln(w)/4), whatever F, in y = x/alpha and w = sigma/alpha."""
    calls = []

    def network(x, t, cond):
        calls.append((x, t, cond))
        return jnp.sin(3 * x) + t + cond

    path = paths.vp()
    model = fields.field(network, path, parametrization.preconditioned(0.7), t_min=1e-3, t_max=1.0)
    t, x = jnp.array(0.3), jnp.array([0.4, -1.2, 2.5])
    x0, eps = model.pair(t, x, 0.5)
    alpha = np.exp(-(0.1 * 0.3 + 19.9 * 0.09 / 2) / 2)
    w = np.sqrt(1 - alpha**2) / alpha
    y = np.asarray(x) / alpha
    c_in, c_noise = 1 / np.sqrt(w**2 + 0.49), np.log(w) / 4
    c_skip, c_out = 0.49 / (w**2 + 0.49), w * 0.7 / np.sqrt(w**2 + 0.49)
    ((got_x, got_t, got_cond),) = calls
    np.testing.assert_allclose(got_x, c_in * y, rtol=1e-12)
    np.testing.assert_allclose(got_t, c_noise, rtol=1e-12)
    assert got_cond == 0.5
    expected = c_skip * y + c_out * (np.sin(3 * c_in * y) + c_noise + 0.5)
    np.testing.assert_allclose(x0, expected, rtol=1e-12)
    np.testing.assert_allclose(eps, (y - expected) / w, rtol=1e-10)


def test_preconditioned_noise_does_not_cancel_in_float32(float32):
    """At w = 1e-4, (y - x0)/w in float32 keeps three digits and the library's form keeps six."""
    form = parametrization.preconditioned(0.5)
    w, y = 1e-4, np.linspace(-1, 1, 9)
    out = np.cos(5 * y)
    c = paths.coefficients(paths.edm(), w)
    pair = form(lambda x, t, cond: jnp.asarray(out, jnp.float32), jnp.asarray(y), w, c, None)
    assert pair.eps.dtype == jnp.float32
    w = np.float64(np.float32(w))
    y, out = y.astype(np.float32).astype(float), out.astype(np.float32).astype(float)
    total = np.sqrt(w**2 + 0.25)
    x0 = 0.25 / total**2 * y + w * 0.5 / total * out
    eps = (y - x0) / w
    np.testing.assert_allclose(pair.eps, eps, atol=1e-6)
    naive = (np.float32(y) - np.asarray(pair.x0)) / np.float32(w)
    assert np.abs(naive - eps).max() > 1e-4


def test_velocity_network_is_used_as_it_is_where_alpha_vanishes():
    """At t near 1 of the rectified flow, f is -1e8 and the velocity still is the network's."""
    model = fields.field(
        lambda x, t, cond: jnp.sin(x),
        paths.rectified_flow(),
        parametrization.VelocityPrediction(),
        t_min=1e-3,
        t_max=1 - 1e-8,
    )
    x = jnp.array([0.3, -2.0])
    local = fields.evaluate(model, model.t_max, x, divergence=Hutchinson(), key=jax.random.key(0))
    np.testing.assert_allclose(local.velocity, jnp.sin(x), rtol=1e-12)
    np.testing.assert_allclose(local.score, -x, rtol=1e-6)
