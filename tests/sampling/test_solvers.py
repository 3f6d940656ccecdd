"""Every kind of solver as users run it: float32, the model an argument of `jax.jit`, no NaN."""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but

import dgjax
from dgjax import likelihood, pilot, sample, target_guidance
from dgjax.sampling.solvers import RK4, SOLVERS, LevelSetEuler, Multistep

KEY = jax.random.key(0)
STEPS = 48
TARGET = -3.0
ALONG = dgjax.level_set_noise(0.5)


def make_model():
    """Two correlated components, of another mean, scale and weight each."""
    means = jnp.array([[1.0, -0.5, 0.3], [-1.2, 0.4, 2.0]])
    wide = jnp.array([[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.8]])
    mixture = dgjax.gaussian_mixture(
        jnp.array([0.3, 0.7]), means, jnp.stack([wide, 0.5 * jnp.eye(3) + 0.1])
    )
    return dgjax.closed_form(mixture, dgjax.edm(7.0), t_min=0.1 ** (1 / 7), t_max=20.0 ** (1 / 7))


class Run(NamedTuple):
    """The point whose log-density is measured at t_min, that log-density, and its diagnostics."""

    x: jax.Array
    log_density: jax.Array
    info: dgjax.Info


def by_sample(model, x, steps=STEPS, divergence=dgjax.Exact(), **options):
    grid = dgjax.grid_karras(model, steps)
    run = sample(model, x, grid, key=KEY, divergence=divergence, **options)
    return Run(run.x, run.log_density, run.info)


def by_target(model, x, **options):
    grid, solver = dgjax.grid_karras(model, STEPS), Multistep(2)
    exact = {"key": KEY, "divergence": dgjax.Exact()}
    profile = pilot(model, jnp.stack([x, -x]), grid, solver=solver, **exact)
    guide = target_guidance(TARGET, model, profile)
    return by_sample(model, x, guides=(guide,), solver=solver, **options)


def by_likelihood(model, x, divergence=dgjax.Exact()):
    x = x / 20
    grid = dgjax.grid_karras(model, STEPS)
    run = likelihood(model, x, grid, key=KEY, divergence=divergence)
    return Run(x, run.log_density, run.info)


GUIDED = {"guides": (dgjax.density_guidance(0.6),)}
KINDS = {
    "multistep": partial(by_sample, solver=Multistep()),
    "level_set": partial(by_sample, solver=LevelSetEuler(), noise=ALONG),
    "rk4": partial(by_sample, solver=RK4()),
    "rk4_noise": partial(by_sample, solver=RK4(), noise=ALONG),
    "dopri5": partial(by_sample, solver=diffrax.Dopri5()),
    "target": by_target,
    "likelihood": by_likelihood,
}


def single(tree):
    """The same numbers in float32, where they are floating."""
    cast = lambda a: a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(cast, tree)


def truth(model, x):
    return float(dgjax.log_density(model, model.t_min, x))


