"""Walks along level sets with one evaluation a step, against closed forms and Runge-Kutta."""

from functools import partial

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax import pilot, sample, target_guidance
from dgjax.guidance.guide import apply_guides
from dgjax.model.divergence import Exact, Untracked
from dgjax.model.local import evaluate
from dgjax.sampling import level_set
from dgjax.sampling.results import Trajectory
from dgjax.sampling.solvers import RK4, LevelSetEuler, Multistep
from dgjax.sampling.state import Evaluation, State
from dgjax.sampling.time_grids import grid_karras, grid_logsnr

KEY = jax.random.key(0)
W_MIN, W_MAX = 0.05, 20.0
ALONG = dgjax.level_set_noise()
UNGUIDED = dgjax.density_guidance(0.5)
COUNT = 32


@pytest.fixture(scope="module")
def model(mixture16):
    return dgjax.closed_form(mixture16.model, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)


def latents(model, count):
    keys = jax.random.split(jax.random.key(2), count)
    return jax.vmap(lambda k: model.network.sample(k, W_MAX))(keys)


@partial(jax.jit, static_argnames=("steps", "solver", "grid", "save", "trace"))
def solved(
    model,
    x,
    steps,
    guide,
    term=ALONG,
    solver=LevelSetEuler(),
    grid=grid_karras,
    save=None,
    trace=Exact(),
):
    """Many tests ask for the same shapes, so that few compilations serve them all."""
    times, keys = grid(model, steps), jax.random.split(jax.random.key(steps), len(x))
    x = model.path.alpha(model.t_max) * x

    def one(x, key):
        options = {"key": key, "guides": (guide,), "noise": term, "solver": solver, "save": save}
        return sample(model, x, times, divergence=trace, **options)

    return jax.vmap(one)(x, keys)


def truth(model, x):
    return jax.jit(jax.vmap(lambda x: dgjax.log_density(model, model.t_min, x)))(x)


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


