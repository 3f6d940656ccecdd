"""The path of discrete time: exact at the steps, smooth and monotone between them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline, CubicSpline

import dgjax
from dgjax.model.discrete_time import discrete_time
from dgjax.model.paths import coefficients, logsnr

STEPS = 1000


def cosine_betas():
    squared = np.cos((np.arange(STEPS + 1) / STEPS + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - squared[1:] / squared[:-1], 0.999)


BETAS = {
    "linear": np.linspace(1e-4, 0.02, STEPS),
    "scaled linear": np.linspace(0.00085**0.5, 0.012**0.5, STEPS) ** 2,
    "cosine": cosine_betas(),
    "rough": np.random.default_rng(0).uniform(1e-3, 0.1, 30),
}


def table(name):
    return np.exp(np.cumsum(np.log1p(-BETAS[name])))


@pytest.fixture(params=BETAS)
def schedule(request):
    """Return alphas_cumprod of a schedule and the path through them."""
    numbers = table(request.param)
    return numbers, discrete_time(tuple(numbers.tolist()))


def test_the_steps_are_exact_and_the_variance_is_kept(schedule):
    numbers, path = schedule
    t = jnp.arange(float(len(numbers)))
    alpha, sigma = jax.vmap(path.alpha)(t), jax.vmap(path.sigma)(t)
    np.testing.assert_allclose(alpha**2, numbers, rtol=1e-12)
    np.testing.assert_allclose(sigma**2, 1 - numbers, rtol=1e-10)


def test_log_snr_falls_and_time_inverts_it(schedule):
    numbers, path = schedule
    t = jnp.linspace(0, len(numbers) - 1, 4321)
    levels = jax.vmap(lambda t: logsnr(path, t))(t)
    assert (np.diff(levels) < 0).all()
    np.testing.assert_allclose(jax.vmap(path.time)(levels), t, atol=1e-9)
    beyond = path.time(levels[0] + 1), path.time(levels[-1] - 1)
    assert beyond[0] < 0
    assert beyond[1] > len(numbers) - 1


def test_single_precision_serves(float32):
    path = discrete_time(tuple(table("linear").tolist()))
    t = jnp.linspace(0, STEPS - 1, 1000)
    levels = jax.vmap(lambda t: logsnr(path, t))(t)
    assert levels.dtype == jnp.float32
    exact = CubicSpline(np.log1p(np.arange(STEPS)), np.log(1 / (1 / table("linear") - 1)))
    np.testing.assert_allclose(levels, exact(np.log1p(np.float64(t))), atol=3e-5)
    # An error of 1e-6 in log-SNR, whose least slope is 0.006.
    np.testing.assert_allclose(jax.vmap(path.time)(levels), t, atol=3e-4)


def test_the_slope_is_continuous_and_is_the_derivative(schedule):
    numbers, path = schedule
    inner = jnp.arange(1.0, len(numbers) - 1)
    slope = jax.vmap(lambda t: coefficients(path, t).dlogsnr)
    np.testing.assert_allclose(slope(inner - 1e-9), slope(inner + 1e-9), rtol=1e-5)
    t, h = inner[:-1] + 0.37, 1e-5
    level = jax.vmap(lambda t: logsnr(path, t))
    expected = (level(t + h) - level(t - h)) / (2 * h)
    np.testing.assert_allclose(slope(t), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_time_has_the_derivatives_of_the_inverse():
    numbers = table("linear")
    path = discrete_time(tuple(numbers.tolist()))
    t = jnp.array(123.4)
    expected = 1 / coefficients(path, t).dlogsnr
    for derivative in (jax.grad, jax.jacfwd):
        assert derivative(path.time)(logsnr(path, t)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "scaled linear", "cosine"])
def test_every_second_step_foretells_the_others_as_stated(name):
    numbers = table(name)
    level = np.log(numbers) - np.log1p(-numbers)
    kept, missed = np.arange(0, STEPS, 2), np.arange(1, STEPS - 1, 2)
    u = np.log1p(kept)
    # `discrete_time` interpolates in log(1 + t) of its own steps; here in that of the given steps.
    chords = np.diff(level[kept]) / np.diff(u)
    flatter = np.maximum(np.append(chords, chords[-1]), np.append(chords[0], chords))
    slopes = np.clip(CubicSpline(u, level[kept])(u, 1), 3 * flatter, flatter / 3)
    error = np.abs(CubicHermiteSpline(u, level[kept], slopes)(np.log1p(missed)) - level[missed])
    away = missed < STEPS - 40 if name == "cosine" else missed < STEPS
    print(name, error[0], missed[error > 1e-6])
    assert error[away].argmax() == 0
    assert 5e-5 < error[0] < 4e-4
    assert error[away & (missed > 20)].max() < 1e-6


def test_a_schedule_with_a_cliff_stays_monotone_where_a_spline_would_not():
    numbers = np.exp(-np.array([0.01, 0.02, 0.03, 5.0, 5.01, 5.02]))
    u = np.log1p(np.arange(6))
    level = np.log(numbers) - np.log1p(-numbers)
    fine = np.linspace(0, 5, 501)
    assert (np.diff(CubicSpline(u, level)(np.log1p(fine))) > 0).any()
    path = discrete_time(tuple(numbers.tolist()))
    assert (np.diff(jax.vmap(lambda t: logsnr(path, t))(jnp.asarray(fine))) < 0).all()


def test_another_schedule_is_not_another_program():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def level(path, t):
        return path.time(logsnr(path, t))

    for name in ("linear", "cosine"):
        assert level(discrete_time(tuple(table(name).tolist())), 3.5) == pytest.approx(3.5)


def test_a_model_in_discrete_time_is_the_same_model_on_another_path(mixture2):
    """A closed form moved to this path has the same velocity and score."""
    path = discrete_time(tuple(table("linear").tolist()))
    exact = mixture2.model

    def network(x, t, cond):
        field = dgjax.closed_form(exact, path, t_min=0.0, t_max=STEPS - 1.0)
        return field.pair(t, x).eps

    model = dgjax.field(network, path, dgjax.NoisePrediction(), t_min=0.0, t_max=STEPS - 1.0)
    moved = dgjax.repath(model, dgjax.edm())
    other = dgjax.closed_form(exact, dgjax.edm(), t_min=moved.t_min, t_max=moved.t_max)
    x = jnp.array([0.3, -0.5])
    for t in (0.02, 1.0, 30.0):
        found, right = (field.pair(jnp.array(t), x) for field in (moved, other))
        np.testing.assert_allclose(found.x0, right.x0, rtol=1e-6)
        np.testing.assert_allclose(found.eps, right.eps, rtol=1e-6)


@pytest.mark.parametrize(
    "numbers", [[0.9, 0.8, 0.7], [0.9, 0.8, 0.8, 0.7], [1.0, 0.9, 0.8, 0.7], [0.9, 0.5, 0.1, 0.0]]
)
def test_what_is_no_schedule_is_refused(numbers):
    with pytest.raises(ValueError, match="at least 4 numbers that fall"):
        discrete_time(tuple(numbers))
