"""Interpolation through values and derivatives against SciPy's, with points left out."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import KroghInterpolator

from dgjax.sampling.interpolation import hermite, hermite_weights, lagrange, weights

POINTS = np.array([2.1, 1.3, 1.0, 0.4, 0.9])
VALUES, SLOPES = np.array([0.3, -1.2, 0.7, 2.0, 5.0]), np.array([1.5, -0.2, 0.9, 0.1, 3.0])
USED = [  # which values and which derivatives
    ([1, 1, 1, 1, 0], [0, 0, 0, 0, 0]),
    ([1, 1, 0, 0, 0], [1, 0, 0, 0, 0]),
    ([1, 1, 1, 0, 0], [1, 1, 0, 0, 0]),
    ([1, 0, 1, 1, 0], [1, 1, 0, 1, 0]),  # a derivative without its value is not used
]


def krogh(valid, sloped):
    """SciPy's polynomial. It takes a point twice, first for the value and then the derivative."""
    xs, ys = [], []
    for x, y, slope, use, use_slope in zip(POINTS, VALUES, SLOPES, valid, sloped, strict=True):
        xs += use * [x] + (use and use_slope) * [x]
        ys += use * [y] + (use and use_slope) * [slope]
    return KroghInterpolator(xs, ys)


@pytest.mark.parametrize(("valid", "sloped"), USED)
def test_polynomials_and_their_integrals_are_those_of_scipy(valid, sloped):
    chosen = [jnp.array(valid, bool), jnp.array(sloped, bool)]
    u = np.linspace(0.2, 2.5, 7)
    of_values, of_slopes = hermite(jnp.array(POINTS), *chosen, jnp.array(u))
    expected = krogh(valid, sloped)
    np.testing.assert_allclose(of_values @ VALUES + of_slopes @ SLOPES, expected(u), rtol=1e-9)

    integral = np.dot(
        np.concatenate(hermite_weights(jnp.array(POINTS), *chosen, 1.3, 0.2)),
        np.concatenate([VALUES, SLOPES]),
    )
    fine = np.linspace(1.3, 0.2, 4001)
    np.testing.assert_allclose(integral, np.trapezoid(expected(fine), fine), rtol=1e-5)


def test_without_derivatives_they_are_lagrange_polynomials():
    valid, none = jnp.array([True, True, False, True, True]), jnp.zeros(5, bool)
    u = jnp.linspace(0.2, 2.5, 7)
    of_values, of_slopes = hermite(jnp.array(POINTS), valid, none, u)
    np.testing.assert_array_equal(of_values, lagrange(jnp.array(POINTS), valid, u))
    assert not of_slopes.any()
    inverse = lambda u: 1 / u
    found = hermite_weights(jnp.array(POINTS), valid, none, 1.3, 0.2, inverse)[0]
    np.testing.assert_array_equal(found, weights(jnp.array(POINTS), valid, 1.3, 0.2, inverse))
