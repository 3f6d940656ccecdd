"""Asking for a log-density: the TRUE one at the end, by closed loop and by shooting.

The truth is the closed form at t_min, never the tracked value that both methods steer by.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.guidance.density import DensityGuidance
from dgjax.guidance.target import Profile
from dgjax.model.divergence import Divergence
from dgjax.sampling.results import stated_error
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import RK4
from dgjax.typing import inner, register_dataclass

RHO = 7.0
TOLERANCE = 0.01  # nats per dimension

LARGE = pytest.param(784, marks=pytest.mark.slow)


@register_dataclass
@dataclass(frozen=True)
class Span:
    """The exact trace of a map that is a multiple of the identity off the span of the data.

    So is the denoiser's Jacobian of a kernel density; the last row of `basis` lies outside.
    """

    basis: jax.Array

    def __call__(self, jvp, x, key):
        del key
        directions = self.basis.reshape(-1, *x.shape)
        entries = jax.vmap(lambda z: inner(z, jvp(z)))(directions)
        rank = entries.shape[0] - 1
        return (jnp.sum(entries[:-1]) + (x.size - rank) * entries[-1])[None]

    def standard_error(self, estimates, scatter=jnp.nan):
        return jnp.zeros((), estimates.dtype)


class Problem(NamedTuple):
    """A closed-form model, its divergence, a grid, latents, and the highest of its modes."""

    model: dgjax.Field
    divergence: Divergence
    grid: jax.Array
    latents: jax.Array
    mode: float


def make_problem(mixture, trace, *, steps=64, count=4, w_min=0.05):
    model = dgjax.closed_form(
        mixture, dgjax.edm(RHO), t_min=w_min ** (1 / RHO), t_max=20.0 ** (1 / RHO)
    )
    keys = jax.random.split(jax.random.key(3), count)
    latents = jax.jit(jax.vmap(lambda k: mixture.sample(k, 20.0)))(keys)
    centres = mixture.means.reshape(-1, *mixture.shape)
    heights = jax.jit(jax.vmap(lambda y: mixture.log_density(y, w_min)))(centres)
    return Problem(model, trace, dgjax.grid_uniform(model, steps), latents, float(heights.max()))


def images():
    """Five smooth 28 x 28 images, each blurred by 0.3."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(5, 7, 7))
    data = np.kron(coarse, np.ones((4, 4)))
    flat = np.concatenate([data.reshape(5, -1), rng.normal(size=(1, 784))]).T
    return dgjax.kernel_density(data, 0.3), Span(jnp.asarray(np.linalg.qr(flat)[0].T))


@pytest.fixture(scope="module")
def problem(request, mixture16):
    if request.param == 784:
        return make_problem(*images(), count=2)
    return make_problem(mixture16.model, dgjax.Exact())


def truth(model, x):
    exact = lambda x: dgjax.log_density(model, model.t_min, x)
    return jax.jit(jax.vmap(jax.vmap(exact)))(x)


def goals_of(problem):
    """Targets in nats: two spreads below the usual, usual, one above; and one above the mode."""
    size, mode = problem.latents[0].size, problem.mode
    # A component's log-density is D/2 below its peak, give or take sqrt(D/2).
    usual, spread = mode - 0.5 * size, np.sqrt(0.5 * size)
    return jnp.array([usual - 2 * spread, usual, usual + spread, mode + 0.05 * size])


def check(problem, goals, out):
    """`target_met` is the truth, and the infeasible target is flagged. Returns nats missed."""
    size = problem.latents[0].size
    reached = truth(problem.model, out.x)
    miss = np.abs(reached - goals[:, None]) / size
    np.testing.assert_allclose(out.log_density, reached, atol=1e-4 * size)
    np.testing.assert_array_equal(out.info.target_met, miss <= TOLERANCE)
    assert not out.info.target_met[-1].any()
    assert (reached[-1] < problem.mode).all()
    assert (out.info.bound_share[-1] > 0.5).all()
    return miss * size


