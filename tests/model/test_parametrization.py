"""Every parametrization of one model gives the same pair, score and velocity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import W_MAX, W_MIN

import dgjax
from dgjax.model import parametrization
from dgjax.model.divergence import Hutchinson
from dgjax.model.paths import coefficients

SIGMA_DATA = 0.7


# N(MEAN, SCALES^2 in a rotated basis). Its denoiser is linear.
MEAN = np.array([0.5, -1.0, 0.2])
SCALES = np.array([0.05, 0.4, 2.0])
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]


def denoiser(path):
    """Return E[x0 | x] of this Gaussian."""

    def x0(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        gain = alpha * SCALES**2 / (alpha**2 * SCALES**2 + sigma**2)
        return MEAN + BASIS @ (gain * (BASIS.T @ (x - alpha * MEAN)))

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


def timesteps(x0, path):
    """Make a network of the velocity per unit of the time t of the path, called with 1000 t."""
    network = velocity(x0, path)
    return lambda x, t, cond: network(x, t / 1000, cond)


def reversed_flow(x0, path):
    """Make a network of dx/ds in the time s = 3 - 2 t."""
    network = velocity(x0, path)
    return lambda x, s, cond: -0.5 * network(x, (3 - s) / 2, cond)


def karras(x0, path):
    """Make a network whose output inverts Karras et al. 2022, eq. 7, with c_in and c_noise."""

    def network(scaled, c_noise, cond):
        w = jnp.exp(4 * c_noise)
        y = scaled * jnp.sqrt(w**2 + SIGMA_DATA**2)
        t = path.time(-2 * jnp.log(w))
        skip = SIGMA_DATA**2 / (w**2 + SIGMA_DATA**2)
        out = w * SIGMA_DATA / jnp.sqrt(w**2 + SIGMA_DATA**2)
        return (x0(y * path.alpha(t), t) - skip * y) / out

    return network


WAYS = {
    "noise": (noise, dgjax.NoisePrediction()),
    "denoised": (denoised, dgjax.DenoisedPrediction()),
    "score": (score, dgjax.ScorePrediction()),
    "v": (v, dgjax.VPrediction()),
    "velocity": (velocity, dgjax.VelocityPrediction()),
    "timesteps": (timesteps, parametrization.velocity_prediction(1000.0)),
    "reversed": (
        reversed_flow,
        parametrization.affine_time(dgjax.VelocityPrediction(), -2.0, 3.0),
    ),
    "karras": (karras, dgjax.preconditioned(SIGMA_DATA)),
}


@jax.jit
def outputs(models, ts, xs):
    """Return pair, velocity, score and divergence of every model, by one compilation."""
    probe = Hutchinson(sample=lambda key, x: jnp.ones_like(x))

    def at(model, t, x):
        local = dgjax.evaluate(model, t, x, divergence=probe, key=jax.random.key(0))
        return *model.pair(t, x), local.velocity, local.score, local.divergence

    return {k: jax.vmap(at, (None, 0, 0))(model, ts, xs) for k, model in models.items()}


@pytest.fixture(scope="module")
def case(span):
    """Three points on a path, from small to large noise, with the truth at each."""
    levels = jnp.array([-2 * np.log(W_MIN), 0.5, -2 * np.log(W_MAX)])
    ts = jax.vmap(span.path.time)(levels)
    c = jax.vmap(lambda t: coefficients(span.path, t))(ts)
    z = np.random.default_rng(1).normal(size=(3, 3))
    xs, truth = [], []
    for i in range(3):
        alpha, sigma, f, g2 = (float(a[i]) for a in (c.alpha, c.sigma, c.f, c.g2))
        covariance = BASIS @ np.diag(alpha**2 * SCALES**2 + sigma**2) @ BASIS.T
        x = alpha * MEAN + np.linalg.cholesky(covariance) @ z[i]
        precision = np.linalg.inv(covariance)
        score = -precision @ (x - alpha * MEAN)
        x0 = (x + sigma**2 * score) / alpha
        # The probe of ones adds up all entries of the Jacobian of the velocity.
        divergence = 3 * f + g2 / 2 * precision.sum()
        xs.append(x)
        truth.append((x0, -sigma * score, f * x - g2 / 2 * score, score, divergence))
    return span, ts, jnp.array(xs), [np.array(a) for a in zip(*truth, strict=True)]


def test_every_way_gives_the_true_pair_velocity_and_score(case):
    span, ts, xs, expected = case
    models = {
        way: dgjax.field(
            express(denoiser(span.path), span.path),
            span.path,
            form,
            t_min=span.t_min,
            t_max=span.t_max,
        )
        for way, (express, form) in WAYS.items()
    }
    for way, results in outputs(models, ts, xs).items():
        for got, true in zip(results, expected, strict=True):
            # Relative to the largest entry of the vector at each point.
            scale = np.abs(true).reshape(3, -1).max(axis=1).reshape(3, *[1] * (true.ndim - 1))
            np.testing.assert_allclose(got / scale, true / scale, atol=1e-9, err_msg=way)


def test_preconditioning_is_karras_table_1():
    """x0 = c_skip y + c_out F(c_in y, ln(w)/4) for any F, in y = x/alpha and w = sigma/alpha."""
    calls = []

    def network(x, t, cond):
        calls.append((x, t, cond))
        return jnp.sin(3 * x) + t + cond

    path = dgjax.vp()
    model = dgjax.field(network, path, dgjax.preconditioned(0.7), t_min=1e-3, t_max=1.0)
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
    """At w = 1e-4 in float32, (y - x0)/w has three correct digits, the form of the library six."""
    form = dgjax.preconditioned(0.5)
    w, y = 1e-4, np.linspace(-1, 1, 9)
    out = np.cos(5 * y)
    c = coefficients(dgjax.edm(), w)
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
    """Near t = 1 of the rectified flow f is -1e8, and the velocity is still the network output."""
    model = dgjax.field(
        lambda x, t, cond: jnp.sin(x),
        dgjax.rectified_flow(),
        dgjax.VelocityPrediction(),
        t_min=1e-3,
        t_max=1 - 1e-8,
    )
    x = jnp.array([0.3, -2.0])
    local = dgjax.evaluate(model, model.t_max, x, divergence=Hutchinson(), key=jax.random.key(0))
    np.testing.assert_allclose(local.velocity, jnp.sin(x), rtol=1e-12)
    np.testing.assert_allclose(local.score, -x, rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(), (1,), (3, 3)])
def test_an_output_of_another_shape_is_refused(way, shape):
    """These shapes would broadcast, for some parametrizations to a pair of the right shape."""

    def network(x, t, cond):
        return jnp.broadcast_to(x[0], shape)

    model = dgjax.field(network, dgjax.vp(), WAYS[way][1], t_min=1e-3, t_max=1.0)
    with pytest.raises(ValueError, match="the network returned shape"):
        model.pair(jnp.array(0.5), jnp.ones(3))


def test_parametrizations_differ_in_structure_and_not_in_numbers():
    structures = [jax.tree.structure(form) for _, form in WAYS.values()]
    assert all(structures.count(structure) == 1 for structure in structures)
    assert jax.tree.structure(dgjax.preconditioned(2.0)) == structures[-1]


@pytest.mark.parametrize("rate", [None, 0.5, 1.0, 2.0, 1000.0])
def test_a_velocity_network_is_called_with_the_rate_times_t(rate):
    """The output says which time the network was called with."""
    form = parametrization.velocity_prediction(*(() if rate is None else (rate,)))
    path, x = dgjax.rectified_flow(), jnp.array([0.3, -2.0])
    model = dgjax.field(lambda x, t, cond: 0 * x + t, path, form, t_min=1e-3, t_max=0.99)
    t = jnp.asarray(0.25)
    factor = 1.0 if rate is None else rate
    # The output is the velocity itself, per unit of time of the path.
    np.testing.assert_allclose(dgjax.velocity(model, t, x), factor * 0.25, rtol=1e-12)


def test_affine_time_changes_the_time_of_any_parametrization():
    form = dgjax.affine_time(dgjax.NoisePrediction(), -1.0, 1.0)
    path, x = dgjax.vp(), jnp.array([0.3, -2.0])
    model = dgjax.field(lambda x, s, cond: 0 * x + s, path, form, t_min=1e-3, t_max=0.99)
    np.testing.assert_allclose(model.pair(jnp.asarray(0.25), x).eps, 0.75, rtol=1e-6)
    # Composed with a rate: the network has 1000 s, and its velocity is per unit of s.
    flow = dgjax.affine_time(parametrization.velocity_prediction(1000.0), -1.0, 1.0)
    model = dgjax.field(lambda x, s, cond: 0 * x + s, path, flow, t_min=1e-3, t_max=0.99)
    np.testing.assert_allclose(dgjax.velocity(model, jnp.asarray(0.25), x), -750.0, rtol=1e-6)
    with pytest.raises(ValueError, match="rate must not be 0"):
        dgjax.affine_time(dgjax.NoisePrediction(), 0.0)
