"""Grids: ends, direction and the variable in which each is uniform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax


def on_path(path):
    """A model with w = sigma/alpha from 0.02 to 20 on `path`."""
    model = dgjax.closed_form(
        dgjax.gaussian(jnp.zeros(2), 1.0), dgjax.edm(), t_min=0.02, t_max=20.0
    )
    return dgjax.repath(model, path)


def scaled_noise(model, grid):
    return jax.vmap(lambda t: model.path.sigma(t) / model.path.alpha(t))(grid)


@pytest.mark.parametrize(
    ("make", "clock"),
    [
        (dgjax.grid_uniform, lambda model, t: t),
        (dgjax.grid_logsnr, lambda model, t: jnp.log(scaled_noise(model, t))),
        (dgjax.grid_karras, lambda model, t: scaled_noise(model, t) ** (1 / 7)),
    ],
    ids=["uniform", "logsnr", "karras"],
)
def test_equal_steps_between_the_models_own_ends(span, make, clock):
    model = on_path(span.path)
    grid = make(model, 10)
    assert grid.shape == (11,)
    # Exactly: diffrax refuses a grid whose ends are off by one rounding.
    assert grid[0] == model.t_max
    assert grid[-1] == model.t_min
    assert (jnp.diff(grid) < 0).all()
    steps = jnp.diff(clock(model, grid))
    np.testing.assert_allclose(steps, jnp.mean(steps), rtol=1e-8)
    np.testing.assert_array_equal(make(model, 1), jnp.stack([model.t_max, model.t_min]))


def test_a_grid_from_a_noise_level_on(span):
    model = on_path(span.path)
    grid = dgjax.grid_logsnr(model, 5, noise=1.5)
    assert grid.shape == (6,)
    assert grid[-1] == model.t_min
    noises = scaled_noise(model, grid)
    np.testing.assert_allclose(noises, np.geomspace(1.5, 0.02, 6), rtol=1e-6)
    for wrong in (0.0, -1.0, 0.01, 100.0, jnp.nan):
        with pytest.raises(ValueError, match=r"noise must be above sigma/alpha of t_min"):
            dgjax.grid_logsnr(model, 5, noise=wrong)
    with pytest.raises(ValueError, match="one number"):
        dgjax.grid_logsnr(model, 5, noise=jnp.ones(2))
    traced = jax.jit(lambda noise: dgjax.grid_logsnr(model, 5, noise=noise))(100.0)
    assert jnp.isnan(traced[:-1]).all()


def test_the_step_at_the_data_is_cut_in_three(span):
    model = on_path(span.path)
    grid = dgjax.grid_from_data(model, 20)
    assert grid.shape == (21,)
    assert (grid[0], grid[-1]) == (model.t_max, model.t_min)
    steps = -jnp.diff(jnp.log(scaled_noise(model, grid)))
    whole = np.log(20.0 / 0.02) / 18
    np.testing.assert_allclose(steps, [whole] * 17 + [whole / 2, whole / 4, whole / 4], rtol=1e-8)
    few = dgjax.grid_from_data(model, 14)
    np.testing.assert_array_equal(few, dgjax.grid_logsnr(model, 14))


@pytest.mark.parametrize("steps", [24, 32])
def test_likelihood_of_what_is_not_the_models_needs_short_steps_at_the_data(steps):
    mixture = dgjax.gaussian(jnp.array([0.5, -1.0, 0.2]), jnp.diag(jnp.array([1e-4, 0.09, 4.0])))
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.02, t_max=80.0)
    x = jnp.array([0.5 + 0.15, -0.3, 2.0])  # seven standard deviations off along the first axis
    exact = mixture.log_density(x, 0.02)

    def error(grid):
        found = dgjax.likelihood(
            model, x, grid(model, steps), key=jax.random.key(0), divergence=dgjax.Exact()
        )
        return abs(found.log_density - exact)

    assert error(dgjax.grid_from_data) < 0.4 * error(dgjax.grid_logsnr)


def test_karras_is_equation_5():
    """Karras et al. 2022, eq. 5, and the same grid as equal steps on the clock sigma^(1/7)."""
    i = np.arange(9) / 8
    expected = (20 ** (1 / 5) + i * (0.02 ** (1 / 5) - 20 ** (1 / 5))) ** 5
    grid = dgjax.grid_karras(on_path(dgjax.edm()), 8, rho=5)
    np.testing.assert_allclose(grid, expected, rtol=1e-12)

    model = on_path(dgjax.edm(7.0))
    np.testing.assert_allclose(
        dgjax.grid_karras(model, 8), dgjax.grid_uniform(model, 8), rtol=1e-12
    )


@pytest.mark.parametrize("steps", [0, -3, 2.5, "8"])
@pytest.mark.parametrize(
    "make", [dgjax.grid_uniform, dgjax.grid_logsnr, dgjax.grid_karras, dgjax.grid_from_data]
)
def test_steps_must_be_a_positive_int(make, steps):
    with pytest.raises(ValueError, match="steps must be a positive int"):
        make(on_path(dgjax.edm()), steps)