@pytest.mark.slow
@pytest.mark.parametrize("problem", [16, LARGE], indirect=True)
def test_closed_loop(problem):
    model, trace, grid, latents, _ = problem
    solve = {"divergence": trace, "solver": RK4()}

    @jax.jit
    def run(latents, goals):
        profile = dgjax.pilot(model, latents[:3], grid, key=jax.random.key(0), **solve)

        def one(x, goal):
            guide = dgjax.target_guidance(goal, model, profile)
            return sample(model, x, grid, key=jax.random.key(1), guides=(guide,), **solve)

        return jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(None, 0))(latents, goals)

    goals = goals_of(problem)
    miss = check(problem, goals, run(latents, goals))
    assert miss[:-1].max() < TOLERANCE * latents[0].size  # steering crosses no jump
    if latents[0].size == 16:
        assert miss[:-1].max() < 0.02  # nats


def shooter(problem):
    """`run(latents, goals)`, goals first."""
    solve = {"divergence": problem.divergence, "solver": RK4(), "key": jax.random.key(1)}
    one = lambda x, goal: dgjax.shoot(problem.model, x, problem.grid, goal, **solve)
    return jax.jit(jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(None, 0)))


@pytest.mark.parametrize("problem", [16], indirect=True)
def test_shooting(problem):
    goals = goals_of(problem)
    shot = shooter(problem)(problem.latents, goals)
    miss = check(problem, goals, shot.sampled)
    # No jump lies in the way of these: log p(q) of every latent passes through every target.
    assert shot.sampled.info.target_met[:-1].all()
    assert miss[:-1].max() < TOLERANCE * problem.latents[0].size
    # The dial rises with the target, inside its bracket; above the mode it is the bracket's end.
    assert (jnp.diff(shot.q, axis=0) > 0).all()
    low, high = jnp.moveaxis(shot.log_density_range, -1, 0)
    inside = (low < goals[:, None]) & (goals[:, None] < high)
    assert inside[:3].all()
    assert not inside[3].any()
    np.testing.assert_allclose(shot.q[3], 0.999, rtol=1e-6)


@pytest.mark.slow
def test_a_target_inside_a_jump_is_flagged():
    """A wide component beside a narrow one: as q rises, latents change basin at once.

    Some latents meet a log-density that lies between the two in the tail of one of them, some
    jump over it, and some stay in the wide one at any q.
    """
    ones = jnp.ones(16)
    mixture = dgjax.kernel_density(jnp.stack([ones, -ones]), 1.0)
    mixture = replace(mixture, rest=jnp.array([1.0, 0.09]))
    problem = make_problem(mixture, dgjax.Exact(), count=12)
    goal = -8.0
    shot = shooter(problem)(problem.latents, jnp.array([goal]))
    sampled, met = shot.sampled, shot.sampled.info.target_met[0]
    reached = truth(problem.model, sampled.x)[0]
    np.testing.assert_array_equal(met, np.abs(reached - goal) < TOLERANCE * 16)
    low, high = jnp.moveaxis(shot.log_density_range[0], -1, 0)
    assert (low < goal).all()
    jumped = (high > goal) & ~met
    assert met.any()
    assert jumped.any()
    assert (high[met] > goal).all()

    # What was not met lies on a cliff: 1e-4 of Phi^-1(q) to either side is far below and above.
    def beside(x, q, step):
        steer = DensityGuidance(dgjax.schedule(jax.scipy.special.ndtri(q) + step), jnp.array(1.0))
        solve = {"divergence": problem.divergence, "solver": RK4(), "key": jax.random.key(1)}
        return sample(problem.model, x, problem.grid, guides=(steer,), **solve).log_density

    steps = jnp.array([-1e-4, 1e-4])
    both = jax.jit(jax.vmap(jax.vmap(beside, (None, None, 0)), (0, 0, None)))
    below, above = np.asarray(both(problem.latents, shot.q[0], steps)).T
    assert (below[jumped] < goal - 0.5).all()
    assert (above[jumped] > goal + 0.5).all()


