"""Gradients where the score vanishes, and by the grid, against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but

import dgjax
from dgjax.typing import safe_sqrt

KEY = jax.random.key(0)
MODE = jnp.array([0.3, -1.5, 2.0, 0.5])


def make_model(t_min=0.05):
    def denoised(x, t, cond):
        del cond
        mode = MODE.astype(x.dtype)
        return mode + (x - mode) * 2.25 / (2.25 + t**2)

    return dgjax.field(
        denoised,
        dgjax.edm(),
        dgjax.DenoisedPrediction(),
        t_min=t_min,
        t_max=20.0,
        prior=dgjax.gaussian(MODE, 2.25),
    )


def profile(model):
    latents = 20 * jax.random.normal(KEY, (2, MODE.size), MODE.dtype)
    return dgjax.pilot(model, latents, dgjax.grid_logsnr(model, 8), key=KEY)


GUIDES = {
    "density": lambda model, q: (dgjax.density_guidance(q),),
    "after another": lambda model, q: (
        dgjax.classifier_free_guidance(2.0, model),
        dgjax.density_guidance(q),
    ),
    "rate": lambda model, q: (dgjax.rate_guidance(q, bound=1.0),),
    "target": lambda model, q: (dgjax.target_guidance(10 * q, model, profile(model)),),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guide", "solver"), [*((guide, None) for guide in GUIDES), ("density", dgjax.RK4())]
)
def test_derivatives_at_a_mode_are_those_beside_it(guide, solver):
    model = make_model()
    grid = dgjax.grid_logsnr(model, 12)

    def end(x, q):
        run = dgjax.sample(
            model,
            x,
            grid,
            key=KEY,
            guides=GUIDES[guide](model, q),
            divergence=dgjax.Exact(),
            solver=solver,
        )
        return jnp.append(run.x, run.log_density)

    end = jax.jit(end)
    jacobian, by_q = jax.jit(jax.jacrev(end, (0, 1)))(MODE, 0.6)
    h = 1e-3  # a quadratic: central differences have no error but rounding
    moved = jnp.stack(
        [(end(MODE + h * e, 0.6) - end(MODE - h * e, 0.6)) / (2 * h) for e in np.eye(4)], -1
    )
    np.testing.assert_allclose(jacobian, moved, atol=1e-9)
    assert (np.abs(np.diag(moved[:4])) > 1e-4).all()
    np.testing.assert_allclose(by_q, (end(MODE, 0.61) - end(MODE, 0.59)) / 0.02, atol=1e-9)


NOISES = {  # made inside of the test, in its precision
    "level set": lambda: dgjax.level_set_noise(0.5),
    "none of it": lambda: dgjax.level_set_noise(0.0),
    "noise matched": lambda: dgjax.noise_matched(0.5),
    "reverse": lambda: dgjax.reverse_sde(0.5),
    "reverse ito": dgjax.reverse_sde_ito,
}


@pytest.mark.parametrize("noise", slow_but(NOISES, "level set"))
def test_gradients_of_everything_are_finite_at_a_mode(float32, noise):
    del float32
    model = make_model()
    x = MODE.astype(jnp.float32)

    def total(x, q):
        guides = (dgjax.density_guidance(q),)
        run = dgjax.sample(
            model,
            x,
            dgjax.grid_logsnr(model, 6),
            key=KEY,
            guides=guides,
            noise=NOISES[noise](),
            divergence=dgjax.Hutchinson(3),
        )
        info = run.info
        sizes = info.standard_error + info.least_score + info.bound_share
        return run.log_density + jnp.sum(run.x) + sizes

    gradient = jax.jit(jax.grad(total, (0, 1)))(x, jnp.float32(0.6))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))


def test_likelihood_is_stationary_at_a_mode(float32):
    del float32
    model = make_model()
    x = MODE.astype(jnp.float32)
    grid = dgjax.grid_logsnr(model, 8)
    gradient = jax.jit(jax.grad(lambda x: dgjax.likelihood(model, x, grid, key=KEY).log_density))
    np.testing.assert_allclose(gradient(x), 0, atol=1e-5)
    assert (np.abs(gradient(x + 1)) > 0.1).all()


@pytest.mark.slow
def test_gradient_by_t_min_and_the_grid():
    x = jnp.array([1.0, -2.0, 0.5, 3.0])
    model = make_model()

    def by_t_min(t_min):
        model = make_model(t_min)
        grid = dgjax.grid_logsnr(model, 8)
        return dgjax.sample(model, x, grid, key=KEY, divergence=dgjax.Exact()).log_density

    def by_grid(grid):
        return dgjax.sample(model, x, grid, key=KEY, divergence=dgjax.Exact()).log_density

    h = 1e-5
    slope = (by_t_min(0.05 + h) - by_t_min(0.05 - h)) / (2 * h)
    assert abs(slope) > 0.01
    np.testing.assert_allclose(jax.grad(by_t_min)(0.05), slope, rtol=1e-6)

    grid = dgjax.grid_logsnr(model, 8)
    inner = jnp.zeros_like(grid).at[1:-1].set(grid[1:-1])
    by_grid = jax.jit(by_grid)
    slope = (by_grid(grid + h * inner) - by_grid(grid - h * inner)) / (2 * h)
    assert abs(slope) > 1e-6
    np.testing.assert_allclose(jnp.vdot(jax.grad(by_grid)(grid), inner), slope, rtol=1e-4)


def test_square_root_with_a_derivative_at_zero():
    value, slope = jax.vmap(jax.value_and_grad(safe_sqrt))(jnp.array([0.0, 4.0]))
    np.testing.assert_array_equal(value, [0, 2])
    np.testing.assert_array_equal(slope, [0, 0.25])
    assert np.isnan(safe_sqrt(jnp.array(-1.0)))
