"""Strict promotion in float32: no operation of the library changes a dtype or a rank by itself.

Tracing alone tells, so nothing is compiled.
"""

import diffrax
import jax
import jax.numpy as jnp
import pytest

import dgjax
from dgjax.guidance.target import Profile

KEY = jax.random.key(0)
PATHS = {
    "vp": (dgjax.vp, 0.01, 0.9),
    "sub_vp": (dgjax.sub_vp, 0.05, 0.9),
    "cosine": (dgjax.cosine, 0.01, 0.95),
    "ve": (dgjax.ve, 0.01, 0.9),
    "edm": (dgjax.edm, 0.02, 80.0),
    "rectified_flow": (dgjax.rectified_flow, 0.02, 0.98),
    "custom": (lambda: dgjax.custom(lambda t: jnp.exp(-t), lambda t: t, 0.0, 4.0), 0.1, 3.0),
}


def make_model(name="vp"):
    path, t_min, t_max = PATHS[name]
    means = jnp.array([[1.0, -0.5, 0.3], [-1.2, 0.4, 2.0]])
    covariances = jnp.stack([jnp.diag(jnp.array([1.0, 0.5, 0.8])), 0.1 + 0.5 * jnp.eye(3)])
    mixture = dgjax.gaussian_mixture(jnp.array([0.3, 0.7]), means, covariances)
    return dgjax.closed_form(mixture, path(), t_min=t_min, t_max=t_max)


GUIDES = {
    "density_guidance": lambda m: dgjax.density_guidance(0.7),
    "knots": lambda m: dgjax.density_guidance([0.7, 0.4], knots=[-2.0, 2.0]),
    "density_guidance_nats": lambda m: dgjax.density_guidance_nats(2, m, 3),
    "rate_guidance": lambda m: dgjax.rate_guidance(1, bound=2),
    "rate_of_local": lambda m: dgjax.rate_guidance(lambda local: -local.divergence),
    "high_density": lambda m: dgjax.high_density(0),
    "target_guidance": lambda m: dgjax.target_guidance(-3, m, Profile(*jnp.ones((3, 4)))),
    "temperature": lambda m: dgjax.temperature(0.8, scale=1),
    "classifier_free": lambda m: dgjax.classifier_free_guidance(2, m),
    "autoguidance": lambda m: dgjax.autoguidance(2.0, make_model("edm"), low=-3),
}
ITO = {"solver": diffrax.Euler()}
NOISES = {
    "level_set_noise": lambda: {"noise": dgjax.level_set_noise(dgjax.window(0.5, low=-2))},
    "level_set_rk4": lambda: {"noise": dgjax.level_set_noise(), "solver": dgjax.RK4()},
    "reverse_sde": lambda: {"noise": dgjax.reverse_sde()},
    "churn": lambda: {"noise": dgjax.churn(2)},
    "noise_matched": lambda: {"noise": dgjax.noise_matched(), **ITO},
    "published_stochastic": lambda: {"noise": dgjax.published_stochastic(), **ITO},
    "reverse_sde_ito": lambda: {"noise": dgjax.reverse_sde_ito(), **ITO},
}
DIVERGENCES = {
    "exact": lambda: dgjax.Exact(),
    "hutchinson": lambda: dgjax.Hutchinson(2),
    "hutch_pp": lambda: dgjax.HutchPP(3),
    "fixed_probe": lambda: dgjax.FixedProbe(dgjax.Hutchinson(), KEY),
    "coloured": lambda: dgjax.Coloured(2),
    "untracked": lambda: dgjax.Untracked(),
}


def points(model, x):
    grid = dgjax.grid_logsnr(model, 8)
    return grid, jnp.stack([scale * x for scale in jnp.linspace(1.0, 0.1, 9)])


def fitted(model, x):
    xs = jnp.stack([scale * x for scale in jnp.linspace(0.5, 1.5, 16)])
    grid = dgjax.grid_logsnr(model, 1)
    return dgjax.fit_likelihood(model, xs, jnp.linspace(-3.0, -1.0, 16), grid, key=KEY)


