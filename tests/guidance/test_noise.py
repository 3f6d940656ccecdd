"""Noise terms: one step against its formula, whole paths against the true log-density.

Pathwise errors are those of the tracked log-density at the end point, over 64 paths of the 16-D
five-component mixture. They are measured on the VP path with equal steps of log-SNR, where
Stratonovich RK4 is twice as accurate as with equal steps of sigma^(1/7).
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import RK4
from dgjax.typing import inner, register_dataclass

W_MIN, W_MAX = 0.05, 20.0
CHUNK = 32  # steps of one compiled piece


@pytest.fixture(scope="module")
def model(mixture16):
    edm = dgjax.closed_form(mixture16.model, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    return dgjax.repath(edm, dgjax.vp())


@functools.partial(jax.jit, static_argnames="count")
def draw(model, t, count):
    """Draw `count` exact samples of the marginal at time t."""
    alpha = model.path.alpha(t)
    w = model.path.sigma(t) / alpha
    keys = jax.random.split(jax.random.key(7), count)
    return alpha * jax.vmap(lambda k: model.network.sample(k, w))(keys)


@jax.jit
def truth(model, x):
    return jax.vmap(lambda x: dgjax.log_density(model, model.t_min, x))(x)


# ---------------------------------------------------------------------------- one step


class Point(NamedTuple):
    local: dgjax.Local
    hessian: jax.Array
    dt: jax.Array
    dW: jax.Array
    g: jax.Array


@pytest.fixture(scope="module")
def point(model):
    @jax.jit
    def at(x):
        local = dgjax.evaluate(model, 0.4, x, divergence=dgjax.Exact(), key=jax.random.key(0))
        log_density = lambda x: dgjax.log_density(model, 0.4, x.reshape(2, 8))
        return local._replace(hvp=None), jax.hessian(log_density)(x.reshape(-1))

    local, hessian = at(jax.random.normal(jax.random.key(1), (2, 8)))
    times = lambda z: (hessian @ z.reshape(-1)).reshape(2, 8)
    dW = 0.1 * jax.random.normal(jax.random.key(2), (2, 8))
    return Point(local._replace(hvp=times), hessian, jnp.asarray(-0.01), dW, jnp.sqrt(local.g2))


def projected(point):
    s = point.local.score
    return point.dW - s * inner(s, point.dW) / inner(s, s)


def test_level_set_noise_is_normal_to_the_score(point):
    dx = dgjax.level_set_noise(0.7).increment(point.local, point.dt, point.dW)
    np.testing.assert_allclose(dx, 0.7 * point.g * projected(point), rtol=1e-10)
    assert abs(inner(dx, point.local.score)) < 1e-12


def test_reverse_sde_increment(point):
    """The term turns the PF-ODE into (f x - g^2 s) dt + g dW; churn scales the variance."""
    local, dt, dW, g = point.local, point.dt, point.dW, point.g
    for term, height in [
        (dgjax.reverse_sde(), 1.0),
        (dgjax.reverse_sde(0.5), 0.5),
        (dgjax.churn(2.0), np.sqrt(2.0)),
    ]:
        dx = local.velocity * dt + term.increment(local, dt, dW)
        drift = local.f * local.x - 0.5 * (1 + height**2) * local.g2 * local.score
        np.testing.assert_allclose(dx, drift * dt + height * g * dW, rtol=1e-9, atol=1e-12)


def test_noise_matched_step(point):
    local, _, dt, dW, g = point
    z = projected(point)
    bend = 0.5 * (0.7 * g) ** 2 * z.reshape(-1) @ point.hessian @ z.reshape(-1)
    expected = local.velocity * dt + 0.7 * g * z
    expected = expected - bend * local.score / inner(local.score, local.score)
    dx, gain = dgjax.noise_matched(0.7).step(local.velocity, local, dt, dW)
    np.testing.assert_allclose(dx, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gain, -local.divergences * dt, rtol=1e-12)


def test_published_step(point):
    local, hessian, dt, dW, g = point
    bend = 0.5 * (0.7 * g) ** 2 * jnp.trace(hessian) / inner(local.score, local.score)
    drift = local.velocity + bend * local.score
    dx, gain = dgjax.published_stochastic(0.7).step(local.velocity, local, dt, dW)
    np.testing.assert_allclose(dx, drift * dt + 0.7 * g * projected(point), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(gain, -local.divergences * dt, rtol=1e-12)


def test_ito_step_of_the_reverse_sde(point):
    """d log p = -(D f + g^2/2 |s|^2) dt + g <s, dW>; a guided drift v adds <v - u, s> dt."""
    local, _, dt, dW, g = point
    s = local.score
    dx, gain = dgjax.reverse_sde_ito().step(local.velocity, local, dt, dW)
    np.testing.assert_allclose(
        dx, (local.f * local.x - local.g2 * s) * dt + g * dW, rtol=1e-9, atol=1e-12
    )
    plain = -(16 * local.f + 0.5 * local.g2 * inner(s, s)) * dt + g * inner(s, dW)
    np.testing.assert_allclose(gain, plain[None], rtol=1e-10)
    dx2, gain2 = dgjax.reverse_sde_ito().step(local.velocity + s, local, dt, dW)
    np.testing.assert_allclose(dx2 - dx, s * dt, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(gain2 - gain, (inner(s, s) * dt)[None], rtol=1e-9)


def test_windows_and_schedules_of_height(point):
    here = point.local.logsnr
    plain = dgjax.level_set_noise().increment(point.local, point.dt, point.dW)

    def height(term):
        return float(jnp.sum(term.increment(point.local, point.dt, point.dW)) / jnp.sum(plain))

    assert height(dgjax.level_set_noise(dgjax.window(0.3, low=here - 1))) == pytest.approx(0.3)
    assert height(dgjax.level_set_noise(dgjax.window(0.3, low=here))) == pytest.approx(0.3)
    assert height(dgjax.level_set_noise(dgjax.window(0.3, high=here))) == 0
    assert height(dgjax.level_set_noise(dgjax.window(low=here + 1))) == 0
    ramp = dgjax.schedule([0.0, 1.0], [here - 1, here + 1])
    assert height(dgjax.level_set_noise(ramp)) == pytest.approx(0.5)
    assert height(dgjax.level_set_noise(0.0)) == 0


def test_bad_windows():
    with pytest.raises(ValueError, match="low < high"):
        dgjax.window(low=1.0, high=1.0)
    with pytest.raises(ValueError, match="height must not be negative"):
        dgjax.window(-0.5)
    with pytest.raises(ValueError, match="amount must not be negative"):
        dgjax.churn(-1.0)


# ---------------------------------------------------------------------------- whole paths


@register_dataclass
@dataclass(frozen=True)
class Unknown:
    """A divergence estimator that returns NaN, for tracking that must not read it."""

    def __call__(self, jvp, x, key):
        return jnp.full((1,), jnp.nan)

    def standard_error(self, estimates, scatter=jnp.nan):
        return estimates[0]


class Method(NamedTuple):
    term: Any
    solver: diffrax.AbstractSolver
    steps: tuple[int, ...]
    count: int = 64
    trace: Any = dgjax.Exact()


METHODS = {
    "rk4": Method(dgjax.level_set_noise(), RK4(), (32, 64, 128, 256)),
    "heun": Method(dgjax.level_set_noise(), diffrax.Heun(), (256, 512, 1024)),
    "matched": Method(dgjax.noise_matched(), diffrax.Euler(), (64, 128, 256, 512)),
    "published": Method(dgjax.published_stochastic(), diffrax.Euler(), (64, 256, 1024)),
    "reverse rk4": Method(dgjax.reverse_sde(), RK4(), (64, 128, 256, 512)),
    "reverse heun": Method(dgjax.reverse_sde(), diffrax.Heun(), (64, 128, 256)),
    "reverse ito": Method(
        dgjax.reverse_sde_ito(), diffrax.Euler(), (64, 128, 256), 1000, Unknown()
    ),
}


@pytest.fixture(scope="module")
def errors(model):
    """Tracked minus true log-density in nats, by method, of shape (steps, paths)."""

    @functools.cache
    def measure(name):
        term, solver, every_steps, count, trace = METHODS[name]

        @jax.jit
        def piece(x, grid, log_density, key):
            def one(x, log_density, key):
                options = {"noise": term, "divergence": trace, "solver": solver}
                out = sample(model, x, grid, key=key, log_density=log_density, **options)
                return out.x, out.log_density

            return jax.vmap(one)(x, log_density, jax.random.split(key, count))

        latents = draw(model, model.t_max, count)
        start = jax.jit(jax.vmap(lambda x: dgjax.log_prior(model, x)))(latents)
        rows = []
        for steps in every_steps:
            grid = dgjax.grid_logsnr(model, steps)
            x, tracked = latents, start
            for i in range(0, steps, CHUNK):
                key = jax.random.fold_in(jax.random.key(steps), i)
                x, tracked = piece(x, grid[i : i + CHUNK + 1], tracked, key)
            rows.append(tracked - truth(model, x))
        return np.stack(rows)

    return measure


def rms(a):
    return np.sqrt(np.mean(np.square(a), -1))


def slope(steps, error):
    """Return the order of convergence: minus the slope of log error on log steps."""
    return -np.polyfit(np.log(steps), np.log(error), 1)[0]


@pytest.mark.slow
def test_rk4_has_pathwise_order_two(errors):
    error = rms(errors("rk4"))
    assert slope(METHODS["rk4"].steps, error) == pytest.approx(2, abs=0.2)
    assert error[1] < 0.1  # 64 steps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heun", "matched", "reverse heun"])
def test_pathwise_order_one(errors, name):
    """Heun reaches order 1 only at many steps: from 64 steps on its local order rises from 0.75."""
    assert slope(METHODS[name].steps, rms(errors(name))) == pytest.approx(1, abs=0.15)


@pytest.mark.slow
def test_the_published_form_levels_off(errors):
    """More steps do not remove the bias; from 64 to 1,024 steps it grows."""
    error = errors("published")
    assert (rms(error) > 2).all()
    assert slope(METHODS["published"].steps, rms(error)) < 0.1
    assert abs(error[-1].mean()) > 2


@pytest.mark.slow
def test_reverse_sde_with_rk4_is_tracked_true(errors):
    """A few paths carry most of the mean square, so the median gives the order."""
    error = errors("reverse rk4")
    assert rms(error)[0] < 0.01
    assert slope(METHODS["reverse rk4"].steps, np.median(np.abs(error), -1)) > 1.8


@pytest.mark.slow
def test_euler_maruyama_has_a_bias_of_order_one_and_reads_no_divergence(errors):
    """Its pathwise order is one half. Every divergence it gets is NaN."""
    error = errors("reverse ito")
    steps = METHODS["reverse ito"].steps
    bias = error.mean(-1)
    assert slope(steps, bias) == pytest.approx(1, abs=0.15)
    assert bias[0] / 16 > 0.2
    assert slope(steps, error.std(-1)) == pytest.approx(0.5, abs=0.2)


# ---------------------------------------------------------------------------- in law


@pytest.fixture(scope="module")
def round_model():
    """A 16-D mixture of five isotropic components, cheap enough for 2,000 paths."""
    means = 1.5 * jax.random.normal(jax.random.key(8), (5, 2, 8))
    mixture = dgjax.kernel_density(means, 0.5, jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    edm = dgjax.closed_form(mixture, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    return dgjax.repath(edm, dgjax.vp())


def law(model, term, solver, steps):
    """Return the end points of 2,000 paths from exact latents."""
    latents = draw(model, model.t_max, 2000)
    grid = dgjax.grid_logsnr(model, steps)

    def one(x, key):
        return sample(model, x, grid, key=key, noise=term, solver=solver).x

    keys = jax.random.split(jax.random.key(steps), len(latents))
    return jax.jit(jax.vmap(one))(latents, keys)


def scores_of_difference(a, b):
    """Return z-scores of the differences in mean and log standard deviation, for each column."""
    n = len(a)
    means = (a.mean(0) - b.mean(0)) / np.sqrt((a.var(0) + b.var(0)) / n)

    def log_spread(c):
        fourth = ((c - c.mean(0)) ** 4).mean(0) / c.var(0) ** 2
        return 0.5 * np.log(c.var(0)), 0.25 * (fourth - 1) / n

    (la, va), (lb, vb) = log_spread(a), log_spread(b)
    return means, (la - lb) / np.sqrt(va + vb)


def columns(model, x):
    """Return log p and the coordinates of a batch, (n, 17)."""
    return np.column_stack([truth(model, x), x.reshape(len(x), -1)])


@pytest.mark.slow
def test_stratonovich_and_noise_matched_agree_in_law(round_model):
    """Mean and spread of log p and of x agree over 2,000 paths of each.

    The noise-matched form takes 2,048 steps because its bias in log p is of order 1.
    """
    a = law(round_model, dgjax.level_set_noise(), RK4(), 64)
    b = law(round_model, dgjax.noise_matched(), diffrax.Euler(), 2048)
    means, spreads = scores_of_difference(columns(round_model, a), columns(round_model, b))
    assert np.abs(means).max() < 4
    assert np.abs(spreads).max() < 4
    # The test is not trivial: the noise has moved every path, from the same latents.
    assert (np.abs(a - b).max(axis=(1, 2)) > 0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "term",
    [dgjax.churn(3.0, low=-2.0, high=3.0), dgjax.reverse_sde()],
    ids=["churn", "reverse_sde"],
)
def test_langevin_noise_keeps_the_marginals(round_model, term):
    """log p and the moments of samples agree with 2,000 exact draws of the mixture."""
    sampled = law(round_model, term, RK4(), 64)
    exact = columns(round_model, draw(round_model, round_model.t_min, 2000))
    means, spreads = scores_of_difference(columns(round_model, sampled), exact)
    assert np.abs(means).max() < 4
    assert np.abs(spreads).max() < 4


# ---------------------------------------------------------------------------- windows


@pytest.mark.slow
def test_noise_acts_inside_its_window_only(model):
    """Early noise acts in the first half of the log-SNR range, late noise in the second."""
    grid = dgjax.grid_logsnr(model, 64)
    both, none = dgjax.window(), dgjax.window(0.0)

    @jax.jit
    def half(x, grid, window, key):
        def one(x, key):
            term = dgjax.level_set_noise(window)
            start = jnp.zeros(())
            return sample(model, x, grid, key=key, log_density=start, noise=term, solver=RK4())

        return jax.vmap(one)(x, jax.random.split(key, len(x))).x

    x = draw(model, model.t_max, 8)
    one, two = jax.random.key(1), jax.random.key(2)
    first, second = grid[:33], grid[32:]
    calm = half(x, first, none, one)
    np.testing.assert_array_equal(calm, half(x, first, none, two))
    stirred = half(x, first, both, one)
    assert (np.abs(stirred - calm).max(axis=(1, 2)) > 0.1).all()
    assert (np.abs(stirred - half(x, first, both, two)).max(axis=(1, 2)) > 0.1).all()

    # The middle of the range is log-SNR 0, to within rounding.
    early, late = dgjax.window(high=1e-9), dgjax.window(low=1e-9)
    np.testing.assert_array_equal(half(x, first, early, one), stirred)
    np.testing.assert_array_equal(half(x, first, late, one), calm)
    early, late = dgjax.window(high=-1e-9), dgjax.window(low=-1e-9)
    x = calm
    calm, stirred = half(x, second, none, one), half(x, second, both, one)
    np.testing.assert_array_equal(half(x, second, early, one), calm)
    np.testing.assert_array_equal(half(x, second, late, one), stirred)
    assert (np.abs(stirred - calm).max(axis=(1, 2)) > 0.1).all()

    # Zero height is the ODE.
    plain = jax.jit(
        jax.vmap(
            lambda x: sample(model, x, second, key=one, log_density=jnp.zeros(()), solver=RK4()).x
        )
    )
    np.testing.assert_allclose(plain(x), calm, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("g2", [0.25, 4.0])
def test_noise_has_the_size_of_g(point, g2):
    local = point.local._replace(g2=jnp.asarray(g2))
    noise = dgjax.reverse_sde(0.5)
    np.testing.assert_allclose(
        noise.increment(local, 0 * point.dt, point.dW), 0.5 * np.sqrt(g2) * point.dW, rtol=1e-12
    )


def test_without_an_amount_noise_is_that_of_the_reverse_sde():
    for default, one in (
        (dgjax.churn(), dgjax.churn(1.0)),
        (dgjax.reverse_sde(), dgjax.reverse_sde(1.0)),
        (dgjax.published_stochastic(), dgjax.published_stochastic(1.0)),
        (dgjax.level_set_noise(), dgjax.level_set_noise(1.0)),
        (dgjax.noise_matched(), dgjax.noise_matched(1.0)),
    ):
        jax.tree.map(np.testing.assert_array_equal, default, one)
