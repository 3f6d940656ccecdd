"""Every way to a log-density at a small size against the closed form.

One mixture, far from 0, on a path that scales it; the model is an argument of `jit`. Orders of
convergence, dimensions, paths and precisions have tests of their own, which are slow.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but

import dgjax
from dgjax.sampling.solvers import RK4, LevelSetEuler, Multistep

KEY = jax.random.key(0)
STEPS = 32
W_MIN, W_MAX = 0.05, 20.0


def make_model():
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(2, 3, 3)))[0]
    scales = np.array([[0.3, 0.8, 1.5], [1.0, 0.4, 0.6]])
    covariances = np.einsum("kij,kj,klj->kil", turn, scales**2, turn)
    means = jnp.array([[3.0, -2.0, 0.5], [1.5, -1.0, 2.0]])
    mixture = dgjax.gaussian_mixture(jnp.array([0.3, 0.7]), means, jnp.asarray(covariances))
    edm = dgjax.closed_form(mixture, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    return dgjax.repath(edm, dgjax.cosine())


MODEL = make_model()
GRID = dgjax.grid_logsnr(MODEL, STEPS)


def points(model, t, w):
    keys = jax.random.split(jax.random.key(2), 4)
    return model.path.alpha(t) * jax.vmap(lambda k: model.network.sample(k, w))(keys)


def truth(model, t, x):
    return jax.vmap(lambda x: dgjax.log_density(model, t, x))(x)


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


DIAL = dgjax.density_guidance(0.6)
# Options of `sample`, and the error in nats that its log-density may have.
SAMPLES = {
    "multistep": ({"solver": Multistep()}, 2e-4),
    "ddim": ({"solver": Multistep(1)}, 3e-4),
    "rk4": ({"solver": RK4()}, 5e-6),
    "heun": ({"solver": diffrax.Heun()}, 5e-3),
    "density guidance": ({"guides": DIAL}, 4e-3),
    "high density": ({"guides": dgjax.high_density(0.0), "solver": RK4()}, 8e-4),
    "level set": (
        {"guides": DIAL, "noise": dgjax.level_set_noise(), "solver": LevelSetEuler()},
        4e-3,
    ),
    "reverse SDE": ({"noise": dgjax.reverse_sde(0.5), "solver": RK4()}, 3e-4),
}


OPTIONS = {"key": KEY, "divergence": dgjax.Exact()}


def batched(function):
    """Compile a function of the model and one point for a batch of points."""
    return jax.jit(jax.vmap(function, in_axes=(None, 0)))


@pytest.fixture(scope="module")
def trajectory():
    """Latents, and the samples at every point of the grid."""
    run = batched(lambda m, x: dgjax.sample(m, x, GRID, save=dgjax.Trajectory, **OPTIONS))
    return run(MODEL, points(MODEL, MODEL.t_max, W_MAX)).trajectory


@pytest.mark.parametrize(
    "name", slow_but(SAMPLES, "multistep", "rk4", "density guidance", "level set")
)
def test_sample(name):
    options, tolerance = SAMPLES[name]
    found = batched(lambda m, x: dgjax.sample(m, x, GRID, **OPTIONS, **options))(
        MODEL, points(MODEL, MODEL.t_max, W_MAX)
    )
    assert rms(found.log_density - truth(MODEL, MODEL.t_min, found.x)) < tolerance


def test_the_whole_trajectory(trajectory):
    t, x = trajectory.t[0], jnp.swapaxes(trajectory.x, 0, 1)
    exact = jax.vmap(truth, (None, 0, 0))(MODEL, t, x).T
    assert rms(trajectory.log_density - exact) < 1e-4


def test_likelihood():
    x = points(MODEL, MODEL.t_min, W_MIN)
    found = batched(lambda m, x: dgjax.likelihood(m, x, GRID, **OPTIONS))(MODEL, x)
    assert rms(found.log_density - truth(MODEL, MODEL.t_min, x)) < 5e-5


@pytest.mark.parametrize("method", [dgjax.quadrature, dgjax.node_quadrature])
def test_quadratures(method, trajectory):
    ts, xs = trajectory.t[0], trajectory.x
    run = jax.jit(jax.vmap(lambda m, xs: method(m, ts, xs, **OPTIONS), in_axes=(None, 0)))
    error = rms(run(MODEL, xs).log_density[:, -1] - truth(MODEL, MODEL.t_min, xs[:, -1]))
    assert error < 1e-4


def test_chord():
    x0, x1 = points(MODEL, MODEL.t_min, W_MIN)[:2]
    found = jax.jit(dgjax.chord)(MODEL, MODEL.t_min, x0, x1)
    exact = np.diff(truth(MODEL, MODEL.t_min, jnp.stack([x0, x1])))
    np.testing.assert_allclose(found.difference, exact, atol=1e-2)


def test_alignment_of_a_gaussian():
    """A linear flow scales each direction, and keeps <s, v> at |s_T|^2."""
    variances = jnp.array([4.0, 0.25])
    gaussian = dgjax.gaussian(jnp.array([3.0, -2.0]), jnp.diag(variances))
    edm = dgjax.closed_form(gaussian, dgjax.edm(), t_min=W_MIN, t_max=W_MAX)
    model = dgjax.repath(edm, dgjax.cosine())
    found = batched(lambda m, x: dgjax.align(m, x, GRID, **OPTIONS))(
        model, points(model, model.t_max, W_MAX)
    )
    np.testing.assert_allclose(found.omega, found.prior, rtol=2e-3)
    np.testing.assert_allclose(found.product, found.prior, rtol=2e-3)