MEASURES = {
    "likelihood": lambda m, x: dgjax.likelihood(m, x, dgjax.grid_logsnr(m, 6), key=KEY),
    "adaptive": lambda m, x: dgjax.likelihood(
        m,
        x,
        dgjax.grid_logsnr(m, 6),
        key=KEY,
        controller=diffrax.PIDController(rtol=1e-3, atol=1e-3),
    ),
    "fitted": lambda m, x: dgjax.fitted_likelihood(m, fitted(m, x), x, key=KEY),
    "uniform": lambda m, x: dgjax.sample(m, x, dgjax.grid_uniform(m, 6), key=KEY),
    "karras": lambda m, x: dgjax.sample(
        m, x, dgjax.grid_karras(m, 6, 7), key=KEY, save=dgjax.Trajectory, log_density=-3
    ),
    "quadrature": lambda m, x: dgjax.quadrature(m, *points(m, x), key=KEY),
    "node_quadrature": lambda m, x: dgjax.node_quadrature(m, *points(m, x), key=KEY),
    "chord": lambda m, x: dgjax.chord(m, 0.5, x, 2 * x),
    "align": lambda m, x: dgjax.align(m, x, dgjax.grid_logsnr(m, 6), key=KEY),
    "pilot": lambda m, x: dgjax.pilot(m, x[None], dgjax.grid_logsnr(m, 6), key=KEY),
    "shoot": lambda m, x: dgjax.shoot(m, x, dgjax.grid_logsnr(m, 6), -3, key=KEY),
    "evaluate": lambda m, x: dgjax.evaluate(m, 0.5, x, divergence=dgjax.Exact(), key=KEY).score,
    "heat_residual": lambda m, x: dgjax.heat_residual(m, 0.5, x, key=KEY),
    "inconsistency": lambda m, x: dgjax.inconsistency(m, 0.5, x, key=KEY),
    "h_statistic": lambda m, x: dgjax.h_statistic(m, 0.5, x, divergence=dgjax.Exact(), key=KEY),
    "posterior": lambda m, x: dgjax.posterior(m, 0.5, x, key=KEY),
    "geodesic": lambda m, x: dgjax.geodesic(m, 0.2, x, 0.3, 2 * x, key=KEY, steps=2),
    "prior_guidance": lambda m, x: dgjax.prior_guidance(m, x, 0.3),
    "log_density": lambda m, x: dgjax.log_density(m, 0.5, x),
    "log_prior": lambda m, x: dgjax.log_prior(m, x),
    "repath": lambda m, x: dgjax.score(dgjax.repath(m, dgjax.edm()), 3, x),
}


def check(function, model):
    """Trace `function(model, x)` under strict promotion; all its numbers are float32."""
    x = jnp.array([0.9, -1.2, 0.4])
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = jax.eval_shape(function, model, x)
    dtypes = {a.dtype for a in jax.tree.leaves(found) if jnp.issubdtype(a.dtype, jnp.floating)}
    assert dtypes == {jnp.dtype("float32")}


def sampled(**options):
    return lambda m, x: dgjax.sample(m, x, dgjax.grid_logsnr(m, 6), key=KEY, **options)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", GUIDES)
def test_guides(name):
    model = make_model()
    with jax.numpy_dtype_promotion("strict"):
        guide = GUIDES[name](model)
    check(sampled(guides=guide), model)
    if name != "target_guidance":
        check(sampled(guides=guide, solver=dgjax.RK4()), model)


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", NOISES)
def test_noises(name):
    check(sampled(**NOISES[name](), guides=dgjax.density_guidance(0.6)), make_model())


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences(name):
    check(sampled(divergence=DIVERGENCES[name]()), make_model())
    check(sampled(divergence=DIVERGENCES[name](), solver=diffrax.Heun()), make_model())


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", MEASURES)
def test_measures(name):
    check(MEASURES[name], make_model())


@pytest.mark.slow
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("name", PATHS)
def test_paths(name):
    check(sampled(), make_model(name))
    check(MEASURES["quadrature"], make_model(name))
