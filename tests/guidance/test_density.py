"""Guides reach the rate of log p_t that they promise, at one point and in whole solves.

Whole solves have two oracles. On an isotropic Gaussian div u depends on time alone, so the nats
that a guide forces are exactly the difference of final log-densities. On mixtures the true
log-density is known at every point.
"""

from dataclasses import dataclass

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dgjax
from dgjax.guidance.guide import ScoreWeightGuide, apply_guides, score_weight
from dgjax.sampling.results import Trajectory
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import RK4
from dgjax.typing import inner, register_dataclass


@register_dataclass
@dataclass(frozen=True)
class Push:
    """A guide made by a user: a constant direction times g."""

    strength: jax.Array

    def __call__(self, drift, local):
        slope = jnp.linspace(-1, 1, local.x.size).reshape(local.x.shape)
        return drift + self.strength * jnp.sqrt(local.g2) * slope


# ---------------------------------------------------------------------------- at one point


@pytest.fixture(scope="module")
def local(mixture16):
    """The model at one point of the VP path, where f and alpha matter."""
    model = dgjax.closed_form(mixture16.model, dgjax.vp(), t_min=1e-3, t_max=1.0)

    @jax.jit
    def at(key):
        x = jax.random.normal(key, (2, 8))
        options = {"divergence": dgjax.Exact(), "key": key}
        return dgjax.evaluate(model, 0.4, x, **options)._replace(hvp=None)

    return at(jax.random.key(0))


def tilted(local):
    """Return an incoming drift that is not the velocity."""
    return 1.3 * local.velocity + jnp.sin(3 * local.x)


def rate_of(drift, local):
    """Return d log p_t/dt along `drift`, by identity (A)."""
    return inner(drift - local.velocity, local.score) - local.divergence


def test_closest_drift_with_a_given_rate(local):
    """The drift is v + (b + div u - <v - u, s>) s/|s|^2 with b = rate dlogsnr/dt."""
    v, rate = tilted(local), 2.5
    b = rate * (-local.g2 / local.sigma**2)
    miss = b + local.divergence - inner(v - local.velocity, local.score)
    expected = v + miss * local.score / jnp.sum(local.score**2)
    for given in (rate, dgjax.schedule([2.0, 3.0], [-8.0, 8.0 + 2 * local.logsnr])):
        guided = dgjax.rate_guidance(given)(v, local)
        np.testing.assert_allclose(guided, expected, rtol=1e-9)
        np.testing.assert_allclose(rate_of(guided, local), b, rtol=1e-9)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.8])
def test_density_guidance_is_equation_17(local, q):
    """f x - g^2/2 eta s has the rate -div u - g^2/2 sqrt(2D)/sigma^2 Phi^-1(q)."""
    forcing = np.sqrt(2 * 16) * stats.norm.ppf(q)
    eta = 1 + forcing / jnp.sum((local.sigma * local.score) ** 2)
    guided = dgjax.density_guidance(q, bound=jnp.inf)(local.velocity, local)
    expected = local.f * local.x - 0.5 * local.g2 * eta * local.score
    np.testing.assert_allclose(guided, expected, rtol=1e-9, atol=1e-12)
    b = -local.divergence - 0.5 * local.g2 * forcing / local.sigma**2
    np.testing.assert_allclose(rate_of(guided, local), b, rtol=1e-9)


def test_density_guidance_is_a_rate_of_its_own(local):
    """Rate guidance at the rate of eq. 17 gives the same drift; it reads the divergence."""

    def rate(local):
        own = local.divergence * local.sigma**2 / local.g2  # that of the PF-ODE
        return own + 0.5 * np.sqrt(2 * 16) * stats.norm.ppf(0.3)

    v = tilted(local)
    np.testing.assert_allclose(
        dgjax.rate_guidance(rate)(v, local),
        dgjax.density_guidance(0.3, bound=jnp.inf)(v, local),
        rtol=1e-9,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda bound: dgjax.density_guidance(0.9, bound=bound),
        lambda bound: dgjax.density_guidance(0.1, bound=bound),
        lambda bound: dgjax.rate_guidance(40.0, bound=bound),
        lambda bound: dgjax.rate_guidance(-40.0, bound=bound),
    ],
    ids=["q high", "q low", "rate high", "rate low"],
)
def test_eta_stops_at_its_bound_and_says_so(local, make):
    def eta(bound):
        part = inner(make(bound)(local.velocity, local) - local.f * local.x, local.score)
        return float(-2 * part / (local.g2 * jnp.sum(local.score**2)))

    free = eta(jnp.inf) - 1
    assert make(jnp.inf).excess(local) == 0
    tight = 0.5 * abs(free)
    assert eta(tight) - 1 == pytest.approx(np.sign(free) * tight)
    assert float(make(tight).excess(local)) == pytest.approx(tight)
    assert eta(2 * abs(free)) - 1 == pytest.approx(free)
    assert make(2 * abs(free)).excess(local) == 0


