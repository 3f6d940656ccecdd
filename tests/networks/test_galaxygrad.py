"""A trained network of somebody else, in Equinox: galaxygrad's score of galaxies of 32x32 pixels.

Its path is the variance-preserving one with beta = 1 and times up to 10.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax

T_MIN = 1e-3


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
    from galaxygrad import generate

    network, model = galaxies
    key = jax.random.key(1992)
    expected = generate.single_sample_fn(network, generate.int_beta, (1, 32, 32), 0.025, 10.0, key)
    latent = jax.random.normal(key, (1, 32, 32))
    grid = dgjax.grid_logsnr(model, 256)
    found = dgjax.sample(model, latent, grid, key=jax.random.key(0))
    # Its solver goes on to time 0.
    end = found.x + 0.5 * T_MIN * (found.x + network(found.x, T_MIN))
    np.testing.assert_allclose(end, expected, atol=0.02 * jnp.std(expected))


@pytest.mark.slow
def test_log_density_rises_with_q(galaxies):
    _, model = galaxies
    latents = dgjax.prior_sample(model, jax.random.key(2), (2, 1, 32, 32))
    grid = dgjax.grid_logsnr(model, 64)

    @jax.jit
    def draw(model, latent, q):
        guides = dgjax.density_guidance(q)
        return dgjax.sample(model, latent, grid, key=jax.random.key(0), guides=guides).log_density

    qs = jnp.asarray([0.2, 0.35, 0.5, 0.65, 0.8])
    found = jax.vmap(jax.vmap(draw, (None, None, 0)), (None, 0, None))(model, latents, qs)
    assert np.all(np.diff(found, axis=1) > 0)