@pytest.mark.parametrize("kind", slow_but(KINDS, "multistep", "rk4", "level_set"))
def test_single_precision_and_the_model_as_an_argument(kind, float32):
    model, x = make_model(), jnp.array([15.0, -22.0, 9.0])
    options = single(GUIDED) if kind not in ("target", "likelihood") else {}
    # Noise made as this file was read has numbers in float64.
    options |= {"noise": single(ALONG)} if kind in ("level_set", "rk4_noise") else {}
    found = jax.jit(partial(KINDS[kind], **options))(model, x)
    assert {a.dtype for a in (found.x, found.log_density, found.info.bound_share)} == {x.dtype}
    assert x.dtype == jnp.float32
    assert found.info.finite
    error = abs(float(found.log_density) - truth(model, found.x))
    assert error < (0.05 if kind in ("level_set", "rk4_noise") else 2e-3)
    if kind == "target":
        assert truth(model, found.x) == pytest.approx(TARGET, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probes", [None, 1])
def test_a_healthy_run_returns_no_nan(kind, probes):
    """An error that is known, or the unknown one of a single probe, which is infinite."""
    options = {} if probes is None else {"divergence": dgjax.Hutchinson(probes)}
    with jax.debug_nans(True):
        found = jax.jit(partial(KINDS[kind], **options))(make_model(), jnp.array([15.0, -22, 9]))
    assert found.info.finite
    assert found.info.standard_error == 0 if probes is None else found.info.standard_error > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multistep", "level_set"])
def test_a_healthy_run_makes_no_nan_on_the_way(kind):
    """Uncompiled, JAX looks at the result of every operation inside the loop over steps."""
    with jax.debug_nans(True), jax.disable_jit():
        found = KINDS[kind](make_model(), jnp.array([15.0, -22.0, 9.0]), steps=5)
    assert found.info.finite


def test_names_that_others_know():
    assert SOLVERS["ddim"]() == Multistep(1)
    assert SOLVERS["dpm_solver_pp"]() == SOLVERS["multistep2"]() == Multistep(2)


def test_ddim_is_equation_12():
    """Song et al. 2021, arXiv 2010.02502, eq. 12 without noise, on a path with alpha below 1."""
    model = dgjax.repath(make_model(), dgjax.cosine())
    grid = dgjax.grid_logsnr(model, 5)
    latent = jnp.array([0.4, -1.3, 0.8])
    x = latent
    for t, after in pairwise(grid):
        x0, eps = model.pair(t, x)
        x = model.path.alpha(after) * x0 + model.path.sigma(after) * eps
    found = sample(model, latent, grid, key=KEY, divergence=dgjax.Exact(), solver=Multistep(1))
    np.testing.assert_allclose(found.x, x, rtol=1e-10)


def one_step_error(h, y=1.3):
    """The error that RK4 states of one step of y' = y^2 + t, and the one of x and midpoint."""
    term = diffrax.ODETerm(lambda t, y, args: y**2 + t)
    t0, t1 = jnp.array(0.2), jnp.array(0.2 + h)
    solver, y0 = RK4(), jnp.asarray(y)
    state = solver.init(term, t0, t1, y0, None)
    y1, error, *_ = solver.step(term, t0, t1, y0, None, state, False)
    slope = lambda t, y: y**2 + t
    half = y0 + 0.5 * h * slope(t0, y0)
    midpoint = y0 + h * slope(t0 + 0.5 * h, half)
    return float(error), float(jnp.abs(y1 - midpoint))


def test_rk4_states_its_difference_to_the_midpoint_rule():
    steps = np.array([0.02, 0.04, 0.08])
    stated, expected = np.array([one_step_error(h) for h in steps]).T
    np.testing.assert_allclose(np.abs(stated), expected, rtol=1e-9)
    # An embedded method of order 2 has a local error of order 3.
    slope = np.polyfit(np.log(steps), np.log(np.abs(stated)), 1)[0]
    assert slope == pytest.approx(3, abs=0.1)


@pytest.mark.slow
def test_adaptive_rk4_reaches_the_closed_form():
    model, x = make_model(), jnp.array([15.0, -22.0, 9.0])

    @jax.jit
    def run(tolerance):
        controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        return by_sample(model, x, solver=RK4(), controller=controller)

    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        found = run(tolerance)
        errors.append(abs(float(found.log_density) - truth(model, found.x)))
    assert errors[-1] < 1e-5
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(("solver", "each", "more"), [(diffrax.Bosh3(), 3, 1), (RK4(), 4, 0)])
def test_the_last_stage_of_a_step_is_the_first_of_the_next(solver, each, more, batch):
    """Methods that have this property evaluate the network once less a step, under vmap too."""
    times, steps = [], 4

    def network(x, t, cond):
        jax.debug.callback(lambda t: times.append(float(t)), t)
        return x / (1 + t**2)

    prior = dgjax.gaussian_prior(1.0)
    ends = {"t_min": 0.1, "t_max": 10.0, "prior": prior}
    model = dgjax.field(network, dgjax.edm(), dgjax.DenoisedPrediction(), **ends)
    grid = dgjax.grid_logsnr(model, steps)
    run = lambda x: dgjax.sample(model, x, grid, key=jax.random.key(0), solver=solver)
    x = jnp.full((2, 3), 10.0)
    jax.block_until_ready(jax.jit(jax.vmap(run))(x) if batch else jax.jit(run)(x[0]))
    jax.effects_barrier()
    assert len(times) == each * steps + more
