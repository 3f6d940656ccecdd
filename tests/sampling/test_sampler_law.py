"""The law of guided samples: known on Gaussians, and as weights with mean 1 on mixtures."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but

import dgjax
from dgjax.evaluation.intervals import mean_interval
from dgjax.typing import register_dataclass

KEY = jax.random.key(0)
EXACT = dgjax.Exact()
MEANS = jnp.array([[1.5, -0.5, 0.7, 2.0], [0.5, 1.5, -0.7, 1.0]])


@register_dataclass
@dataclass(frozen=True)
class Feedback:
    """A guide that weighs the score by the log-density tracked so far."""

    strength: jax.Array

    def __call__(self, drift, local):
        return (
            drift - 0.5 * local.g2 * self.strength * jnp.tanh(local.log_density / 8) * local.score
        )


def gaussian_model(path=dgjax.edm):
    data = dgjax.gaussian(jnp.array([1.0, -2.0, 0.5, 3.0]), 0.8)
    path = path()
    ends = [path.time(jnp.asarray(-2 * np.log(w))) for w in (0.05, 40.0)]
    return dgjax.closed_form(data, path, t_min=ends[0], t_max=ends[1])


def mixture_model():
    covariances = jnp.stack([0.5 * jnp.eye(4), 0.9 * jnp.eye(4)])
    mixture = dgjax.gaussian_mixture(jnp.array([0.4, 0.6]), MEANS, covariances)
    return dgjax.closed_form(mixture, dgjax.edm(), t_min=0.05, t_max=40.0)


def run(model, x, guides, steps=48):
    grid = dgjax.grid_logsnr(model, steps)
    options = {"key": KEY, "divergence": EXACT}
    found = dgjax.sample(model, x, grid, guides=guides, save=dgjax.Trajectory, **options)
    law = dgjax.sampler_law(model, found.trajectory, guides, **options)
    return found, law


@pytest.mark.parametrize("path", slow_but(["edm", "rectified_flow"], "edm"))
def test_the_law_of_a_scaled_gaussian(path):
    """A guide that is linear in x - mean maps latents linearly: q is Gaussian, its width known."""
    model = gaussian_model(getattr(dgjax, path))
    mean = jnp.array([1.0, -2.0, 0.5, 3.0])
    guide = dgjax.temperature(0.7, scale=0.8**0.5)
    x = dgjax.prior_sample(model, jax.random.key(1), (4,))
    found, law = jax.jit(run)(model, x, guide)
    alpha, sigma = model.path.alpha(model.t_min), model.path.sigma(model.t_min)
    start = model.path.alpha(model.t_max), model.path.sigma(model.t_max)
    # The map of latents to samples is linear, so one pair of points gives its factor.
    factor = (found.x - alpha * mean)[0] / (x - start[0] * mean)[0]
    width2 = (start[0] ** 2 * 0.8 + start[1] ** 2) * factor**2
    away = found.x - alpha * mean
    np.testing.assert_allclose(away, factor * (x - start[0] * mean), rtol=1e-3)
    log_q = -0.5 * jnp.sum(away**2) / width2 - 2 * jnp.log(2 * jnp.pi * width2)
    assert float(law.log_density[-1]) == pytest.approx(float(log_q), abs=5e-3)
    assert abs(float(law.log_weight[-1])) > 0.1
    assert width2 != pytest.approx(float(alpha**2 * 0.8 + sigma**2), rel=0.05)
    np.testing.assert_allclose(
        law.log_weight, found.trajectory.log_density - law.log_density, atol=1e-9
    )


def test_without_guides_the_law_is_the_model():
    model = mixture_model()
    x = dgjax.prior_sample(model, jax.random.key(1), (4,))
    _, law = run(model, x, (), 8)
    np.testing.assert_array_equal(law.log_weight, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "guides",
    [
        dgjax.temperature(1.1, scale=1.0),
        (dgjax.temperature(0.95, scale=1.0), Feedback(jnp.asarray(0.05))),
    ],
)
def test_weights_have_mean_1_and_give_means_of_the_model(guides):
    """E[w] = 1 under the law, and weighted means are those of the noised mixture."""
    model = mixture_model()
    keys = jax.random.split(jax.random.key(7), 4096)

    def one(key):
        # Latents of the noised mixture, which is the prior of a closed form.
        found, law = run(model, model.network.sample(key, 40.0), guides)
        return found.x, law.log_weight[-1], law.solver_error[-1]

    x, log_weights, errors = jax.jit(jax.vmap(one))(keys)
    assert np.median(errors) < 0.02
    weights = np.exp(log_weights)
    mean = mean_interval(weights, confidence=0.9999)
    assert mean.low < 1 < mean.high
    assert mean.high - mean.low < 0.4
    expected = 0.4 * MEANS[0] + 0.6 * MEANS[1]
    for i in range(4):
        found = dgjax.weighted_mean(x[:, i], log_weights, confidence=0.9999)
        assert found.low < expected[i] < found.high
    assert 100 < dgjax.effective_sample_size(log_weights) < 4090


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide",
    [
        Feedback(jnp.asarray(0.4)),  # reads the log-density, and its derivative counts
        dgjax.density_guidance(0.55, bound=0.3),
        dgjax.rate_guidance(-1.5),  # reads the divergence
    ],
)
def test_the_law_by_the_jacobian_of_the_solve(guide):
    model = mixture_model()
    grid = dgjax.grid_logsnr(model, 96)
    options = {"key": KEY, "divergence": EXACT, "guides": guide, "solver": dgjax.RK4()}
    draw = lambda x: dgjax.sample(model, x, grid, save=dgjax.Trajectory, **options)
    x = 40 * jax.random.normal(jax.random.key(2), (4,))
    law = dgjax.sampler_law(model, draw(x).trajectory, guide, key=KEY, divergence=EXACT)
    jacobian = jax.jacfwd(lambda x: draw(x).x)(x)
    expected = dgjax.log_prior(model, x) - jnp.linalg.slogdet(jacobian)[1]
    error = abs(float(law.log_density[-1] - expected))
    assert error < 0.02
    assert error < 3 * law.solver_error[-1] + 1e-3
    assert abs(law.log_weight[-1]) > 0.1


def test_what_is_refused():
    model = mixture_model()
    ts = dgjax.grid_logsnr(model, 3)
    short = dgjax.Trajectory(ts, jnp.ones((4, 4)), jnp.zeros(4))
    with pytest.raises(ValueError, match="at least 6"):
        dgjax.sampler_law(model, short, (), key=KEY)