@register_dataclass
@dataclass(frozen=True)
class Doubled(ScoreWeightGuide):
    """A guide made by a user: twice the score."""

    bound: jax.Array

    def weight_change(self, local):
        return jnp.ones_like(local.t)


def test_a_guide_that_sets_the_score_weight_is_one_method(local):
    """The score weight is 2, or 1 + bound; perpendicular to the score the drift is unchanged."""
    v = tilted(local)
    for bound, eta, excess in ((jnp.inf, 2.0, 0.0), (0.25, 1.25, 0.75)):
        guide = Doubled(jnp.asarray(bound))
        guided = guide(v, local)
        np.testing.assert_allclose(score_weight(guided, local), eta, rtol=1e-9)
        np.testing.assert_allclose(guide.excess(local), excess, atol=1e-12)
        change = guided - v
        along = inner(change, local.score) / inner(local.score, local.score)
        np.testing.assert_allclose(change, along * local.score, rtol=1e-9, atol=1e-12)


def test_the_last_to_fix_the_rate_decides(local):
    """The last guide alone sets the component along the score."""
    last = dgjax.density_guidance(0.3)
    plain = apply_guides([last], local)
    assert apply_guides([], local) is local.velocity
    for before in (Push(2.0), dgjax.high_density(-jnp.inf), dgjax.density_guidance(0.9)):
        guided = apply_guides([before, last], local)
        np.testing.assert_allclose(rate_of(guided, local), rate_of(plain, local), rtol=1e-9)
    # The component perpendicular to the score is unchanged.
    change = apply_guides([Push(2.0), last], local) - plain
    pushed = Push(2.0)(local.velocity, local) - local.velocity
    s = local.score / jnp.sqrt(jnp.sum(local.score**2))
    np.testing.assert_allclose(change, pushed - inner(pushed, s) * s, atol=1e-10)


def test_high_density_doubles_the_score_nearer_the_data(local):
    doubled = local.f * local.x - local.g2 * local.score
    past = dgjax.high_density(local.logsnr - 0.1)
    before = dgjax.high_density(local.logsnr + 0.1)
    np.testing.assert_allclose(past(local.velocity, local), doubled, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(before(local.velocity, local), local.velocity)


def test_a_vanishing_score_stays_finite(local):
    flat = local._replace(score=jnp.zeros_like(local.score))
    for guide in (dgjax.density_guidance(0.9), dgjax.rate_guidance(3.0, bound=1.0)):
        assert jnp.isfinite(guide(flat.velocity, flat)).all()
        assert guide.excess(flat) > 0


def test_schedules_are_linear_in_logsnr():
    q = dgjax.density_guidance([0.2, 0.6], knots=[-4.0, 4.0])
    low, high = stats.norm.ppf([0.2, 0.6])
    for x, expected in [(-9, low), (-4, low), (0, 0.5 * (low + high)), (4, high), (9, high)]:
        assert float(q.probit(jnp.asarray(float(x)))) == pytest.approx(expected)
    constant = dgjax.schedule(3.0)
    assert float(constant(jnp.asarray(-7.0))) == 3.0
    assert dgjax.schedule(constant) is constant


@pytest.mark.parametrize("q", [0.0, 1.0, -0.2, 1.3, float("nan"), [0.5, 1.0]])
def test_q_must_lie_inside_0_and_1(q):
    knots = [-1.0, 1.0] if isinstance(q, list) else None
    with pytest.raises(ValueError, match="q must lie strictly between 0 and 1"):
        dgjax.density_guidance(q, knots=knots)


def test_bad_schedules_and_targets():
    with pytest.raises(ValueError, match="knots must increase"):
        dgjax.density_guidance([0.2, 0.4], knots=[1.0, -1.0])
    with pytest.raises(ValueError, match="needs knots"):
        dgjax.density_guidance([0.2, 0.4])
    with pytest.raises(ValueError, match=r"knots \(3,\) and values \(2,\)"):
        dgjax.schedule([0.2, 0.4], [0.0, 1.0, 2.0])


# ---------------------------------------------------------------------------- whole solves


@pytest.fixture(scope="module")
def gaussian():
    """N(0, I) of shape (8, 8) on the VE path, on which log-SNR is linear in t."""
    path = dgjax.ve(0.02, 20.0)
    model = dgjax.closed_form(dgjax.gaussian(jnp.zeros((8, 8)), 1.0), path, t_min=0.0, t_max=1.0)
    return model, 20.0 * jax.random.normal(jax.random.key(1), (3, 8, 8))


def runner(model, steps, solver, save=None):
    """Make a jitted `run(x, guides)` over latents and guides; guides are the first axis."""
    grid = dgjax.grid_uniform(model, steps)

    def one(x, guides):
        return sample(
            model,
            x,
            grid,
            key=jax.random.key(0),
            guides=guides,
            divergence=dgjax.Exact(),
            solver=solver,
            save=save,
        )

    return jax.jit(jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(None, 0)))


