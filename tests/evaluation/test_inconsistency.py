"""Inconsistency of a score: nothing for a true one, closed forms for false ones, and Stokes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.evaluation.inconsistency import heat_residual, inconsistency
from dgjax.model.divergence import Exact
from dgjax.sampling.spacetime_quadrature import quadrature

KEY = jax.random.key(0)


def denoiser_field(network):
    return dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.02, t_max=20.0)


@jax.jit
def exactly(model, t, x):
    return inconsistency(model, t, x, key=KEY, divergence=Exact())


def at(model, w, y):
    """The exact inconsistency at y = x/alpha and w, whatever the path of the model."""
    t = model.path.time(jnp.asarray(-2 * np.log(w)))
    found = exactly(model, t, model.path.alpha(t) * jnp.asarray(y))
    return jax.tree.map(float, found)


@pytest.mark.parametrize("name", ["rectified_flow", "custom"])
def test_a_true_score_is_consistent_to_rounding(spans, mixture16, name):
    span = spans[name]
    model = dgjax.closed_form(mixture16.model, span.path, t_min=span.t_min, t_max=span.t_max)
    for w in (0.03, 0.5, 10.0):
        found = at(model, w, mixture16.model.sample(jax.random.key(1), w))
        assert np.abs(found[:3]).max() < 1e-20  # squares
        assert found.jacobian > 1e-6


@jax.tree_util.Partial
def twisted(y, w, cond):
    """The denoiser of N(0, 0.7 I), and a rotation that no gradient has."""
    return 0.7 / (0.7 + w**2) * y + twist(y.size) @ y


def twist(size):
    a = 0.3 * np.random.default_rng(0).normal(size=(size, size))
    return jnp.asarray(a - a.T)


def test_a_twisted_score_in_closed_form():
    """s = -y/v + A y/w^2 with v = w^2 + 0.7: J_D - J_D^T = 2A, w r = 2 (A^T A + A) y/w."""
    model, A = dgjax.repath(denoiser_field(twisted), dgjax.vp()), np.asarray(twist(5))
    y = np.random.default_rng(1).normal(size=5)
    for w in (0.1, 2.0):
        found = at(model, w, y)
        right = {
            "curl": 4 * np.sum(A**2),
            "residual": 4 * np.sum(((A.T @ A + A) @ y) ** 2) / w**2,
            "transport": 4 * np.sum((A @ y) ** 2) * (1 / w - w / (w**2 + 0.7)) ** 2,
            "jacobian": np.sum((0.7 / (0.7 + w**2) * np.eye(5) + A) ** 2),
        }
        for part, value in right.items():
            assert getattr(found, part) * 5 == pytest.approx(value, rel=1e-9), part


def test_a_gaussian_of_a_wrong_clock_in_closed_form():
    """s = -y/v with v = c w^2 + 0.7, whose w r is 2 (1 - c) w^3 y/v^2. A gradient all the same."""

    def network(y, w, c):
        return y - w**2 * y / (c * w**2 + 0.7)

    y, w, plain = jnp.arange(1.0, 5.0), 0.8, denoiser_field(network)

    @jax.jit
    def vectors(c):
        """With the condition in the model and exactly, and given along and with one probe."""
        fixed = heat_residual(dgjax.condition(plain, c), w, y, divergence=Exact(), key=KEY)
        return fixed, heat_residual(plain, w, y, key=KEY, cond=c)

    for c in (1.0, 1.3):
        right = 2 * (1 - c) * w**3 * y / (c * w**2 + 0.7) ** 2
        for vector in vectors(jnp.array(c)):  # the Jacobian being a multiple of I, both are exact
            np.testing.assert_allclose(vector, right, rtol=1e-9, atol=1e-14)
        model = dgjax.condition(plain, jnp.array(c))
        found = at(model, w, y)
        assert found.curl == pytest.approx(0, abs=1e-25)
        for part in (found.residual, found.transport):
            assert part * 4 == pytest.approx(float(np.sum(right**2)), rel=1e-9, abs=1e-25)


@jax.tree_util.Partial
def untrained(y, w, cond):
    """A denoiser with nothing true about it."""
    rng = np.random.default_rng(3)
    a, b = jnp.asarray(rng.normal(size=(2, 8, y.size)))
    return b.T @ jnp.tanh(a @ y + jnp.cos(jnp.arange(8.0)) * jnp.log(w)) / (4 + w)


def test_what_log_density_gains_around_small_loops():
    """Stokes: quadrature around parallelograms, one for each pair of directions, in nats."""
    model, y, w, h = denoiser_field(untrained), np.array([0.3, -0.5, 0.8]), 0.6, 0.01
    score = -model.pair(jnp.array(w), jnp.asarray(y)).eps / w

    @jax.jit
    def gain(a, b):
        """Around the point, along a then b and back, each a step (dy, d log w)."""
        corners = jnp.stack([-a - b, a - b, a + b, b - a, -a - b]) / 2
        ts, xs = w * jnp.exp(corners[:, -1]), y + corners[:, :-1]
        run = quadrature(
            model, ts, xs, key=KEY, log_density=0.0, divergence=Exact(), nodes=4, batch=16
        )
        return run.log_density[-1]

    draws = [jnp.append(h * w * unit, 0.0) for unit in jnp.eye(3)]  # of the noise, one way each
    still = jnp.array([0.0, 0, 0, h])
    flow = jnp.append(-h * w**2 * score, h)
    found = at(model, w, y)

    def squares(a):
        return float(sum(gain(a, b) ** 2 for b in draws)) / (3 * h**4)

    assert found.residual == pytest.approx(squares(still), rel=1e-3)
    assert found.transport == pytest.approx(squares(flow), rel=1e-3)
    assert found.curl == pytest.approx(sum(map(squares, draws)), rel=1e-3)
    assert min(found) > 1e-3


def test_squares_are_unbiased_with_probes():
    model, x, t = denoiser_field(untrained), jnp.array([0.3, -0.5, 0.8]), 0.6
    right = at(model, t, x)

    @jax.jit
    @jax.vmap
    def found(key):
        return inconsistency(model, t, x, key=key), heat_residual(model, t, x, key=key)

    squares, vectors = found(jax.random.split(KEY, 4000))
    for part, exact in zip(squares, right, strict=True):
        assert abs(part.mean() - exact) < 4 * part.std() / np.sqrt(4000) + 1e-12
    assert np.mean(vectors**2) > 1.2 * right.residual  # one estimate's own square is not
    with pytest.raises(ValueError, match="an int above 1, got 1: the square"):
        inconsistency(model, t, x, key=KEY, estimates=1)