@pytest.mark.slow
def test_where_there_is_only_noise_the_level_is_kept_at_any_step():
    """Without data to speak of level sets are spheres, |x|/sigma stays, and all is exact."""
    dot = dgjax.gaussian(jnp.zeros(32), 1e-12)
    model = dgjax.closed_form(dot, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    x = latents(model, 4)
    found = solved(model, x, 2, UNGUIDED)
    radius = jnp.linalg.norm(x, axis=-1) / W_MAX
    np.testing.assert_allclose(jnp.linalg.norm(found.x, axis=-1) / W_MIN, radius, rtol=1e-6)
    np.testing.assert_allclose(found.log_density, truth(model, found.x), atol=1e-4)
    assert (jnp.abs(jnp.sum(found.x * x, -1)) / (radius**2 * W_MIN * W_MAX) < 0.7).all()


@pytest.mark.slow
def test_pathwise_order_one(model):
    x = latents(model, COUNT)
    coarse, fine = (solved(model, x, n, UNGUIDED) for n in (64, 256))
    errors = [rms(found.log_density - truth(model, found.x)) for found in (coarse, fine)]
    assert errors[0] < 0.3
    assert np.log(errors[0] / errors[1]) / np.log(4) > 0.9


@pytest.mark.slow
def test_a_twentieth_of_the_published_error_at_as_many_evaluations(model):
    x, guide = latents(model, COUNT), dgjax.density_guidance(0.7)
    found = solved(model, x, 64, guide)
    error = rms(found.log_density - truth(model, found.x))
    assert error < 0.1
    vp, ito = dgjax.repath(model, dgjax.vp()), dgjax.published_stochastic()
    other = solved(vp, x, 65, guide, ito, diffrax.Euler(), grid_logsnr)
    assert rms(other.log_density - truth(vp, other.x)) > 20 * error


@pytest.mark.slow
def test_every_path_gives_the_same(model):
    vp, guide = dgjax.repath(model, dgjax.vp()), dgjax.density_guidance(0.6)
    x = latents(model, COUNT)
    one, other = (solved(m, x, 64, guide) for m in (model, vp))
    scale = vp.path.alpha(vp.t_min)
    np.testing.assert_allclose(other.x / scale, one.x, atol=1e-6)
    shifted = other.log_density + 16 * jnp.log(scale)
    np.testing.assert_allclose(shifted, one.log_density, atol=1e-5)


@pytest.mark.slow
def test_without_noise_it_converges_to_the_ode(model):
    x, guide = latents(model, COUNT), dgjax.density_guidance(0.6)
    exact = solved(model, x, 64, guide, None, diffrax.Dopri5()).x
    none = dgjax.level_set_noise(0.0)
    coarse, fine = (rms(solved(model, x, n, guide, none).x - exact) for n in (64, 256))
    assert coarse < 0.1
    assert np.log(coarse / fine) / np.log(4) > 0.9


@pytest.mark.slow
def test_agrees_in_law_with_runge_kutta():
    """Mean and spread of log p and of the coordinates over 2,000 paths of each."""
    means = 1.5 * jax.random.normal(jax.random.key(8), (5, 2, 8))
    mixture = dgjax.kernel_density(means, 0.5, jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    x, guide = latents(model, 2000), dgjax.density_guidance(0.6)

    def columns(steps, solver):
        found = solved(model, x, steps, guide, ALONG, solver, trace=Untracked())
        return np.column_stack([truth(model, found.x), found.x.reshape(len(x), -1)])

    a, b = columns(256, LevelSetEuler()), columns(65, RK4())
    # From the same latents, with noises of their own: paths differ, distributions do not.
    assert (np.abs(a - b)[:, 1:].max(1) > 0.1).all()
    z = (a.mean(0) - b.mean(0)) / np.sqrt((a.var(0) + b.var(0)) / len(x))
    assert np.abs(z).max() < 4
    spread = 0.5 * np.log(a.var(0) / b.var(0)) * np.sqrt(len(x))
    assert np.abs(spread).max() < 4


@pytest.mark.slow
def test_the_whole_trajectory(model):
    """And that a window of the noise opens and closes without a trace in the log-density."""
    there = dgjax.level_set_noise(dgjax.window(low=-3.0, high=2.0))
    found = solved(model, latents(model, 4), 96, UNGUIDED, there, save=Trajectory)
    course = found.trajectory
    np.testing.assert_array_equal(course.x[:, -1], found.x)
    exact = jax.jit(jax.vmap(jax.vmap(partial(dgjax.log_density, model))))(course.t, course.x)
    assert rms(course.log_density - exact) < 0.1
    assert jnp.all(found.info.finite)


@pytest.mark.slow
def test_targets_are_steered_to_by_the_log_density_on_the_way(model):
    x, grid = latents(model, 4), grid_karras(model, 64)
    profile = pilot(model, x, grid, key=KEY, divergence=Exact(), solver=Multistep())
    found = solved(model, x, 64, target_guidance(-14.0, model, profile))
    assert rms(truth(model, found.x) + 14.0) < 1.0


@pytest.mark.slow
def test_samples_do_not_depend_on_the_divergence(model):
    x = latents(model, COUNT)
    alone, tracked = (
        solved(model, x, 64, UNGUIDED, trace=trace) for trace in (Untracked(), Exact())
    )
    np.testing.assert_allclose(alone.x, tracked.x, atol=1e-12)
    assert not jnp.isfinite(alone.log_density).any()


@pytest.mark.slow
def test_gradients_and_one_trace_over_q(model):
    grid, x = grid_karras(model, 12), latents(model, 1)[0]

    @jax.jit
    @chex.assert_max_traces(n=1)
    def at(x, q, height):
        options = {"guides": (dgjax.density_guidance(q),), "divergence": Exact()}
        term = dgjax.level_set_noise(height)
        return sample(
            model, x, grid, key=KEY, noise=term, solver=LevelSetEuler(), **options
        ).log_density

    chex.clear_trace_counter()
    h = 1e-6
    direction = jax.random.normal(KEY, x.shape)
    for q, height in ((0.45, 0.5), (0.55, 0.0)):
        by_x, by_q = jax.grad(at, (0, 1))(x, q, height)
        along = (at(x + h * direction, q, height) - at(x - h * direction, q, height)) / (2 * h)
        np.testing.assert_allclose(jnp.sum(by_x * direction), along, rtol=1e-4)
        slope = (at(x, q + h, height) - at(x, q - h, height)) / (2 * h)
        np.testing.assert_allclose(by_q, slope, rtol=1e-4)


@pytest.mark.slow
def test_single_precision(model, float32):
    small = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), model)
    guide, term = dgjax.density_guidance(0.5), dgjax.level_set_noise()
    found = solved(small, latents(small, COUNT), 64, guide, term)
    assert found.x.dtype == found.log_density.dtype == jnp.float32
    assert rms(found.log_density - truth(small, found.x)) < 0.3