def truth(model, x):
    exact = lambda x: dgjax.log_density(model, model.t_min, x)
    return jax.jit(jax.vmap(jax.vmap(exact)))(x)


@pytest.fixture(scope="module")
def run_gaussian(gaussian):
    return runner(gaussian[0], 128, RK4())


def test_the_dial_in_nats_is_what_it_forces(gaussian, run_gaussian):
    model, latents = gaussian
    nats = jnp.array([0.0, -8.0, 5.0])
    by_nats = jax.vmap(lambda n: dgjax.density_guidance_nats(n, model, 64, bound=jnp.inf))(nats)
    out = run_gaussian(latents, (by_nats,))
    gained = out.log_density - out.log_density[:1]
    np.testing.assert_allclose(gained, jnp.broadcast_to(nats[:, None], gained.shape), atol=1e-9)
    np.testing.assert_allclose(out.log_density, truth(model, out.x), rtol=0, atol=5e-5)

    # The same dial as a quantile: sqrt(2D)/2 Phi^-1(q) for each unit of log-SNR.
    unit = 0.5 * np.sqrt(2 * 64) * 2 * np.log(20 / 0.02)
    np.testing.assert_allclose(dgjax.forcing_nats(model, 64), unit, rtol=1e-9)
    q = jnp.asarray(stats.norm.cdf(nats / unit))
    by_q = jax.vmap(lambda q: dgjax.density_guidance(q, bound=jnp.inf))(q)
    np.testing.assert_allclose(run_gaussian(latents, (by_q,)).x, out.x, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_schedule_forces_its_integral(gaussian, run_gaussian):
    """The gain is sqrt(2D)/2 times the integral of Phi^-1(q); knots are grid points."""
    model, latents = gaussian
    ends = -2 * np.log(20.0), -2 * np.log(0.02)
    knots = jnp.linspace(*ends, 5)
    q = jnp.array([[0.5, 0.5, 0.5, 0.5, 0.5], [0.5, 0.45, 0.6, 0.4, 0.48]])
    guide = jax.vmap(lambda q: dgjax.density_guidance(q, knots=knots, bound=jnp.inf))(q)
    out = run_gaussian(latents, (guide,))
    gained = out.log_density[1] - out.log_density[0]
    expected = 0.5 * np.sqrt(2 * 64) * np.trapezoid(stats.norm.ppf(q[1]), knots)
    assert abs(expected) > 1
    np.testing.assert_allclose(gained, expected, atol=1e-9)
    np.testing.assert_allclose(out.log_density, truth(model, out.x), rtol=0, atol=5e-5)


@pytest.mark.slow
def test_guides_before_density_guidance_move_x_but_not_the_rate(gaussian, run_gaussian):
    model, latents = gaussian
    push = jax.vmap(Push)(jnp.array([0.0, 1.0]))
    dial = jax.vmap(lambda q: dgjax.density_guidance(q, bound=jnp.inf))(jnp.array([0.45] * 2))
    out = run_gaussian(latents, (push, dial))
    assert (rms(out.x[1] - out.x[0]) > 0.1).all()
    np.testing.assert_allclose(out.log_density[1], out.log_density[0], atol=1e-9)
    np.testing.assert_allclose(out.log_density, truth(model, out.x), rtol=0, atol=5e-5)


def rms(x):
    return np.sqrt(np.mean(np.square(x), axis=(-2, -1)))


@pytest.fixture(scope="module")
def mixture(mixture16):
    """The 16-D mixture on the VE path from w = 20 to 0.05, and latents."""
    model = dgjax.closed_form(mixture16.model, dgjax.ve(0.05, 20.0), t_min=0.0, t_max=1.0)
    keys = jax.random.split(jax.random.key(2), 6)
    return model, jax.jit(jax.vmap(lambda k: mixture16.model.sample(k, 20.0)))(keys)


@pytest.fixture(scope="module")
def run_mixture(mixture):
    return runner(mixture[0], 256, RK4(), save=Trajectory)


@pytest.fixture(scope="module")
def unguided(mixture, run_mixture):
    """The PF-ODE, as a batch of one guide that does nothing."""
    return run_mixture(mixture[1], (Push(jnp.zeros(1)),))


@pytest.mark.slow
def test_q_half_is_the_flow_itself(mixture, run_mixture, unguided):
    out = run_mixture(mixture[1], (jax.vmap(dgjax.density_guidance)(jnp.array([0.5])),))
    np.testing.assert_allclose(out.x, unguided.x, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(out.log_density, unguided.log_density, rtol=1e-11)
    assert (out.info.bound_share == 0).all()


@pytest.mark.slow
def test_tracked_is_true_under_a_guide_of_ones_own(mixture, run_mixture, unguided):
    """The tracked log-density is that of the model, not of the distribution of guided samples."""
    out = run_mixture(mixture[1], (Push(jnp.array([0.3])),))
    assert (rms(out.x - unguided.x) > 0.1).all()
    assert (np.abs(out.log_density - unguided.log_density) > 0.1).all()
    np.testing.assert_allclose(out.log_density, truth(mixture[0], out.x), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_tracked_log_density_follows_the_rate_asked_for(mixture, run_mixture):
    """The rate is linear between knots on grid points, so the integral of the solver is exact."""
    model, latents = mixture
    knots = jnp.linspace(-2 * np.log(20.0), -2 * np.log(0.05), 17)
    # Near the rate of a unit Gaussian without guides, D/2 w^2/(1 + w^2).
    own = 8 / (1 + jnp.exp(knots))
    asked = jnp.stack([own + 0.4, 0.9 * own + 0.2])
    guide = jax.vmap(lambda r: dgjax.rate_guidance(dgjax.schedule(r, knots)))(asked)
    out = run_mixture(latents, (guide,))

    start = jax.jit(jax.vmap(lambda x: dgjax.log_prior(model, x)))(latents)
    at = np.linspace(-2 * np.log(20.0), -2 * np.log(0.05), 257)
    rates = np.stack([np.interp(at, knots, r) for r in asked])
    gained = np.cumsum(0.5 * (rates[:, 1:] + rates[:, :-1]) * np.diff(at), axis=1)
    tracked = out.trajectory.log_density[:, :, 1:] - start[None, :, None]
    np.testing.assert_allclose(tracked, np.broadcast_to(gained[:, None], tracked.shape), atol=1e-8)
    np.testing.assert_allclose(out.log_density, truth(model, out.x), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_high_density_sampler_is_tracked_and_reaches_higher(mixture, run_mixture, unguided):
    model, latents = mixture
    thresholds = jnp.array([jnp.inf, 0.0, -3.0])
    out = run_mixture(latents, (jax.vmap(dgjax.high_density)(thresholds),))
    np.testing.assert_allclose(out.x[0], unguided.x[0], rtol=1e-10, atol=1e-12)
    # The drift jumps at the threshold, so the step that contains it has order 1 only.
    np.testing.assert_allclose(out.log_density, truth(model, out.x), rtol=0, atol=1e-3)
    assert (out.log_density[1] > out.log_density[0] + 1).all()
    assert (out.log_density[2] > out.log_density[1]).all()


@pytest.mark.slow
def test_a_bounded_eta_survives_where_the_published_rule_diverges(mixture64):
    """q = 0.7 in 64-D with three components; the published rule is bound = inf."""
    rho = 7.0
    model = dgjax.closed_form(
        mixture64.model, dgjax.edm(rho), t_min=0.02 ** (1 / rho), t_max=20 ** (1 / rho)
    )
    keys = jax.random.split(jax.random.key(3), 3)
    latents = jax.jit(jax.vmap(lambda k: mixture64.model.sample(k, 20.0)))(keys)
    bounds = jnp.array([1.0, jnp.inf])
    guides = jax.vmap(lambda b: dgjax.density_guidance(0.7, bound=b))(bounds)
    out = runner(model, 128, diffrax.Dopri5())(latents, (guides,))
    error = np.abs(out.log_density - truth(model, out.x))
    assert out.info.finite[0].all()
    assert (error[0] < 1e-5).all()
    assert (out.info.bound_share[0] > 0.05).all()
    assert not (error[1] < 1).any()
    assert (out.info.bound_share[1] == 0).all()