@pytest.mark.parametrize("target", [float("nan"), float("inf")])
def test_bad_targets(target):
    problem = make_problem(dgjax.gaussian(jnp.zeros(2), 1.0), dgjax.Exact(), steps=2)
    profile = Profile(*jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="target must be finite"):
        dgjax.target_guidance(target, problem.model, profile)
    with pytest.raises(ValueError, match="target must be finite"):
        dgjax.shoot(problem.model, problem.latents[0], problem.grid, target, key=jax.random.key(0))
    for low, high in [(0.0, 0.5), (0.5, 1.0), (0.6, 0.4)]:
        with pytest.raises(ValueError, match="bracket of q"):
            dgjax.shoot(
                problem.model,
                problem.latents[0],
                problem.grid,
                0.0,
                key=jax.random.key(0),
                low=low,
                high=high,
            )


@pytest.mark.parametrize(
    ("off", "standard_error", "solver_error", "met"),
    [
        (0.05, 0.0, 0.0, True),
        (0.2, 0.0, 0.0, False),
        (0.05, 0.04, 0.0, True),
        (0.05, 0.0, 0.06, False),
        (0.05, 0.03, 0.03, False),
        (-0.05, 0.06, 0.0, False),
        (0.05, 0.0, np.inf, True),  # a solver that does not know its error
        (0.05, np.nan, 0.0, False),
    ],
)
def test_a_target_is_met_with_the_error_that_is_stated(off, standard_error, solver_error, met):
    model = dgjax.closed_form(dgjax.gaussian(jnp.ones(4), 2.0), dgjax.edm(), t_min=0.1, t_max=9.0)
    profile = Profile(jnp.arange(3.0), jnp.arange(3.0), jnp.ones(3))
    guide = dgjax.target_guidance(-7.0, model, profile, tolerance=0.025)  # 0.1 nats in 4 dimensions
    error = stated_error(jnp.asarray(standard_error), jnp.asarray(solver_error))
    assert guide.met(jnp.asarray(off - 7.0), error, 4) == met


@pytest.mark.slow
def test_an_unknown_error_of_the_probes_meets_no_target():
    """One probe and a solver without scatter; with the exact divergence the same target is met."""
    data = dgjax.gaussian(jnp.ones(4), 2.0)
    model = dgjax.closed_form(data, dgjax.edm(), t_min=0.1, t_max=9.0)
    x, grid = 5 * jnp.arange(4.0), dgjax.grid_logsnr(model, 8)

    @partial(jax.jit, static_argnums=0)
    def run(divergence):
        options = {"key": jax.random.key(0), "divergence": divergence, "solver": RK4()}
        return dgjax.shoot(model, x, grid, -8.0, iterations=12, **options).sampled

    assert run(dgjax.Exact()).info.target_met
    found = run(dgjax.Hutchinson())
    assert np.abs(found.log_density + 8) < 0.04
    assert np.isposinf(found.info.standard_error)
    assert not found.info.target_met
    assert dgjax.sample(model, x, grid, key=jax.random.key(0)).info.target_met is None


def test_the_score_weight_of_a_target_is_the_same_on_every_path():
    """Log-densities of x differ by D log alpha between paths, and the score weight does not."""
    mixture = dgjax.gaussian(jnp.array([3.0, -2.0, 0.5]), jnp.diag(jnp.array([4.0, 0.25, 1.0])))
    edm = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.1, t_max=20.0)
    cosine = dgjax.repath(edm, dgjax.cosine())
    key, x = jax.random.key(0), jnp.array([4.0, -1.0, 2.0])
    knots = jnp.array([-6.0, -2.0, 2.0, 4.6])
    profile = Profile(knots, jnp.array([9.0, 6.0, 3.0, 0.0]), jnp.array([2.9, 2.0, 1.5, 1.2]))
    found = []
    for model in (edm, cosine):
        t = model.path.time(dgjax.logsnr(edm.path, jnp.asarray(0.7)))
        alpha, end = model.path.alpha(t), model.path.alpha(model.t_min)
        guide = dgjax.target_guidance(-5.0 - 3 * jnp.log(end), model, profile)
        tracked = jnp.array([-7.5]) - 3 * jnp.log(alpha)
        local = dgjax.evaluate(
            model, t, alpha * x, divergence=dgjax.Exact(), key=key, log_densities=tracked
        )
        found.append(guide.weight_change(local))
    assert abs(found[0]) > 0.01
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
    assert guide.tolerance == TOLERANCE
