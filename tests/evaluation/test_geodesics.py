"""Spacetime geometry against the log-partition function, KL divergences and a hyperbolic plane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax
from dgjax.model.paths import coefficients

SCALE = 0.7


@pytest.fixture
def mixture():
    keys = jax.random.split(jax.random.key(0), 2)
    roots = jax.random.normal(keys[0], (3, 4, 4)) * 0.5
    covariances = jnp.einsum("kij,klj->kil", roots, roots) + 0.05 * jnp.eye(4)
    means = jax.random.normal(keys[1], (3, 4))
    return dgjax.gaussian_mixture(jnp.array([0.5, 0.3, 0.2]), means, covariances)


def isotropic(path, size=6, t_min=0.02, t_max=20.0):
    mixture = dgjax.gaussian(jnp.zeros(size), SCALE**2 * jnp.eye(size))
    return dgjax.closed_form(mixture, path, t_min=t_min, t_max=t_max)


def half_plane(model, t, x):
    """(mean of the posterior)/sqrt(2 D) and its standard deviation, for data from N(0, SCALE^2)."""
    c = coefficients(model.path, t)
    w2 = (c.sigma / c.alpha) ** 2
    total = SCALE**2 + w2
    return SCALE**2 * x / c.alpha / total / jnp.sqrt(2 * x.size), SCALE * jnp.sqrt(w2 / total)


def distance(model, t0, x0, t1, x1):
    """Fisher-Rao distance in the family N(a, v I): sqrt(2 D) times that of the half-plane."""
    (a0, s0), (a1, s1) = half_plane(model, t0, x0), half_plane(model, t1, x1)
    gap = jnp.sum((a1 - a0) ** 2) + (s1 - s0) ** 2
    return jnp.sqrt(2 * x0.size) * jnp.arccosh(1 + gap / (2 * s0 * s1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [dgjax.vp(), dgjax.edm(), dgjax.cosine()], ids=["vp", "edm", "cos"]
)
def test_expectations_are_the_gradient_of_the_log_partition(mixture, path):
    model = dgjax.closed_form(mixture, path, t_min=0.05, t_max=0.9)
    x = jnp.array([0.3, -0.8, 0.5, 1.1])
    found = dgjax.posterior(model, 0.4, x, key=jax.random.key(0), divergence=dgjax.Exact())

    def log_partition(first, second):
        w2 = -0.5 / second
        y = w2 * first
        volume = 0.5 * y.size * jnp.log(2 * jnp.pi * w2) + jnp.sum(y**2) / (2 * w2)
        return mixture.log_density(y, jnp.sqrt(w2)) + volume

    mean, second = jax.grad(log_partition, (0, 1))(*found.natural)
    np.testing.assert_allclose(found.expectation[0], mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.expectation[1], second, rtol=1e-9)


@pytest.mark.parametrize("path", [dgjax.vp(), dgjax.edm()], ids=["vp", "edm"])
def test_jeffreys_is_the_divergence_of_two_gaussians(path):
    model = isotropic(path, t_max=0.9)
    ts, xs = jnp.array([0.1, 0.5]), jax.random.normal(jax.random.key(0), (2, 6))
    (found,) = dgjax.jeffreys(model, ts, xs, key=jax.random.key(1), divergence=dgjax.Exact())
    (a0, s0), (a1, s1) = (half_plane(model, t, x) for t, x in zip(ts, xs, strict=True))
    apart = 2 * 6 * jnp.sum((a1 - a0) ** 2)
    ratio = (s1 / s0) ** 2
    kl = lambda r, v: 0.5 * (6 * (r - 1 - jnp.log(r)) + apart / v)
    np.testing.assert_allclose(found, kl(1 / ratio, s1**2) + kl(ratio, s0**2), rtol=1e-10)


def test_energy_does_not_depend_on_the_path(mixture):
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.05, t_max=20.0)
    other = dgjax.repath(model, dgjax.vp())
    ts, ys = jnp.array([0.1, 0.3, 2.0]), jax.random.normal(jax.random.key(0), (3, 4))
    there = jax.vmap(lambda t: other.path.time(dgjax.logsnr(model.path, t)))(ts)
    xs = jax.vmap(lambda t, y: other.path.alpha(t) * y)(there, ys)
    options = {"key": jax.random.key(1), "divergence": dgjax.Exact()}
    np.testing.assert_allclose(
        dgjax.jeffreys(model, ts, ys, **options),
        dgjax.jeffreys(other, there, xs, **options),
        rtol=1e-8,
    )


def test_low_noise_does_not_cancel_in_float32(float32):
    model = isotropic(dgjax.edm(), size=256, t_min=0.002)
    ts = jnp.array([0.002, 0.0021])
    x = jax.random.normal(jax.random.key(0), (256,))
    xs = jnp.stack([x, x + 1e-4])
    assert xs.dtype == jnp.float32
    (found,) = dgjax.jeffreys(model, ts, xs, key=jax.random.key(1), divergence=dgjax.Exact())
    w2, points = np.asarray(ts, np.float64) ** 2, np.asarray(xs, np.float64)
    share = SCALE**2 / (SCALE**2 + w2)
    variance, apart = share * w2, np.sum((points[1] * share[1] - points[0] * share[0]) ** 2)
    ratio = variance[1] / variance[0]
    exact = 0.5 * (256 * (ratio + 1 / ratio - 2) + apart * np.sum(1 / variance))
    np.testing.assert_allclose(found, exact, rtol=1e-3)


def test_probes_shared_by_the_points_are_unbiased(mixture):
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.05, t_max=20.0)
    ts, xs = jnp.array([0.2, 0.4]), jax.random.normal(jax.random.key(0), (2, 4))
    exact = dgjax.jeffreys(model, ts, xs, key=jax.random.key(1), divergence=dgjax.Exact())
    keys = jax.random.split(jax.random.key(2), 2000)
    found = jax.vmap(lambda key: dgjax.jeffreys(model, ts, xs, key=key))(keys)
    error = jnp.std(found) / jnp.sqrt(2000)
    assert error > 0
    assert abs(jnp.mean(found) - exact[0]) < 4 * error


@pytest.mark.slow
def test_geodesic_of_a_gaussian_has_the_hyperbolic_length():
    model = isotropic(dgjax.edm())
    x0 = 0.3 * jax.random.normal(jax.random.key(0), (6,))
    away = jnp.array([0.5, -0.5, 0.1, 0.3, 0.0, 0.6])

    @jax.jit
    def between(t1, x1):
        options = {"key": jax.random.key(1), "divergence": dgjax.Exact(), "steps": 300}
        return dgjax.geodesic(model, 0.05, x0, t1, x1, **options)

    for t1, x1 in ((0.05, x0 + away), (0.3, x0 + 0.5 * away), (0.5, x0)):
        exact, found = distance(model, 0.05, x0, t1, x1), between(t1, x1)
        # A broken line through points of a curve has its length to second order in the pieces.
        np.testing.assert_allclose(found.length, exact, rtol=2e-3)
        np.testing.assert_allclose(found.energy, exact**2 / 2, rtol=4e-3)
        assert found.energies[-1] < found.energies[0]
        np.testing.assert_allclose(found.xs[0], x0, rtol=1e-12)
        np.testing.assert_allclose(found.xs[-1], x1, rtol=1e-12)


@pytest.mark.slow
def test_geodesic_is_shorter_than_where_it_starts(mixture):
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.05, t_max=20.0)
    means = jnp.array([[0.5, 0.2, -0.3, 0.1], [-0.7, 0.9, 0.4, -0.2]])
    options = {"key": jax.random.key(1), "divergence": dgjax.Exact()}
    found = dgjax.geodesic(model, 0.1, means[0], 0.1, means[1], steps=80, segments=16, **options)
    assert found.energy < 0.97 * found.energies[0]
    assert found.length**2 / 2 <= found.energy * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [pytest.param(dgjax.vp(), id="vp"), pytest.param(dgjax.edm(), id="edm")]
)
def test_kl_along_a_curve_is_that_of_two_gaussians(path):
    mean = 0.4
    mixture = dgjax.gaussian(jnp.full(6, mean), SCALE**2 * jnp.eye(6))
    model = dgjax.closed_form(mixture, path, t_min=0.02, t_max=0.9)
    ends = jax.random.normal(jax.random.key(0), (2, 6))

    def curve(n, bend):
        share = jnp.linspace(0, 1, n + 1)
        ts = 0.1 + 0.4 * share + bend * share * (1 - share)
        bow = bend * jnp.sin(jnp.pi * share)[:, None] * jnp.arange(6.0)
        return ts, ends[0] + share[:, None] * (ends[1] - ends[0]) + bow

    found = lambda n, bend: dgjax.posterior_kl(
        model, *curve(n, bend), key=jax.random.key(1), divergence=dgjax.Exact()
    )
    ts, xs = curve(64, 0.0)
    c = jax.vmap(lambda t: coefficients(path, t))(ts)
    w2 = (c.sigma / c.alpha) ** 2
    variance = SCALE**2 * w2 / (SCALE**2 + w2)
    means = mean + (variance / w2)[:, None] * (xs / c.alpha[:, None] - mean)
    ratio = variance[0] / variance
    apart = jnp.sum((means - means[0]) ** 2, 1) / variance
    exact = 0.5 * (6 * (ratio - 1 - jnp.log(ratio)) + apart)
    assert exact[-1] > 1
    np.testing.assert_allclose(found(64, 0.0), exact, rtol=3e-3, atol=3e-3 * exact[-1])
    # Of second order, by any curve.
    for bend in (0.0, 0.3):
        errors = [abs(found(n, bend)[-1] - exact[-1]) for n in (64, 128)]
        assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


@pytest.mark.slow
def test_a_penalty_keeps_the_curve_out_of_a_region():
    """A disc of y between two points is gone around, and the way is longer."""
    model = isotropic(dgjax.edm(), size=2)
    ends = jnp.array([-0.9, 0.4]), jnp.array([1.1, 0.6])

    def between(penalty):
        options = {"key": jax.random.key(1), "divergence": dgjax.Exact(), "segments": 16}
        options |= {"steps": 150, "penalty": penalty}
        return dgjax.geodesic(model, 0.1, ends[0], 0.1, ends[1], **options)

    straight = between(None)
    middle = straight.xs[8] + jnp.array([0.02, 0.05])
    depth = lambda xs: jnp.maximum(0.4 - jnp.linalg.norm(xs - middle, axis=-1), 0)
    around = between(lambda ts, xs: 1e3 * jnp.mean(depth(xs) ** 2))
    assert depth(straight.xs).max() > 0.3
    assert depth(around.xs).max() < 0.05
    assert straight.energy < around.energy < 3 * straight.energy


def test_bad_input():
    model = isotropic(dgjax.edm())
    x, key = jnp.zeros(6), jax.random.key(0)
    with pytest.raises(ValueError, match="one shape"):
        dgjax.geodesic(model, 0.1, x, 0.1, jnp.zeros(5), key=key)
    with pytest.raises(ValueError, match="outside the model's own range"):
        dgjax.geodesic(model, 0.1, x, 30.0, x, key=key)
    with pytest.raises(ValueError, match="NaN"):
        dgjax.geodesic(model, 0.1, x * jnp.nan, 0.1, x, key=key)
    with pytest.raises(ValueError, match="steps must be a positive int"):
        dgjax.geodesic(model, 0.1, x, 0.1, x, key=key, steps=0)
    with pytest.raises(ValueError, match=r"n\+1"):
        dgjax.jeffreys(model, jnp.zeros(3), jnp.zeros((2, 6)), key=key)
