"""A trained network of somebody else, in Equinox: galaxygrad's score of galaxies of 32x32 pixels.

Its path is the variance-preserving one with beta = 1 and times up to 10.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax

T_MIN = 0.01


@pytest.fixture(scope="module")
def galaxies():
    equinox = pytest.importorskip("equinox")
    with jax.enable_x64(False):  # it reads its weights, in float32, when it is imported
        network = pytest.importorskip("galaxygrad.scorenet").HSC_32
    wide = lambda leaf: leaf.astype(float) if equinox.is_array(leaf) else leaf
    network = jax.tree.map(wide, network)  # the tests compute in float64
    arrays, functions = equinox.partition(network, equinox.is_array)

    def apply(arrays, x, t, cond):
        return equinox.combine(arrays, functions)(x, t)

    model = dgjax.field(
        jax.tree_util.Partial(apply, arrays),
        dgjax.vp(1.0, 1.0),
        dgjax.ScorePrediction(),
        t_min=T_MIN,
        t_max=10.0,
        shape=(1, 32, 32),
    )
    return network, model


@pytest.mark.slow
def test_samples_are_those_of_its_own_solver(galaxies):
    network, model = galaxies
    latent = dgjax.prior_sample(model, jax.random.key(1), (1, 32, 32))
    # The drift and the solver of its `generate`, to a tolerance and not beyond t_min.
    own = diffrax.ODETerm(lambda t, y, args: -0.5 * (y + network(y, t)))
    tolerance = diffrax.PIDController(rtol=1e-5, atol=1e-6)
    solver = diffrax.Tsit5()
    expected = diffrax.diffeqsolve(
        own, solver, 10.0, T_MIN, -0.025, latent, stepsize_controller=tolerance
    )
    found = dgjax.sample(model, latent, dgjax.grid_logsnr(model, 64), key=jax.random.key(0))
    expected = expected.ys[0]
    np.testing.assert_allclose(found.x, expected, atol=0.01 * jnp.abs(expected).max())


@pytest.mark.slow
def test_log_density_rises_with_q(galaxies):
    _, model = galaxies
    latent = dgjax.prior_sample(model, jax.random.key(2), (1, 32, 32))
    grid = dgjax.grid_logsnr(model, 16)

    def draw(q):
        guides = dgjax.density_guidance(q)
        return dgjax.sample(model, latent, grid, key=jax.random.key(0), guides=guides).log_density

    found = jax.vmap(draw)(jnp.asarray([0.2, 0.35, 0.5, 0.65, 0.8]))
    assert np.all(np.diff(found) > 0)
