"""Two routes to one log-density: nothing between them for a density, and what theory says else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import dgjax
from dgjax.evaluation.route_gap import (
    RouteGap,
    one_evaluation_gap,
    route_gap,
    route_gap_statistics,
)

LOW, HIGH, VARIANCE = 0.1, 20.0, 0.3
MEAN, SIZE = 0.7, 3


def wrong_gaussian(growth):
    """The score of N(mean, v I) with v = VARIANCE + growth w^2: a density for growth 1 only."""

    def network(x, t, cond):
        return x - t**2 * (x - MEAN) / (VARIANCE + growth * t**2)

    model = dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=LOW, t_max=HIGH)
    return model


def expected(growth, x, noise):
    """By the integrals of the two routes, one after the other, in scipy."""
    v = lambda w: VARIANCE + growth * w**2
    root = lambda w: (v(w) / v(LOW)) ** (0.5 / growth)
    end = x + LOW * noise - MEAN
    log_prior = lambda y: stats.norm.logpdf(y + MEAN, 0, HIGH).sum()
    ode, _ = integrate.quad(lambda w: -w * SIZE / v(w), LOW, HIGH)
    by_ode = log_prior(end * root(HIGH)) - ode

    def rate(w):
        y = x + w * noise - MEAN
        return -(y @ noise) / v(w) + w * (-SIZE / v(w) + (y @ y) / v(w) ** 2)

    line, _ = integrate.quad(rate, HIGH, LOW)
    return log_prior(x + HIGH * noise - MEAN) + line - by_ode


@pytest.mark.parametrize("growth", [1.0, 1.1])
def test_the_gap_is_that_of_the_two_integrals(growth):
    model = wrong_gaussian(growth)
    x, noise = jnp.array([0.5, 2.0, -1.0]), jnp.array([-0.4, 1.2, 0.3])
    grid = dgjax.grid_logsnr(model, 64)
    run = partial(route_gap, model, divergence=dgjax.Exact(), solver=dgjax.RK4())
    found = jax.jit(run)(x, noise, grid, key=jax.random.key(0))
    truth = expected(growth, np.array(x), np.array(noise))
    assert found.gap == pytest.approx(truth, abs=2e-5)
    if growth != 1:
        assert abs(truth) > 0.05
    assert found.standard_error == 0


def test_the_gap_of_an_energy_network_is_the_error_of_its_energy():
    """An energy that is wrong by a constant at each noise level has the score of the truth."""
    spread, wrong = 0.6, lambda t: 0.4 + 0.8 * t
    network = lambda z, t, cond: cond * wrong(t)
    parametrization = dgjax.energy_prediction(spread, 0.25)
    prior = dgjax.gaussian_prior(spread)
    model = dgjax.field(network, dgjax.edm(), parametrization, t_min=LOW, t_max=HIGH, prior=prior)
    x, noise = jnp.array([0.5, 2.0, -1.0]), jnp.array([-0.4, 1.2, 0.3])
    grid = dgjax.grid_logsnr(model, 64)
    run = partial(one_evaluation_gap, divergence=dgjax.Exact(), solver=dgjax.RK4())
    found = jax.jit(run)(model, x, noise, grid, key=jax.random.key(0), cond=jnp.array(2.0))
    truth = -2 * wrong(jnp.log(LOW / spread) / 4) - 0.25
    assert found.gap == pytest.approx(float(truth), abs=2e-5)
    assert found.standard_error == 0
    with pytest.raises(ValueError, match="energy_prediction"):
        one_evaluation_gap(
            wrong_gaussian(1.0), x, noise, grid, key=jax.random.key(0), divergence=dgjax.Exact()
        )


def test_statistics_leave_the_probes_out():
    rng = np.random.default_rng(0)
    gap = 5 + 3 * rng.normal(size=4000) + 4 * rng.normal(size=4000)
    found = route_gap_statistics(RouteGap(gap, np.full(4000, 4.0), np.full(4000, 0.2)))
    assert found.mean.low < 5 < found.mean.high
    assert found.spread.low < 3 < found.spread.high
    assert found.spread.value == pytest.approx(3, rel=0.1)
    assert (found.probe_error, found.samples) == (4.0, 4000)
    assert found.solver_error == pytest.approx(0.2)
    unknown = route_gap_statistics(RouteGap(gap, np.full(4000, np.inf), np.full(4000, 0.2)))
    assert np.isnan(unknown.spread).all()
    assert unknown.mean == found.mean
    with pytest.raises(ValueError, match="n > 1"):
        route_gap_statistics(RouteGap(gap[:1], gap[:1], gap[:1]))
