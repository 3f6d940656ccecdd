"""The quadrature of `Multistep` at given nodes, against polynomials fitted with NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.sampling.interpolation import RHO
from dgjax.sampling.solver_quadrature import integrate_nodes, residual_gains
from dgjax.sampling.state import Node

US = np.array([2.0, 1.7, 1.5, 1.2, 0.9, 0.5])
# By node k and by how many steps ago. Small ones after step 4, large ones of wrong nodes.
RESIDUALS = np.array([[3.0 * k + 10 * j + 1 for j in range(3)] for k in range(6)])


def nodes(rates, norm_rate, residuals=RESIDUALS, few=RESIDUALS):
    return Node(*map(jnp.asarray, (US, rates, norm_rate, residuals, few)))


def integrate(given, start=0.5):
    path = dgjax.edm()
    return integrate_nodes(path, jnp.asarray(US**RHO), jnp.asarray(3), given, jnp.asarray(start))


def fitted(values, degree, i):
    """The integral over interval i of the polynomial through the degree + 1 nearest points."""
    first = np.clip(i - (degree + 1) // 2 + 1, 0, len(US) - degree - 1)
    near = slice(first, first + degree + 1)
    whole = np.polynomial.Polynomial.fit(US[near], values[near], degree).integ()
    return whole(US[i + 1]) - whole(US[i])


def used(residuals):
    """Those of step i that the last of the four nodes nearest to it knows."""
    last = [3, 3, 4, 5, 5]
    return np.array([residuals[k, k - i - 1] for i, k in enumerate(last)])


@pytest.mark.parametrize("sign", [1, -1])
def test_log_densities_and_their_error(sign):
    """Two estimates, of which one falls; the error of their mean adds up over the steps."""
    curve = sign * np.stack([20 * US**4 + 4 * US**5, 60 * US**4 - US], 1)
    few = RESIDUALS - sign * np.linspace(0.02, 0.08, 6)[:, None]
    found = integrate(nodes(curve, np.zeros(6), few=few))
    gains = np.array([[fitted(v, 5, i) for v in curve.T] for i in range(5)])
    expected = 0.5 + np.cumsum(gains + used(RESIDUALS)[:, None], 0)
    np.testing.assert_allclose(found.log_densities[1:], expected)
    np.testing.assert_allclose(found.log_densities[0], 0.5)

    mean = curve.mean(1)
    lost = used(RESIDUALS) - used(few)
    moved = np.array([fitted(mean, 5, i) - fitted(mean, 3, i) for i in range(5)])
    whole, half = abs(np.sum(moved + lost)), 0.5 * np.sum(np.abs(lost))
    assert whole > 1.2 * half
    assert abs(np.sum(moved - lost)) < 0.9 * whole
    np.testing.assert_allclose(found.error, whole)


def test_the_error_where_its_parts_cancel():
    """Half of the sum of their sizes, with the norm of the score in place of the rates."""
    norm_rate = 5 * np.cos(4 * US)
    found = integrate(nodes(np.zeros((6, 1)), norm_rate, few=RESIDUALS + 0.01))
    moved = np.array([fitted(norm_rate, 5, i) - fitted(norm_rate, 3, i) for i in range(5)])
    np.testing.assert_allclose(found.error, 0.5 * np.sum(np.abs(moved) + 0.01))


def test_residuals_of_three_steps_through_three_points():
    """They are exact for D of degree 2 in u, and those through four points for degree 3."""
    us = jnp.asarray(US[:4])
    ys, noise = jnp.sin(3 * us)[:, None], jnp.ones((4, 1))
    slope = lambda coefficients: np.polyval(coefficients, US[:4])[:, None]
    exact, few = residual_gains(us, ys, slope([2.0, -1, 0.5]), noise, jnp.asarray(4))
    np.testing.assert_allclose(few, exact, rtol=1e-9)
    for i, gain in enumerate(exact):
        newer, older = US[i], US[i + 1]
        grid = np.linspace(older, newer, 200001)
        pull = (newer / grid) ** RHO * np.polyval([2.0, -1, 0.5], grid) * RHO / grid
        residual = ys[i, 0] - (newer / older) ** RHO * ys[i + 1, 0] + np.trapezoid(pull, grid)
        np.testing.assert_allclose(gain, -residual / newer**RHO, rtol=1e-7)
    exact, few = residual_gains(us, ys, slope([1.0, 2, -1, 0.5]), noise, jnp.asarray(4))
    assert np.all(np.abs(few - exact) > 1e-6)
