"""Density guidance of a region or a band, and a guide that holds the rest.

On an isotropic Gaussian div u depends on time alone, so the nats that are forced are exactly the
difference of final log-densities. On mixtures the true log-density is known at every point.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but
from scipy import stats

import dgjax
from dgjax.guidance.guide import score_weight
from dgjax.typing import inner

KEY = jax.random.key(0)
SHAPE = (4, 6)
WEIGHTS = np.linspace(0, 1, 24).reshape(SHAPE) ** 2
PARTS = {
    "region": dgjax.region(WEIGHTS),
    "column": dgjax.region(np.array([1.0, 1, 0, 0, 0.5, 0])),
    "low": dgjax.band(SHAPE, high=0.2),
    "high": dgjax.band(SHAPE, low=0.2),
}


def matrix(part):
    """M, from its products with the unit vectors."""
    return jax.vmap(part)(jnp.eye(24).reshape(24, *SHAPE)).reshape(24, 24)


def gaussian_model(path=dgjax.vp):
    data = dgjax.gaussian(jnp.linspace(-2, 3, 24).reshape(SHAPE), 0.7)
    path = path()
    ends = [path.time(jnp.asarray(-2 * np.log(w))) for w in (0.05, 40.0)]
    return dgjax.closed_form(data, path, t_min=ends[0], t_max=ends[1])


def mixture_model():
    means = jax.random.normal(KEY, (3, *SHAPE)) * 1.5 + 1
    factors = jax.random.normal(jax.random.key(1), (3, 24, 24)) / 5
    covariances = 0.2 * jnp.eye(24) + factors @ factors.transpose(0, 2, 1)
    mixture = dgjax.gaussian_mixture(jnp.array([0.2, 0.5, 0.3]), means, covariances)
    return dgjax.closed_form(mixture, dgjax.edm(), t_min=0.05, t_max=40.0)


def draw(model, guides, steps=32, **options):
    x = dgjax.prior_sample(model, jax.random.key(2), SHAPE)
    options = {"divergence": dgjax.Exact(), "key": KEY, "guides": guides, **options}
    return dgjax.sample(model, x, dgjax.grid_logsnr(model, steps), **options)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_symmetric_between_0_and_1(name):
    part, m = PARTS[name], matrix(PARTS[name])
    np.testing.assert_allclose(m, m.T, atol=1e-12)
    assert np.linalg.eigvalsh(m).min() > -1e-12
    assert np.linalg.eigvalsh(m).max() < 1 + 1e-12
    np.testing.assert_allclose(part.trace_of_square(jnp.zeros(SHAPE)), np.trace(m @ m))
    np.testing.assert_allclose(matrix(part.rest()), np.eye(24) - m, atol=1e-12)


def test_bands_are_of_frequencies():
    """A cosine of 3 half periods along 6 pixels has 3/12 cycles per pixel."""
    wave = np.cos(np.pi * 3 * (np.arange(6) + 0.5) / 6) * np.ones((4, 1))
    np.testing.assert_allclose(PARTS["high"](wave), wave, atol=1e-12)
    np.testing.assert_allclose(PARTS["low"](wave), 0 * wave, atol=1e-12)
    np.testing.assert_allclose(PARTS["low"](np.ones(SHAPE)), np.ones(SHAPE), atol=1e-12)
    colour = dgjax.band((*SHAPE, 3), low=0.2)
    stacked = np.stack([wave, 2 * wave, np.ones(SHAPE)], -1)
    np.testing.assert_allclose(colour(stacked), stacked * [1, 1, 0], atol=1e-12)


@pytest.mark.slow
def test_all_of_the_sample_is_a_part():
    model = mixture_model()
    guides = [dgjax.density_guidance(0.7, part=part) for part in (dgjax.region(1.0), None)]
    whole, plain = (draw(model, guide, steps=8) for guide in guides)
    np.testing.assert_allclose(whole.x, plain.x, rtol=1e-9)


@pytest.mark.parametrize("name", PARTS)
def test_only_the_weight_of_the_part_changes_and_its_nats_are_exact(name):
    model, part = mixture_model(), PARTS[name]
    x = 5 * jax.random.normal(jax.random.key(3), SHAPE)
    local = dgjax.evaluate(model, 4.0, x, divergence=dgjax.Exact(), key=KEY)
    guide = dgjax.density_guidance(0.7, part=part, bound=jnp.inf)
    changed = guide(local.velocity, local) - local.velocity
    m = matrix(part)
    quantile = np.sqrt(2 * np.trace(m @ m)) * stats.norm.ppf(0.7)
    np.testing.assert_allclose(
        inner(changed, local.score), -0.5 * local.g2 * quantile / local.sigma**2
    )
    along = part(local.score)
    np.testing.assert_allclose(changed, along * inner(changed, along) / inner(along, along))
    # Earlier guidance does not change the rate that is promised.
    tilted = 1.3 * local.velocity + jnp.sin(3 * x)
    again = guide(tilted, local) - local.velocity
    np.testing.assert_allclose(inner(again, local.score), inner(changed, local.score))
    assert score_weight(local.velocity + again, local) != 1


@pytest.mark.parametrize("name", slow_but(PARTS, "region", "low"))
def test_nats_of_a_part_on_a_gaussian(name, float32):
    """Half of sqrt(2 tr M^2) probit for every unit of log-SNR, in a whole solve."""
    model, part = gaussian_model(), PARTS[name]
    guide = dgjax.density_guidance(0.4, part=part, bound=jnp.inf)
    gained = draw(model, guide).log_density - draw(model, ()).log_density
    size = part.trace_of_square(jnp.zeros(SHAPE))
    nats = 0.5 * np.sqrt(2 * size) * stats.norm.ppf(0.4) * 2 * np.log(40 / 0.05)
    assert float(gained) == pytest.approx(float(nats), rel=2e-3)


HALF = dgjax.region(np.array([1.0, 1, 0, 0, 0, 0]))


@pytest.mark.slow
@pytest.mark.parametrize("part", [HALF, PARTS["high"]])
def test_held_parts_follow_the_reference(part):
    """The held part ends as in the reference, the log-density is true and keeps its nats."""
    model = mixture_model()
    free = draw(model, (), save=dgjax.Trajectory)
    guide = dgjax.density_guidance(0.4, part=part)
    held = dgjax.hold(part.rest(), model, free.trajectory.t, free.trajectory.x)
    found, loose = draw(model, (held, guide)), draw(model, guide)
    moved = [jnp.linalg.norm(part.rest()(a.x - free.x)) for a in (found, loose)]
    inside = jnp.linalg.norm(part(found.x - free.x))
    assert moved[0] < 0.03 * moved[1]
    assert moved[1] > 0.1 * inside
    true = dgjax.log_density(model, model.t_min, found.x)
    assert float(found.log_density) == pytest.approx(float(true), abs=1e-3)
    nats = [a.log_density - free.log_density for a in (found, loose)]
    assert float(nats[0]) == pytest.approx(float(nats[1]), rel=0.01)


@pytest.mark.slow
def test_held_parts_on_another_path_and_by_a_method_with_stages(float32):
    """On a path with alpha < 1, and between the points of the reference, where it interpolates."""
    model = gaussian_model(dgjax.rectified_flow)
    free = draw(model, (), save=dgjax.Trajectory)
    held = dgjax.hold(HALF.rest(), model, free.trajectory.t, free.trajectory.x)
    guide = dgjax.density_guidance(0.4, part=HALF, bound=jnp.inf)
    options = {"solver": dgjax.RK4(), "steps": 32}
    found, alone = (draw(model, guides, **options) for guides in ((held, guide), ()))
    nats = 0.5 * np.sqrt(2 * 8) * stats.norm.ppf(0.4) * 2 * np.log(40 / 0.05)
    assert float(found.log_density - alone.log_density) == pytest.approx(float(nats), rel=2e-3)
    moved, inside = (jnp.linalg.norm(part(found.x - free.x)) for part in (HALF.rest(), HALF))
    assert moved < 2e-3 * inside


@pytest.mark.slow
def test_one_program_for_all_weights_and_gradients_in_them():
    model = gaussian_model(dgjax.edm)
    traces = []

    @jax.jit
    def run(weights):
        traces.append(None)
        part = dgjax.region(weights)
        return draw(model, dgjax.density_guidance(0.6, part=part), steps=8).log_density

    values = jax.vmap(run)(jnp.stack([WEIGHTS, 0.5 * WEIGHTS]))
    assert len(traces) == 1
    assert values[0] != values[1]
    weights = jnp.asarray(0.1 + 0.8 * WEIGHTS)
    slope, step = jax.grad(run)(weights), 1e-4 * WEIGHTS[::-1]
    difference = (run(weights + step) - run(weights - step)) / 2
    assert float(jnp.sum(slope * step)) == pytest.approx(float(difference), rel=1e-3)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"weights must lie in \[0, 1\]"):
        dgjax.region(np.array([0.5, 1.2]))
    with pytest.raises(ValueError, match="weights must not all be 0"):
        dgjax.region(np.zeros(3))
    with pytest.raises(ValueError, match="no frequency of a sample of shape"):
        dgjax.band(SHAPE, low=0.21, high=0.22)
    model = gaussian_model()
    with pytest.raises(ValueError, match="at least 5"):
        dgjax.hold(PARTS["low"], model, jnp.ones(3), jnp.ones((3, *SHAPE)))