@pytest.mark.parametrize("term", [None, dgjax.reverse_sde(), dgjax.noise_matched()])
def test_other_noise_is_refused(model, term):
    with pytest.raises(ValueError, match="is for noise along the level set"):
        solved(model, latents(model, 1), 8, UNGUIDED, term)


def test_adaptive_steps_are_refused(model):
    x, control = latents(model, 1)[0], diffrax.PIDController(rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="LevelSetEuler needs a fixed grid"):
        sample(
            model,
            x,
            grid_karras(model, 8),
            key=KEY,
            noise=ALONG,
            solver=LevelSetEuler(),
            controller=control,
        )


def history_of(model, t, x, guides=()):
    local = evaluate(model, t, x, divergence=Exact(), key=KEY, log_densities=jnp.zeros(1))
    return level_set.init(Evaluation(apply_guides(guides, local), local, jnp.zeros(())))


@pytest.mark.parametrize("deficit", [0.0, 3.0, -5.0])
def test_the_bend_pays_the_deficit_on_a_sphere(model, deficit):
    """Without data level sets are spheres: the gain of the whole displacement is the deficit."""
    p, z = jax.random.normal(KEY, (2, 24))
    e = -p
    z = z - jnp.vdot(z, e) / jnp.vdot(e, e) * e
    start = history_of(model, 1.0, jnp.ones((2, 8)))._replace(deficit=jnp.asarray(deficit))
    moved = level_set._bend(start, 0.9 * z, e, jnp.sum(e**2))
    gain = 0.5 * (jnp.sum(p**2) - jnp.sum((p + moved.total) ** 2))
    np.testing.assert_allclose(gain, deficit, atol=1e-9)
    assert jnp.linalg.norm(moved.noise) > 2


@pytest.mark.slow
def test_log_densities_are_predicted_with_what_the_guides_ask_for():
    model = dgjax.closed_form(
        dgjax.gaussian(jnp.full(8, 3.0), 4.0), dgjax.edm(), t_min=W_MIN, t_max=W_MAX
    )
    x, t, dt = 3 + 4 * jax.random.normal(KEY, (8,)), 3.0, -0.02
    noise, dW = dgjax.level_set_noise(0.3), jnp.zeros(8)
    start = State(x, jnp.zeros(1), jnp.zeros(()), jnp.zeros(()))
    gains = []
    for q in (0.5, 0.8):
        history = history_of(model, t, x, (dgjax.density_guidance(q),))
        predicted, _ = level_set.predict(model.path, history, start, noise, dt, dW)
        true = [dgjax.log_density(model, *at) for at in ((t + dt, predicted.x), (t, x))]
        np.testing.assert_allclose(predicted.log_densities, true[0] - true[1], rtol=0.03)
        gains.append(predicted.log_densities)
    assert gains[1] > gains[0] + 0.01
