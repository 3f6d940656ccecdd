"""The experiments on the papers' claims: their numbers, where the truth is known."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dgjax
from dgjax.checkpoints.spec import build

FOLDER = Path(__file__).parent.parent / "experiments"
if not FOLDER.exists():
    pytest.skip("experiments/ is not in source distributions", allow_module_level=True)
sys.path.insert(0, str(FOLDER))  # they import `claims` from beside them

import claims  # noqa: E402
import class_guidance  # noqa: E402
import hand_scan  # noqa: E402
import high_density  # noqa: E402
import imperfect_score  # noqa: E402
import noise_windows  # noqa: E402
import normality  # noqa: E402
import other_samplers  # noqa: E402
import out_of_distribution  # noqa: E402
import png_size  # noqa: E402
import prior_guidance  # noqa: E402
import rivals  # noqa: E402
import score_alignment  # noqa: E402

SHAPE = (4, 4, 1)


def model_of(mixture):
    return dgjax.closed_form(mixture, dgjax.edm(7.0), t_min=0.6, t_max=1.9)  # sigma 0.03 to 90


@pytest.fixture(scope="module")
def sphere():
    """Every level set of log p is a sphere."""
    return model_of(dgjax.gaussian(jnp.zeros(SHAPE), 0.25))


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(0), 16)


def test_correlation_and_its_interval():
    x, y = np.random.default_rng(0).multivariate_normal((0, 0), ((1, 0.6), (0.6, 1)), 300).T
    found, expected = claims.correlation(x, y), stats.pearsonr(x, y)
    assert found.value == pytest.approx(expected.statistic)
    # Of normal pairs Fisher's interval is right, too.
    np.testing.assert_allclose(found[1:], expected.confidence_interval(), atol=0.02)


def test_deviation_and_its_interval():
    x = np.random.default_rng(0).normal(size=300)
    found, size = claims.deviation(x), 299
    assert found.value == pytest.approx(np.std(x, ddof=1))
    expected = found.value * np.sqrt(size / stats.chi2.ppf((0.975, 0.025), size))
    np.testing.assert_allclose(found[1:], expected, atol=0.02)
    assert claims.deviation(np.ones(9)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("values", "message"), [(np.arange(7), "8 values"), ([np.nan] * 9, "finite")]
)
def test_no_interval_without_enough_finite_values(values, message):
    with pytest.raises(ValueError, match=message):
        claims.deviation(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "cifar10"], "needs a model"),
        (["--count", "2"], "at least 8"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_wrong_command_lines_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["experiment", *arguments])
    with pytest.raises(SystemExit) as stop:
        claims.start("An experiment.")
    complaint = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in complaint.splitlines()[-1]
    assert "Traceback" not in complaint


def test_parts_that_are_kept_are_not_made_again(tmp_path):
    setup = SimpleNamespace(model=SimpleNamespace(name="a"), seed=0, keep=tmp_path / "parts")
    make = lambda: [np.arange(3), np.float32(2)]
    for found in (claims.kept(setup, "x", make), claims.kept(setup, "x", None)):
        assert [a.tolist() for a in found] == [[0, 1, 2], 2.0]
    with pytest.raises(TypeError):
        claims.kept(setup, "y", None)


def test_in_one_program_only_the_dial_that_is_turned_acts(sphere, keys):
    grid, scale = dgjax.grid_logsnr(sphere, 7), 0.5
    x = 3 * jax.random.normal(keys[0], SHAPE)
    local = dgjax.evaluate(sphere, grid[3], x, divergence=dgjax.Exact(), key=keys[1])
    alone = {
        "q": dgjax.density_guidance,
        "amount": lambda amount: dgjax.detail_daemon(amount, sphere, grid),
        "omega": dgjax.omegance,
        "T": lambda T: dgjax.temperature(T, scale=scale),
    }
    for name in (None, *alone):
        settings = rivals.Settings(**({name: 0.7} if name else {}))
        drift = local.velocity
        for guide in rivals.guides_of(settings, sphere, grid, scale):
            drift = guide(drift, local)
        expected = alone[name](0.7)(local.velocity, local) if name else local.velocity
        np.testing.assert_allclose(drift, expected, rtol=1e-5, atol=1e-5)
        assert name is None or abs(drift - local.velocity).max() > 1e-3


def test_alignment_of_a_gaussian_at_every_level():
    variances = jnp.geomspace(0.01, 4, 16)
    model = model_of(dgjax.gaussian(jnp.zeros(16), jnp.diag(variances)))
    grid, key, at = dgjax.grid_logsnr(model, 48), jax.random.key(1), np.array([4, 24, 48])
    # The Jacobian is diagonal, of which random signs make the exact trace.
    options = {"shape": (16,), "grid": grid, "at": at, "divergence": dgjax.Hutchinson()}
    found = jax.jit(lambda key: score_alignment.align_through(model, key, **options))(key)
    x = dgjax.prior_sample(model, jax.random.split(key)[0], (16,))
    first = variances + model.path.sigma(grid[0]) ** 2
    there = variances + model.path.sigma(grid[at])[:, None] ** 2
    scale = jnp.sqrt(there / first)  # of the flow, which is linear
    scores, pushed = -scale * x / there, -scale * x / first
    product = jnp.sum(scores * pushed, 1)
    norms = jnp.linalg.norm(scores, axis=1) * jnp.linalg.norm(pushed, axis=1)
    np.testing.assert_allclose(found.cosine, product / norms, rtol=1e-3)
    np.testing.assert_allclose(found.product, product, rtol=1e-3)
    np.testing.assert_allclose(found.omega, product, rtol=1e-3)


def test_a_real_image_is_measured_with_the_noise_of_t_min(sphere, keys):
    image, grid = 0.5 * jax.random.normal(keys[0], SHAPE), dgjax.grid_logsnr(sphere, 16)
    run = jax.jit(lambda *item: png_size.measured(*item, grid=grid))
    x, clean, log_density, _ = run(sphere, image, keys[1])
    np.testing.assert_array_equal(clean, image)
    assert np.std(x - clean) == pytest.approx(float(sphere.path.sigma(sphere.t_min)), rel=0.6)
    true = dgjax.log_density(sphere, sphere.t_min, x)
    assert log_density == pytest.approx(float(true), abs=0.01)


def test_deviation_of_h_is_as_foretold_for_gaussian_data():
    variances, sigma = np.geomspace(0.01, 4, 64), 0.5
    model = model_of(dgjax.gaussian(jnp.zeros(64), jnp.diag(jnp.asarray(variances))))
    t = model.path.time(jnp.asarray(-2 * np.log(sigma)))
    data = np.random.default_rng(0).normal(size=(2000, 64)) * np.sqrt(variances)
    keys = jax.random.split(jax.random.key(0), len(data))
    one = lambda x, key: normality.at_level(model, x, key, t, divergence=dgjax.Exact(chunk=64))
    h = jax.jit(jax.vmap(one))(jnp.asarray(data), keys)
    foretold = normality.predicted(normality.variances_of(data), np.array([sigma]))[0]
    assert 0.3 < foretold < 0.7
    assert np.std(h) == pytest.approx(foretold, rel=0.06)  # its standard error is 1.6 %
    assert np.mean(h) == pytest.approx(0, abs=4 * foretold / np.sqrt(len(data)))


def test_noise_along_level_sets_has_no_spread_on_a_gaussian(sphere, keys):
    grid, x = dgjax.grid_logsnr(sphere, 32), dgjax.prior_sample(sphere, keys[0], SHAPE)
    low, high = jnp.full(len(keys), -jnp.inf), jnp.full(len(keys), jnp.inf)
    kinds = {
        noise_windows.along_level_set: {"guide": dgjax.density_guidance(0.5)},
        noise_windows.by_reverse_sde: {},
    }
    ends = []
    for kind, options in kinds.items():
        one = partial(kind, sphere, x, grid=grid, **options)
        run = jax.jit(jax.vmap(lambda *item, one=one: one(*item)[0]))
        found = run(keys, low, high)
        true = jax.vmap(lambda x: dgjax.log_density(sphere, sphere.t_min, x))(found)
        ends.append((np.std(true), noise_windows.distance(found)))
        empty = run(keys, jnp.full(len(keys), 100.0), jnp.full(len(keys), 100.0))
        assert noise_windows.distance(empty) < 1e-12
    level_set, sde = ends
    # What is left of it is the error of 32 steps, of a method of order 1.
    assert level_set[0] < 0.02 < 1 < sde[0]
    assert level_set[1] == pytest.approx(sde[1], rel=0.5)  # the images vary as much


def test_fixed_schedule_is_the_rate_without_noise(sphere, keys):
    grid, x = dgjax.grid_logsnr(sphere, 64), dgjax.prior_sample(sphere, keys[0], SHAPE)
    rates = jax.jit(partial(noise_windows.fixed_schedule, grid=grid))(sphere, x, keys[1])
    # Along the flow of N(0, v I) nothing changes but the volume: d log p = -D d log deviation.
    levels = jax.vmap(lambda t: dgjax.logsnr(sphere.path, t))(grid)
    course = -0.5 * x.size * jnp.log(0.25 + jnp.exp(-levels))
    np.testing.assert_allclose(rates.knots, 0.5 * (levels[1:] + levels[:-1]))
    np.testing.assert_allclose(rates.values, jnp.diff(course) / jnp.diff(levels), atol=0.01)


def test_scales_split_the_distance():
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 1)) + np.arange(5)[:, None, None, None]
    coarse, fine = noise_windows.scales(x)
    np.testing.assert_allclose(coarse + fine, x)
    np.testing.assert_allclose(fine.reshape(5, 2, 4, 2, 4).mean((2, 4)), 0, atol=1e-12)
    whole, parts = noise_windows.distance(x), map(noise_windows.distance, (coarse, fine))
    assert whole**2 == pytest.approx(sum(part**2 for part in parts))
    pairs = [np.mean((a - b) ** 2) for i, a in enumerate(x) for b in x[:i]]
    assert whole == pytest.approx(np.sqrt(np.mean(pairs)))
    assert noise_windows.scales(x[:, :7, :6])[0].shape == (5, 7, 6, 1)


def test_an_earlier_threshold_has_a_higher_density(sphere, keys):
    thresholds = jnp.array([0.0, 0.2, 1.0, 90.0])
    run = lambda sigma: high_density.sampled(sphere, *keys[:2], sigma, shape=SHAPE, steps=16)
    x, _, tracked, _, again, _ = jax.jit(jax.vmap(run))(thresholds)
    true = jax.vmap(lambda x: dgjax.log_density(sphere, sphere.t_min, x))(x)
    assert (np.diff(true) > 0).all()
    np.testing.assert_allclose(tracked, true, atol=0.05)
    np.testing.assert_allclose(again, true, atol=0.05)


def test_area_counts_pairs():
    rng = np.random.default_rng(0)
    test, other = rng.normal(1, 1, 30), rng.normal(0, 1, 20)
    assert out_of_distribution.area(test, other) == pytest.approx(
        np.mean(test[:, None] > other[None])
    )
    assert out_of_distribution.area(test, test - 10) == 1


def test_images_from_elsewhere_have_the_shape_of_the_model():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    for make in (out_of_distribution.digits, out_of_distribution.photographs):
        for shape in ((28, 28, 1), (32, 32, 3)):
            found = make(shape, 4, rng)
            assert found.shape == (4, *shape)
            assert found.dtype == np.uint8
            assert found.std() > 10
    flat = np.full((2, 8, 8, 1), 77, np.uint8)
    np.testing.assert_array_equal(out_of_distribution.blurred(flat, 2.0), flat)


def test_a_smaller_norm_raises_the_log_density_and_it_is_tracked(sphere, keys):
    dials = prior_guidance.dials(0.5)
    assert all(dial.neutral in dial.settings for dial in dials.values())
    dial, grid = dials["prior guidance, quantile"], dgjax.grid_logsnr(sphere, 16)
    one = partial(prior_guidance.sampled, sphere, *keys[:2], turn=dial.turn)
    run = jax.vmap(lambda setting: one(setting, shape=SHAPE, grid=grid))
    x, log_density, _ = jax.jit(run)(jnp.array(dial.settings))
    assert (np.diff(log_density) > 0.5).all()
    # E[x0 | x] of N(0, v I) is v/(v + sigma^2) x.
    noisy = x * (1 + sphere.path.sigma(sphere.t_min) ** 2 / 0.25)
    true = jax.vmap(lambda x: dgjax.log_density(sphere, sphere.t_min, x))(noisy)
    np.testing.assert_allclose(log_density, true, atol=0.05)


def test_quality_is_read_off_where_the_size_is_asked_for():
    def setting(size, value):
        quality = tuple(claims.Estimate(value + i, value + i - 1, value + i + 2) for i in range(3))
        return prior_guidance.Setting(np.zeros(9), np.zeros(9), np.full(9, size), quality)

    group = {0.2: setting(300.0, 5.0), 0.5: setting(200.0, 1.0), 0.8: setting(100.0, 2.0)}
    assert prior_guidance.at_size(group, 250.0) == ((3, 2, 5), (4, 3, 6), (5, 4, 7))
    assert prior_guidance.at_size(group, 100.0)[0] == (2, 1, 4)
    assert prior_guidance.at_size(group, 301.0) is None


@pytest.mark.parametrize("name", other_samplers.SAMPLERS)
def test_other_samplers_end_in_the_data(name):
    variance, sampler = 0.3, other_samplers.SAMPLERS[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(20_000)
    x *= np.sqrt(variance + 80.0**2) / x.std()
    errors = []
    for steps in (64, 128):
        sigmas = other_samplers.karras(0.02, 80.0, steps)
        denoise = lambda x, sigma: variance / (variance + sigma**2) * x
        levels, points = sampler(denoise, x, sigmas, rng)
        assert points.shape == (len(levels), x.size)
        assert set(sigmas) <= set(levels)
        errors.append(abs(points[-1].std() / np.sqrt(variance + 0.02**2) - 1))
    assert errors[1] < 0.05
    order = {"DDIM": 1, "DPM-Solver++(2M)": 2}.get(name)  # noise hides that of the others
    if order:
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_quadrature_of_other_samplers_is_right_where_their_sum_is_not():
    mixture = dgjax.gaussian_mixture(
        jnp.ones(2), jnp.array([[0.0] * 4, [1.0] * 4]), jnp.stack([jnp.eye(4), 0.1 * jnp.eye(4)])
    )
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=0.02, t_max=80.0)
    true, *found, naive = other_samplers.of_mixture(model, mixture, other_samplers.ddim, 32, 2)
    two, three, four = (np.abs(by - true).max() for by in found)
    assert four < three < two < 0.01
    assert np.abs(naive - true).min() > 0.1


def test_error_of_the_score_is_of_the_size_asked_for(keys):
    mixture = jax.jit(imperfect_score.small)()
    make = jax.jit(jax.vmap(partial(imperfect_score.wrong, mixture), (None, 0)))
    for size in (0.0, 0.2):
        found = imperfect_score.score_error(make(size, keys[:4]), mixture, keys[4])
        assert found == pytest.approx(size, rel=0.15, abs=1e-6)
    top, low = imperfect_score.summit(mixture), imperfect_score.SIGMAS[0]
    assert top >= max(mixture.log_density(mean, low) for mean in mixture.means)


def test_classes_are_told_apart_from_features():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    seen = rng.normal(size=(120, 8)) + 6 * np.eye(3, 8)[labels]
    predict = class_guidance.classifier(seen[:60], labels[:60])
    assert (predict(seen[60:]) == labels[60:]).mean() > 0.95


def test_the_scan_by_hand_converges_to_what_sample_gives(sphere, keys):
    x = dgjax.prior_sample(sphere, keys[0], SHAPE)
    (exact, point), *by_hand = (
        jax.jit(make(steps))(sphere, x, keys[1])
        for make, steps in (
            (hand_scan.by_sample, 64),
            (hand_scan.by_hand, 200),
            (hand_scan.by_hand, 400),
        )
    )
    for place, end in ((0, exact), (1, point)):
        errors = [np.abs(found[place] - end).max() for found in by_hand]
        assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)


def test_a_network_is_traced_once_by_both(keys):
    model = build(hand_scan.TOY)
    x = dgjax.prior_sample(model, keys[0], (2,))
    for make in (hand_scan.by_sample, hand_scan.by_hand):
        assert hand_scan.traces(make(6), model, x, keys[1]) == 1
