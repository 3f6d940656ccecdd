"""Several models along one trajectory, against closed forms.

The "or" of two Gaussian mixtures is the joint mixture; along the "and" the difference of
log-densities stays as it was. Every log-density is known at every point.
"""

from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax

KEY = jax.random.key(0)
WEIGHTS = np.array([0.6, 1.4])  # divided by their sum


def parts(seed, count=2, size=3):
    rng = np.random.default_rng(seed)
    turns = np.linalg.qr(rng.normal(size=(count, size, size)))[0]
    scales = rng.uniform(0.4, 1.1, (count, size))
    covariances = np.einsum("kij,kj,klj->kil", turns, scales**2, turns)
    return rng.dirichlet([3.0] * count), rng.normal(size=(count, size)) * 2 + 1, covariances


def model_of(mixture):
    data = dgjax.gaussian_mixture(*map(jnp.asarray, mixture))
    return dgjax.closed_form(data, dgjax.edm(), t_min=0.05, t_max=60.0)


FIRST, SECOND = parts(0), parts(1)
JOINT = model_of(
    (
        np.concatenate([0.3 * FIRST[0], 0.7 * SECOND[0]]),
        *(np.concatenate(pair) for pair in zip(FIRST[1:], SECOND[1:], strict=True)),
    )
)
# The second is on another path, where x is scaled.
MODELS = (model_of(FIRST), dgjax.repath(model_of(SECOND), dgjax.vp()))
LATENT = 60 * jax.random.normal(jax.random.key(3), (3,))


def run(models, combination, steps=32, x=LATENT, **options):
    grid = dgjax.grid_logsnr(models[0], steps)
    options = {"key": KEY, "divergence": dgjax.Exact(), **options}
    return dgjax.superpose(models, x, grid, combination, **options)


def truths(x):
    return [float(dgjax.log_density(m, 0.05, x)) for m in map(model_of, (FIRST, SECOND))]


def test_a_model_that_goes_to_larger_noise_starts_where_the_first_one_does():
    wide = replace(model_of(SECOND), t_max=300.0)
    found = jax.jit(run)((MODELS[0], wide), dgjax.mixture(WEIGHTS))
    np.testing.assert_allclose(found.log_densities, truths(found.x), atol=2e-4)
    late = dgjax.grid_logsnr(replace(MODELS[0], t_max=30.0), 8)
    with pytest.raises(ValueError, match="t_max"):
        dgjax.superpose(MODELS, LATENT / 2, late, dgjax.mixture(WEIGHTS), key=KEY)


def test_a_mixture_of_models_is_the_joint_mixture():
    found = jax.jit(run)(MODELS, dgjax.mixture(WEIGHTS))
    exact = dgjax.sample(JOINT, LATENT, dgjax.grid_logsnr(JOINT, 64), key=KEY)
    np.testing.assert_allclose(found.x, exact.x, atol=5e-4)
    truth = float(dgjax.log_density(JOINT, 0.05, found.x))
    assert float(found.log_density) == pytest.approx(truth, abs=2e-4)
    np.testing.assert_allclose(found.log_densities, truths(found.x), atol=2e-4)
    errors = np.abs(found.log_densities - np.asarray(truths(found.x)))
    assert np.all(errors < 3 * found.solver_errors)
    assert np.all(found.standard_errors == 0)
    assert found.course.shape == (33, 2)
    np.testing.assert_allclose(found.xs[-1], found.x)


@pytest.mark.slow
def test_single_precision(float32):
    models, latent = [model_of(FIRST), model_of(SECOND)], jnp.asarray(LATENT, jnp.float32)
    for combination in (dgjax.mixture(WEIGHTS), dgjax.intersection()):
        found = run(models, combination, x=latent)
        assert {a.dtype for a in found[:-1]} == {jnp.dtype(jnp.float32)}
        np.testing.assert_allclose(found.log_densities, truths(found.x), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.Heun(), dgjax.RK4()])
def test_order_of_the_mixture(solver):
    errors = [
        float(jnp.linalg.norm(run(MODELS, dgjax.mixture(WEIGHTS), n, solver=solver).x - END))
        for n in (24, 48, 96)
    ]
    slope = np.polyfit(np.log([24, 48, 96]), np.log(errors), 1)[0]
    order = solver.order(None)
    assert -order - 1.2 < slope < -order + 0.5


END = dgjax.sample(JOINT, LATENT, dgjax.grid_logsnr(JOINT, 512), key=KEY).x


@pytest.mark.slow
def test_along_an_intersection_the_difference_stays():
    """Of two models, and of three, from several latents."""
    third = model_of(parts(2))
    keys = jax.random.split(jax.random.key(5), 4)
    latents = 60 * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    for models, steps in ((MODELS, 64), ((*MODELS, third), 64)):
        found = jax.vmap(lambda x, m=models, n=steps: run(m, dgjax.intersection(), n, x))(latents)
        apart = found.course - found.course[..., :1]
        assert np.all(np.abs(apart - apart[:, :1]) < 0.01)
        assert np.all(np.abs(apart[:, -1]) < 0.2)  # at t_max all are near one Gaussian
        np.testing.assert_allclose(
            found.log_densities[:, :2], [truths(x) for x in found.x], atol=1e-3
        )


@pytest.mark.slow
def test_one_model_is_sampled_as_it_is():
    model, grid = MODELS[0], dgjax.grid_logsnr(MODELS[0], 16)
    alone = dgjax.sample(model, LATENT, grid, key=KEY, solver=dgjax.RK4())
    for combination in (dgjax.mixture([2.0]), dgjax.intersection()):
        found = run((model,), combination, 16)
        np.testing.assert_allclose(found.x, alone.x, rtol=1e-9)


@pytest.mark.slow
def test_gradients_and_an_unchanged_program():
    """In the weights of the mixture, against finite differences."""
    traces = []

    @jax.jit
    def value(weights):
        traces.append(None)
        return run(MODELS, dgjax.mixture(weights), 8).x[0]

    weights, step = jnp.asarray(WEIGHTS), jnp.array([1e-4, -2e-4])
    difference = (value(weights + step) - value(weights - step)) / 2
    assert len(traces) == 1
    slope = jax.grad(lambda w: run(MODELS, dgjax.mixture(w), 8).x[0])(weights)
    assert float(slope @ step) == pytest.approx(float(difference), rel=1e-4)


def test_what_is_refused():
    grid = dgjax.grid_logsnr(MODELS[0], 8)
    with pytest.raises(ValueError, match="be positive and finite"):
        dgjax.mixture([0.5, 0.0])
    with pytest.raises(ValueError, match="2 models need as many weights, got 3"):
        run(MODELS, dgjax.mixture(np.ones(3)), 8)
    with pytest.raises(ValueError, match="2 models need as many conditions, got 1"):
        run(MODELS, dgjax.intersection(), 8, conds=[None])
    with pytest.raises(ValueError, match="explicit Runge-Kutta"):
        run(MODELS, dgjax.intersection(), 8, solver=dgjax.Multistep())
    narrow = dgjax.closed_form(dgjax.gaussian([0.0] * 3, 1.0), dgjax.edm(), t_min=0.1, t_max=9.0)
    with pytest.raises(ValueError, match="range"):
        dgjax.superpose([MODELS[0], narrow], LATENT, grid, dgjax.intersection(), key=KEY)
    with pytest.raises(ValueError, match="at least one model"):
        dgjax.superpose([], LATENT, grid, dgjax.intersection(), key=KEY)
