"""Both modes of differentiation through solves, and through the root that `shoot` finds."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax

KEY = jax.random.key(0)
X = jnp.array([2.0, -1.0, 3.0])
DIRECTION = jnp.array([0.3, -0.2, 0.5])
WEIGHT = jnp.array([[0.3, 0.1, 0.0], [0.2, -0.4, 0.1], [0.0, 0.3, 0.2]])
H = 1e-5
REVERSE = diffrax.RecursiveCheckpointAdjoint()
ORDERS = [(jax.jacfwd, jax.grad), (jax.jacrev, jax.jacfwd)]


def network(weight, x, t, cond):
    del cond
    return 0.3 + (x - 0.3) / (1 + t**2) + 0.2 * jnp.tanh(weight @ x / jnp.sqrt(1 + t**2))


def make_model(weight=WEIGHT):
    denoised = jax.tree_util.Partial(network, weight)
    return dgjax.field(denoised, dgjax.edm(), dgjax.DenoisedPrediction(), t_min=0.2, t_max=4.0)


def log_density(x, adjoint=None, solver=None, controller=None):
    model = make_model()
    guides = (dgjax.density_guidance(0.6),)
    options = {"adjoint": adjoint, "solver": solver, "controller": controller}
    return dgjax.sample(
        model,
        x,
        dgjax.grid_logsnr(model, 6),
        key=KEY,
        guides=guides,
        divergence=dgjax.Exact(),
        **options,
    ).log_density


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [(None, None), (dgjax.RK4(), dgjax.BOTH_MODES)],
    ids=["multistep", "rk4 by diffrax"],
)
def test_both_modes_agree_with_the_reverse_mode_of_diffrax(solver, adjoint):
    value = jax.jit(lambda x: log_density(x, adjoint, solver))
    truth = jax.jit(jax.value_and_grad(lambda x: log_density(x, REVERSE, solver)))(X)
    found, gradient = jax.value_and_grad(value)(X)
    np.testing.assert_allclose(found, truth[0], rtol=1e-12)
    np.testing.assert_allclose(gradient, truth[1], rtol=1e-10)
    np.testing.assert_allclose(jax.jacfwd(value)(X), truth[1], rtol=1e-10)
    found, push = jax.linearize(value, X)
    np.testing.assert_allclose(found, truth[0], rtol=1e-12)
    np.testing.assert_allclose(push(DIRECTION), truth[1] @ DIRECTION, rtol=1e-10)


@pytest.mark.slow
def test_second_derivatives_agree_in_all_orders_of_the_modes():
    hessians = [jax.jit(outer(inner(log_density)))(X) for outer, inner in ORDERS]
    np.testing.assert_allclose(hessians[0], hessians[1], rtol=1e-9)
    np.testing.assert_allclose(hessians[0], hessians[0].T, rtol=1e-9)
    assert (np.abs(hessians[0]) > 1e-3).all()


@pytest.mark.slow
def test_adaptive_steps_serve_the_mode_of_their_adjoint():
    controller = diffrax.PIDController(rtol=1e-6, atol=1e-6)
    value = lambda x, adjoint=None: log_density(x, adjoint, dgjax.RK4(), controller)
    gradient = jax.jit(jax.grad(value))(X)
    forward = jax.jit(jax.jacfwd(lambda x: value(x, dgjax.FORWARD)))(X)
    np.testing.assert_allclose(forward, gradient, rtol=1e-10)
    with pytest.raises(TypeError, match=r"pass adjoint=dgjax.FORWARD"):
        jax.jacfwd(value)(X)


@pytest.mark.slow
def test_a_derivative_that_the_adjoint_lacks_is_refused_with_the_fix():
    reverse = lambda x: log_density(x, REVERSE)
    forward = lambda x: log_density(x, dgjax.FORWARD)
    for refused in (
        lambda: jax.jvp(reverse, (X,), (X,)),
        lambda: jax.jacfwd(jax.jit(reverse))(X),
        lambda: jax.jit(jax.jacfwd(reverse))(X),
        lambda: jax.linearize(jax.jit(reverse), X)[1](X),
    ):
        with pytest.raises(TypeError, match=r"pass adjoint=dgjax.FORWARD.*BOTH_MODES"):
            refused()
    for refused in (lambda: jax.grad(forward)(X), lambda: jax.jit(jax.grad(forward))(X)):
        with pytest.raises(TypeError, match=r"for grad pass adjoint=dgjax.BOTH_MODES"):
            refused()


def quantile(target, x, weight):
    model = make_model(weight)
    return dgjax.shoot(
        model,
        x,
        dgjax.grid_logsnr(model, 6),
        target,
        key=KEY,
        divergence=dgjax.Exact(),
        tolerance=1e-12,
        iterations=60,
    ).q


@pytest.mark.slow
def test_gradient_of_the_quantile_that_shoot_finds():
    point, moves = (jnp.array(-3.0), X, WEIGHT), (jnp.array(1.0), DIRECTION, jnp.ones((3, 3)))
    run = jax.jit(quantile)
    gradient = jax.jit(jax.grad(quantile, (0, 1, 2)))(*point)
    for i, move in enumerate(moves):
        ends = [run(*(a + s * move if i == j else a for j, a in enumerate(point))) for s in (H, -H)]
        slope = (ends[0] - ends[1]) / (2 * H)
        assert abs(slope) > 1e-3
        np.testing.assert_allclose(jnp.vdot(gradient[i], move), slope, rtol=1e-6)
    forward = jax.jit(jax.jacfwd(lambda target: quantile(target, X, WEIGHT)))
    np.testing.assert_allclose(forward(point[0]), gradient[0], rtol=1e-10)


@pytest.mark.slow
def test_gradients_of_a_target_out_of_reach_are_zero():
    by_target = jax.jit(jax.vmap(jax.grad(lambda target: quantile(target, X, WEIGHT))))
    found = by_target(jnp.array([-3.0, 1e3]))
    assert found[0] > 0.1
    assert found[1] == 0


def omega(x, **options):
    model = make_model()
    grid = dgjax.grid_logsnr(model, 6)
    return dgjax.align(model, x, grid, key=KEY, divergence=dgjax.Exact(), **options).omega


@pytest.mark.slow
def test_gradient_of_an_alignment():
    run = jax.jit(omega)
    slope = (run(X + H * DIRECTION) - run(X - H * DIRECTION)) / (2 * H)
    assert abs(slope) > 1e-3
    gradient = jax.jit(jax.grad(omega))(X)
    np.testing.assert_allclose(gradient @ DIRECTION, slope, rtol=1e-6)
    adaptive = {"solver": dgjax.RK4(), "controller": diffrax.PIDController(rtol=1e-6, atol=1e-6)}
    np.testing.assert_allclose(omega(X, **adaptive), run(X), rtol=0.05)
    with pytest.raises(TypeError, match=r"adjoint=dgjax.BOTH_MODES"):
        jax.grad(lambda x: omega(x, **adaptive))(X)
