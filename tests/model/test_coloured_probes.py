"""Coloured probes have the variance that their colouring predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgjax.model.coloured_probes import Coloured, colouring
from dgjax.model.divergence import Hutchinson

SHAPE, COUNT = (6, 5, 2), 2000
SIZE = int(np.prod(SHAPE))
POSITIONS = np.stack(np.indices(SHAPE), -1).reshape(SIZE, -1)
APART = np.linalg.norm(POSITIONS[:, None] - POSITIONS[None], axis=-1)
MATRIX = np.random.default_rng(0).normal(size=(SIZE, SIZE))


def many(estimator, matrix):
    """Return the estimates of COUNT calls, (COUNT, n)."""
    a = jnp.asarray(matrix)

    def once(key):
        return estimator(lambda z: (a @ z.ravel()).reshape(SHAPE), jnp.zeros(SHAPE), key)

    return np.asarray(jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(1), COUNT)))


@pytest.mark.parametrize("colours", [1, 2, 5, 7])
def test_unbiased_with_the_variance_of_pairs_of_one_colour(colours):
    colour = colouring(SHAPE, colours).ravel()
    pairs = (colour[:, None] == colour[None]) & ~np.eye(SIZE, dtype=bool)
    variance = 2 * np.sum((0.5 * (MATRIX + MATRIX.T))[pairs] ** 2)
    estimates = many(Coloured(colours, repeats=2), MATRIX)
    assert estimates.shape == (COUNT, 2)
    error = np.sqrt(variance / estimates.size)
    assert abs(estimates.mean() - np.trace(MATRIX)) < 4 * error
    np.testing.assert_allclose(estimates.var(), variance, rtol=0.1)
    assert abs(np.corrcoef(estimates.T)[0, 1]) < 4 / np.sqrt(COUNT)  # independent


def test_exact_where_only_neighbours_couple():
    near = np.where(APART < 1.5, MATRIX, 0)
    plain = many(Hutchinson(8), near).mean(1).std()
    exact = many(Coloured(8), near)
    np.testing.assert_allclose(exact, np.trace(near), rtol=1e-12)
    assert plain > 1


@pytest.mark.parametrize(("colours", "least"), [(2, 2), (4, 4), (5, 5), (8, 8), (13, 13), (16, 16)])
def test_elements_of_one_colour_are_as_far_apart_as_possible(colours, least):
    colour = colouring((28, 28, 1), colours)
    y, x, _ = np.nonzero(colour == colour[14, 14, 0])
    squares = (y - 14) ** 2 + (x - 14) ** 2
    assert np.sort(squares)[1] == least
    sizes = np.bincount(colour.ravel())
    assert len(sizes) == colours
    assert sizes.max() - sizes.min() < 28


@pytest.mark.parametrize("colours", range(3, 17))
def test_channels_of_a_pixel_differ_in_colour(colours):
    """A denoiser couples channels of one pixel most, the first and last as much as others."""
    colour = colouring((32, 32, 3), colours)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert (colour[..., first] != colour[..., second]).all()


def test_a_vector_has_a_colouring_too():
    np.testing.assert_array_equal(colouring((7,), 3), [0, 1, 2, 0, 1, 2, 0])


def test_what_it_refuses():
    for options in ({"colours": 0}, {"repeats": 1.0}):
        with pytest.raises(ValueError, match="positive int"):
            Coloured(**options)
    with pytest.raises(ValueError, match="exceed the dimension 4"):
        Coloured(5)(lambda z: z, jnp.zeros(4), jax.random.key(0))
    assert np.isposinf(Coloured().standard_error(jnp.ones(1)))
