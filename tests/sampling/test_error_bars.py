"""The stated error of the solver against the true one, on mixtures whose log-density is known."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but

import dgjax

W_MIN, W_MAX = 0.02, 20.0
KEY = jax.random.key(0)


def model_of(mixture, make_path=dgjax.rectified_flow):
    path = make_path()
    ends = [path.time(jnp.asarray(-2 * np.log(w))) for w in (W_MIN, W_MAX)]
    return dgjax.closed_form(mixture, path, t_min=ends[0], t_max=ends[1])


def latents_of(model, number, size, seed=0):
    keys = jax.random.split(jax.random.key(seed), number)
    return jax.vmap(lambda key: dgjax.prior_sample(model, key, (size,)))(keys)


def solves(model, xs, steps, run, **options):
    """True and stated errors in nats, and the solves, of every x."""
    grid = dgjax.grid_logsnr(model, steps)
    options = {"key": KEY, "divergence": dgjax.Exact(), **options}
    found = jax.jit(jax.vmap(lambda x: run(model, x, grid, **options)))(xs)
    ends = found.x if run is dgjax.sample else xs
    true = jax.vmap(lambda x: dgjax.log_density(model, model.t_min, x))(ends)
    return np.abs(found.log_density - true), np.asarray(found.info.solver_error), found


@pytest.fixture(scope="module")
def nearly_discrete():
    """Three components of variance 1e-8 in five dimensions, off the origin."""
    rng = np.random.default_rng(3)
    means = 1.5 * rng.normal(size=(3, 5)) + 0.5
    covariances = np.broadcast_to(1e-8 * np.eye(5), (3, 5, 5))
    return model_of(dgjax.gaussian_mixture(np.array([0.5, 0.3, 0.2]), means, covariances))


@pytest.mark.parametrize("steps", [16, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("run", slow_but([dgjax.sample, dgjax.likelihood], dgjax.sample))
def test_the_true_error_is_within_three_times_the_stated(mixture16, nearly_discrete, run, steps):
    for model, size in ((model_of(mixture16.model), (2, 8)), (nearly_discrete, (5,))):
        xs = latents_of(model, 16, int(np.prod(size))).reshape(16, *size)
        if run is dgjax.likelihood:
            grid = dgjax.grid_logsnr(model, 64)
            xs = jax.vmap(lambda x, m=model, g=grid: dgjax.sample(m, x, g, key=KEY).x)(xs)
        true, stated, _ = solves(model, xs, steps, run)
        assert np.mean(true <= 3 * stated + 1e-6) >= 0.95
        assert (stated >= 0.1 * true)[true > 0.1 * np.prod(size)].all()


def trajectories(model, steps, size):
    """Of 16 latents each: guided solves with the default solver, and reverse SDEs."""
    grid, options = dgjax.grid_logsnr(model, steps), {"key": KEY, "save": dgjax.Trajectory}
    guided = {"guides": dgjax.density_guidance(0.6), **options}
    rough = {"noise": dgjax.reverse_sde_ito(), "solver": diffrax.Euler(), **options}
    latents = latents_of(model, 16, int(np.prod(size))).reshape(16, *size)
    run = jax.jit(
        jax.vmap(lambda x: [dgjax.sample(model, x, grid, **o).trajectory for o in (guided, rough)])
    )
    return run(latents)


@pytest.mark.slow
@pytest.mark.parametrize("discrete", [False, True])
def test_quadratures_between_given_points_state_their_error(mixture16, nearly_discrete, discrete):
    """The ratio of the two errors lies between bounds, so neither can be off by a factor of 100."""
    model, size = (nearly_discrete, (5,)) if discrete else (model_of(mixture16.model), (2, 8))
    smooth, rough = trajectories(model, 24, size)
    cases = [
        (dgjax.quadrature, smooth, 3),
        (dgjax.quadrature, rough, 3),
        (dgjax.node_quadrature, smooth, 20),
    ]

    @jax.jit
    def errors(trajectories):
        def of(by, trajectory):
            found = by(
                model, trajectory.t, trajectory.x, key=KEY, divergence=dgjax.Exact(), batch=32
            )
            true = dgjax.log_density(model, model.t_min, trajectory.x[-1])
            return jnp.abs(found.log_density[-1] - true), found.solver_error[-1]

        pairs = zip(cases, trajectories, strict=True)
        return [jax.vmap(partial(of, by))(trajectory) for (by, *_), trajectory in pairs]

    found = errors([trajectory for _, trajectory, _ in cases])
    for (_, _, most), (true, stated) in zip(cases, found, strict=True):
        assert np.mean(true <= 3 * stated + 1e-6) >= 0.95
        assert (stated >= 0.1 * true)[true > 0.1 * np.prod(size)].all()
        assert np.median(stated / true) < most


@pytest.mark.slow
def test_the_stated_error_falls_as_the_lower_order_does(mixture16):
    """Of the two quadratures that it compares, the lower one is of order 3 at least."""
    model = model_of(mixture16.model)
    xs = latents_of(model, 16, 16).reshape(16, 2, 8)
    medians = []
    for steps in (16, 32, 64):
        medians.append(np.median(solves(model, xs, steps, dgjax.sample)[1]))
    slope = np.polyfit(np.log([16, 32, 64]), np.log(medians), 1)[0]
    assert slope < -2.7


@pytest.mark.slow
@pytest.mark.parametrize("q", [0.6, 0.8])
def test_guidance_without_its_bound_states_that_it_is_wrong(q):
    """Above q = 1/2 the published rule passes the mode, where it has no solution."""
    rng = np.random.default_rng(0)
    means = 1.5 * rng.normal(size=(3, 5))
    covariances = np.stack([np.diag(s) for s in rng.uniform(0.1, 1.0, (3, 5))])
    model = model_of(
        dgjax.gaussian_mixture(np.array([0.5, 0.3, 0.2]), means, covariances), dgjax.vp
    )
    guides = (dgjax.density_guidance(q, bound=jnp.inf),)
    for steps in (64, 256):
        true, stated, _ = solves(model, latents_of(model, 8, 5), steps, dgjax.sample, guides=guides)
        wrong = true > 0.5
        assert wrong.any()
        assert (stated > 0.1 * true)[wrong].all()


@pytest.mark.slow
def test_guidance_on_an_interval_off_the_grid_states_its_error():
    """The drift jumps within a step at both edges."""
    rng = np.random.default_rng(8)
    means, scales = rng.normal(size=(4, 8)) * 2, rng.uniform(0.05, 0.6, 4)
    covariances = jnp.stack([jnp.eye(8) * scale for scale in scales])
    half = dgjax.gaussian_mixture(jnp.ones(2) / 2, jnp.asarray(means[:2]), covariances[:2])
    whole = dgjax.gaussian_mixture(jnp.ones(4) / 4, jnp.asarray(means), covariances)
    model, other = (
        dgjax.closed_form(mixture, dgjax.edm(), t_min=0.02, t_max=80.0) for mixture in (half, whole)
    )
    contrast = dgjax.autoguidance(4.0, other, low=-3.03, high=2.71)
    guides = (contrast, dgjax.density_guidance(0.65))
    grid = dgjax.grid_logsnr(model, 32)

    def one(key):
        x = 80 * jax.random.normal(key, (8,))
        options = {"guides": guides, "key": key, "divergence": dgjax.Exact()}
        found = dgjax.sample(model, x, grid, **options)
        true = dgjax.log_density(model, model.t_min, found.x)
        return jnp.abs(found.log_density - true), found.info.solver_error

    error, stated = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 32))
    assert error.max() > 0.2
    assert np.mean(error <= 3 * stated) >= 0.95
    assert not np.any((error > 0.1) & (error > 10 * stated))


@pytest.mark.slow
def test_probes_hardly_enter_the_stated_error(mixture16):
    """It would otherwise count their noise twice."""
    model = model_of(mixture16.model)
    xs = latents_of(model, 16, 16).reshape(16, 2, 8)
    _, exact, _ = solves(model, xs, 32, dgjax.sample)
    _, noisy, found = solves(model, xs, 32, dgjax.sample, divergence=dgjax.Hutchinson())
    assert (np.median(noisy - exact) < 0.2 * np.median(found.info.standard_error)).all()


STATED = {
    "heun": ({"solver": diffrax.Heun()}, 16),
    "rk4": ({"solver": dgjax.RK4()}, 8),
    "dopri5": ({"solver": diffrax.Dopri5()}, 8),
    "level_set_euler": ({"noise": dgjax.level_set_noise()}, 16),
    "weak noise": ({"noise": dgjax.level_set_noise(0.1)}, 16),
    "level_set dopri5": ({"solver": diffrax.Dopri5(), "noise": dgjax.level_set_noise()}, 16),
    "reverse_sde": ({"solver": diffrax.Heun(), "noise": dgjax.reverse_sde()}, 16),
}


@pytest.mark.parametrize("name", slow_but(STATED, "rk4", "level_set_euler"))
def test_the_stated_error_of_a_step_has_the_size_of_the_true_one(mixture16, nearly_discrete, name):
    """Neither a tenth nor thirty times, by far: the estimate may be several times too large."""
    options, steps = STATED[name]
    options = {"guides": dgjax.density_guidance(0.7), **options}
    for model, shape in ((model_of(mixture16.model), (2, 8)), (nearly_discrete, (5,))):
        xs = latents_of(model, 16, int(np.prod(shape))).reshape(16, *shape)
        true, stated, _ = solves(model, xs, steps, dgjax.sample, **options)
        assert np.mean(true <= 3 * stated + 1e-6) >= 0.9
        assert 0.3 < np.median(stated) / np.median(true) < 30


@pytest.mark.slow
@pytest.mark.parametrize("solver", [dgjax.RK4(), diffrax.Bosh3(), diffrax.Tsit5()])
def test_likelihoods_of_runge_kutta_methods_state_their_error(mixture16, nearly_discrete, solver):
    for model, shape in ((model_of(mixture16.model), (2, 8)), (nearly_discrete, (5,))):
        xs = latents_of(model, 16, int(np.prod(shape))).reshape(16, *shape)
        grid = dgjax.grid_logsnr(model, 64)
        xs = jax.vmap(lambda x, m=model, g=grid: dgjax.sample(m, x, g, key=KEY).x)(xs)
        true, stated, _ = solves(model, xs, 12, dgjax.likelihood, solver=solver)
        assert np.mean(true <= 3 * stated + 1e-6) >= 0.95


@pytest.mark.slow
def test_adaptive_steps_state_their_error(mixture2):
    model = model_of(mixture2.model)
    xs = latents_of(model, 8, 2)
    for rtol in (1e-2, 1e-4):
        controller = diffrax.PIDController(rtol=rtol, atol=rtol)
        true, stated, _ = solves(model, xs, 2, dgjax.sample, controller=controller)
        assert (true <= 3 * stated + 1e-6).all()
        assert np.median(stated) < 60 * np.median(true)


def test_probes_hardly_enter_the_error_of_rk4(mixture16):
    model = model_of(mixture16.model)
    xs = latents_of(model, 16, 16).reshape(16, 2, 8)
    _, exact, _ = solves(model, xs, 16, dgjax.sample, solver=dgjax.RK4())
    true, noisy, _ = solves(
        model, xs, 16, dgjax.sample, solver=dgjax.RK4(), divergence=dgjax.Hutchinson()
    )
    assert np.median(noisy - exact) < 0.05 * np.median(true)


@pytest.mark.slow
def test_the_error_of_a_step_has_derivatives_in_both_modes(mixture2):
    """And those of the log-density are finite beside it."""
    model = model_of(mixture2.model)
    x, grid = latents_of(model, 1, 2)[0], dgjax.grid_logsnr(model, 4)

    def both(x, adjoint):
        options = {"key": KEY, "divergence": dgjax.Exact(), "solver": dgjax.RK4()}
        found = dgjax.sample(model, x, grid, adjoint=adjoint, **options)
        return jnp.stack([found.log_density, found.info.solver_error])

    backward = jax.jacrev(lambda x: both(x, None))(x)
    forward = jax.jacfwd(lambda x: both(x, dgjax.FORWARD))(x)
    np.testing.assert_allclose(backward, forward, rtol=1e-6, atol=1e-9)
    assert np.isfinite(forward).all()


@pytest.mark.slow
def test_solvers_that_do_not_know_their_error_say_so(mixture2):
    model = model_of(mixture2.model)
    for solver in (diffrax.Euler(), diffrax.Midpoint()):
        _, stated, _ = solves(model, latents_of(model, 2, 2), 8, dgjax.sample, solver=solver)
        assert np.isinf(stated).all()


@pytest.mark.slow
def test_a_grid_is_found_that_keeps_the_tolerance(mixture2):
    model = model_of(mixture2.model)
    xs = latents_of(model, 4, 2)
    options = {"key": KEY, "divergence": dgjax.Exact()}
    coarse = dgjax.find_grid(model, xs, 1.0, **options)
    fine = dgjax.find_grid(model, xs, 1e-3, **options)
    assert coarse.steps < fine.steps
    assert fine.error <= 1e-3
    true, stated, _ = solves(model, xs, fine.steps, dgjax.sample)
    np.testing.assert_allclose(stated.max(), fine.error, rtol=1e-6)
    assert true.max() < 3e-3
    # the next coarser grid does not keep it
    _, stated, _ = solves(model, xs, fine.steps // 2, dgjax.sample)
    assert stated.max() > 1e-3


def test_the_grid_found_is_of_the_kind_asked_for(mixture2):
    model = model_of(mixture2.model)
    options = {"key": KEY, "run": dgjax.likelihood, "divergence": dgjax.Exact()}
    found = dgjax.find_grid(
        model, jnp.ones((2, 2)), 1e6, fewest=16, make_grid=dgjax.grid_from_data, **options
    )
    np.testing.assert_array_equal(found.grid, dgjax.grid_from_data(model, 16))
    assert np.abs(found.grid - dgjax.grid_logsnr(model, 16)).max() > 0.01


@pytest.mark.slow
def test_what_no_grid_can_keep_is_refused(mixture2):
    model = model_of(mixture2.model)
    xs, options = latents_of(model, 2, 2), {"key": KEY, "divergence": dgjax.Exact()}
    with pytest.raises(ValueError, match="raise most or the tolerance"):
        dgjax.find_grid(model, xs, 1e-12, most=16, **options)
    with pytest.raises(ValueError, match="does not state its error"):
        dgjax.find_grid(model, xs, 1.0, solver=diffrax.Euler(), **options)
    with pytest.raises(ValueError, match="positive number of nats"):
        dgjax.find_grid(model, xs, 0.0, **options)
    with pytest.raises(ValueError, match="1 <= fewest <= most"):
        dgjax.find_grid(model, xs, 1.0, fewest=64, most=32, **options)
