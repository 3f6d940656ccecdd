"""The error that quadratures between given points state, where it is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.sampling.stencils import difference_stencils, integrate_points

KEY = jax.random.key(0)
MEAN, VARIANCE = np.array([3.0, -2.0, 0.5]), 1.7


@pytest.fixture(scope="module")
def model():
    """One Gaussian off the origin: its score is linear in y."""
    return dgjax.closed_form(dgjax.gaussian(MEAN, VARIANCE), dgjax.edm(), t_min=0.05, t_max=20.0)


@pytest.fixture(scope="module")
def measure(model):
    """Differences of log-density and their errors, compiled once for each number of points."""

    @partial(jax.jit, static_argnames="error_every")
    def call(ts, xs, **options):
        options.update(key=KEY, divergence=dgjax.Exact(), log_density=0.0)
        return dgjax.quadrature(model, jnp.asarray(ts), jnp.asarray(xs), **options)

    return call


ENDS = np.array([2.0, 0.4]), np.array([[1.0, 4.0, -3.0], [2.5, -1.0, 0.3]])


def by_numpy(ts, xs):
    """The difference of two rules on one segment, of the line integral and of |sigma s|^2."""

    def rule(nodes):
        points, masses = np.polynomial.legendre.leggauss(nodes)
        shares = 0.5 * (points + 1)[:, None]
        dlog_w = np.log(ts[1] / ts[0])
        w = ts[0] * np.exp(shares * dlog_w)
        scores = -(xs[0] + shares * (xs[1] - xs[0]) - MEAN) / (VARIANCE + w**2)
        parts = scores @ (xs[1] - xs[0]), np.sum((w * scores) ** 2, 1) * dlog_w
        return np.array([0.5 * masses @ part for part in parts])

    return np.abs(rule(3) - rule(2)).sum()


def test_one_segment_is_compared_with_one_node_more(measure):
    np.testing.assert_allclose(measure(*ENDS).solver_error, [0, by_numpy(*ENDS)], rtol=1e-9)


def test_the_error_of_a_score_far_from_the_mean_is_the_true_one(model, measure):
    """|sigma s|^2 is then nearly all of the integrand, and three nodes are nearly exact."""
    ts, xs = np.array([1.5, 1.0]), np.broadcast_to(MEAN + 1000, (2, 3))
    found = measure(ts, xs)
    true = np.diff([dgjax.log_density(model, t, x) for t, x in zip(ts, xs, strict=True)])
    error = np.abs(found.log_density[1] - true[0])
    assert error > 1
    np.testing.assert_allclose(found.solver_error[1], error, rtol=0.02)


def test_where_it_is_not_measured_it_is_in_proportion_to_the_variation(measure):
    """There and back: two equal segments, of which one is measured."""
    ts, xs = (np.stack([end[0], end[1], end[0]]) for end in ENDS)
    error = by_numpy(*ENDS)
    np.testing.assert_allclose(measure(ts, xs).solver_error, [0, error, 2 * error], rtol=1e-9)


def test_the_segment_that_varies_most_is_measured(measure):
    ts = np.array([2.0, 2.0 - 1e-4, 0.4])
    xs = np.stack([ENDS[1][0] + 1e-4, ENDS[1][0], ENDS[1][1]])
    stated = np.diff(measure(ts, xs).solver_error)
    np.testing.assert_allclose(stated[1], by_numpy(ts[1:], xs[1:]), rtol=1e-9)
    assert 0 < stated[0] < 1e-2 * stated[1]


def test_every_segment_is_measured_on_request(measure):
    ts, xs = np.array([2.0, 0.4, 1.1]), np.concatenate([ENDS[1], MEAN[None] + 1])
    errors = [by_numpy(ts[i : i + 2], xs[i : i + 2]) for i in (0, 1)]
    stated = measure(ts, xs, error_every=1).solver_error
    np.testing.assert_allclose(stated, [0, errors[0], sum(errors)], rtol=1e-9)


def test_points_that_do_not_move_have_no_error_and_a_gradient(measure):
    ts, xs = np.full(3, 0.4), np.broadcast_to(ENDS[1][0], (3, 3))
    assert (measure(ts, xs).solver_error == 0).all()
    gradient = jax.grad(lambda xs: measure(ts, xs).solver_error[-1])(jnp.asarray(xs))
    assert np.isfinite(gradient).all()


def test_probes_do_not_enter(model, measure):
    ts, xs = (np.stack([end[0], end[1], end[0]]) for end in ENDS)
    probes = dgjax.Hutchinson(1, lambda key, x: jax.random.normal(key, x.shape, x.dtype))
    options = {"key": KEY, "divergence": probes, "log_density": 0.0}
    noisy = dgjax.quadrature(model, jnp.asarray(ts), jnp.asarray(xs), **options)
    exact = measure(ts, xs)
    assert (np.abs(noisy.log_density - exact.log_density)[1:] > 0.01).all()
    np.testing.assert_allclose(noisy.solver_error, exact.solver_error, rtol=1e-9)


@pytest.mark.parametrize("degree", [2, 3])
def test_nodes_are_compared_with_one_point_fewer(degree):
    """At one noise level, y = u^degree: the rate is a polynomial of u of degree 2 degree - 1.

    The integral through 5 points is exact to degree 4. Of u^5 it lacks the integral of
    (u + 2)(u + 1) u (u - 1)(u - 2) over [0, 1], which is 11/12.
    """
    model = dgjax.closed_form(dgjax.gaussian(jnp.zeros(1), 0.7), dgjax.edm(), t_min=0.1, t_max=9.0)
    ts, u = 1.0 + 1e-13 * jnp.arange(9.0), jnp.arange(9.0)
    options = {"key": KEY, "divergence": dgjax.Exact(), "log_density": 0.0}
    found = dgjax.node_quadrature(model, ts, u[:, None] ** degree, **options)
    assert found.solver_error[0] == 0
    lacking = {2: 0.0, 3: 3 / (0.7 + 1) * 11 / 12}[degree]
    np.testing.assert_allclose(np.diff(found.solver_error)[2:7], lacking, rtol=1e-6, atol=1e-6)


def test_an_error_that_is_not_read_costs_nothing(model):
    ts, xs = dgjax.grid_logsnr(model, 8), jnp.ones((9, 3))

    def flops(read):
        run = jax.jit(lambda xs: read(dgjax.quadrature(model, ts, xs, key=KEY)))
        return run.lower(xs).compile().cost_analysis()["flops"]

    log_density, error = flops(lambda found: found.log_density), flops(lambda f: f.solver_error)
    assert max(log_density, error) < 0.95 * flops(lambda found: found)


@pytest.mark.parametrize(("width", "before"), [(7, 3), (6, 2)])
def test_stencils_take_the_nearest_points(width, before):
    """Differences at a point and integrals to the next one are exact on their polynomials."""
    count, power = 15, np.arange(width)
    index, weights = difference_stencils(width, count)
    first = np.clip(np.arange(count) - before, 0, count - width)
    np.testing.assert_array_equal(index, first[:, None] + np.arange(width))
    u = np.arange(count) / 4
    found = np.einsum("nk,nkp->np", weights, u[index][..., None] ** power)
    slopes = power * u[:, None] ** np.maximum(power - 1, 0) / 4
    np.testing.assert_allclose(found, slopes, atol=1e-9)
    gains = integrate_points(width, jnp.asarray(u[:, None] ** power))
    whole = 4 * u[:, None] ** (power + 1) / (power + 1)
    np.testing.assert_allclose(gains, np.diff(whole, axis=0), atol=1e-9)
