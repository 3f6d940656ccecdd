"""The experiments on the papers' claims: their numbers, where the truth is known."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import dgjax
from dgjax.checkpoints.spec import build
from dgjax.networks.trace_head import DiagonalHead

FOLDER = Path(__file__).parent.parent / "experiments"
if not FOLDER.exists():
    pytest.skip("experiments/ is not in source distributions", allow_module_level=True)
sys.path.insert(0, str(FOLDER))  # they import `claims` from beside them

import claims  # noqa: E402
import class_guidance  # noqa: E402
import few_steps  # noqa: E402
import hand_scan  # noqa: E402
import high_density  # noqa: E402
import imperfect_score  # noqa: E402
import latent_ascent  # noqa: E402
import low_dimension  # noqa: E402
import nearest  # noqa: E402
import noise_windows  # noqa: E402
import normality  # noqa: E402
import other_samplers  # noqa: E402
import out_of_distribution  # noqa: E402
import particle_systems  # noqa: E402
import particles  # noqa: E402
import png_size  # noqa: E402
import prior_guidance  # noqa: E402
import products  # noqa: E402
import published_scale  # noqa: E402
import reverse_sde_correlation  # noqa: E402
import rivals  # noqa: E402
import score_alignment  # noqa: E402
import stein_divergence  # noqa: E402
import superposition  # noqa: E402
import transition_paths  # noqa: E402

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
    known = {"class": None}
    model = SimpleNamespace(name="models/a", facts=lambda: known)
    setup = SimpleNamespace(model=model, seed=0, data=None, keep=tmp_path / "parts")
    make = lambda: [np.arange(3), np.float32(2)]
    for found in (claims.kept(setup, "x", make), claims.kept(setup, "x", None)):
        assert [a.tolist() for a in found] == [[0, 1, 2], 2.0]
    with pytest.raises(TypeError):
        claims.kept(setup, "y", None)
    known["class"] = 3  # of another class they are others
    with pytest.raises(TypeError):
        claims.kept(setup, "x", None)


def test_options_of_the_experiments(monkeypatch, capsys):
    def started(*options):
        monkeypatch.setattr(sys, "argv", ["experiment", *map(str, options)])
        return claims.start("An experiment.")

    setup = started("--class", "Bag", "--count", 9, "--steps", 5, "--batch", 3)
    assert (setup.preset, setup.model.label) == (claims.Preset(9, 5, 3), 8)
    assert claims.has_images(setup)
    x = np.random.default_rng(0).uniform(-1.1, 1.1, (2, *setup.model.meta.shape))
    levels = claims.levels(setup, x)
    np.testing.assert_array_equal(levels, np.clip(np.round((x + 1) * 127.5), 0, 255))
    sizes = [dgjax.png_bytes(image) for image in x]
    assert claims.sizes(setup, x).tolist() == sizes
    for options, message in (
        (("--steps", 1), "--steps must be at least 2"),
        (("--prompt", "a cat"), "takes no prompt"),
        (("--class", "Bags"), "Bags"),
    ):
        with pytest.raises(SystemExit):
            started(*options)
        assert message in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["experiment", "--class", "Bag"])
    with pytest.raises(SystemExit, match="leave --class and --prompt out"):
        claims.start_unconditional("An experiment.")


def test_the_nearest_training_image_may_be_mirrored():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    training = rng.normal(1.5, 2, (7, 5, 4, 3)).astype(np.float32)
    x = np.stack([training[3] + 0.1, training[5, :, ::-1] - 0.2])
    images, distances = nearest.nearest(x, training)
    np.testing.assert_array_equal(images, np.stack([training[3], training[5, :, ::-1]]))
    np.testing.assert_allclose(distances, [0.1, 0.2], rtol=1e-4)


def test_passes_of_the_claims_are_counted():
    found = published_scale.evaluations("laptop", real=True)
    assert found["png_size"] == (5 * 64, 6 * 64 * 33, 0)
    assert published_scale.evaluations("laptop", real=False)["png_size"] == (5 * 64, 5 * 64 * 33, 0)
    assert found["high_density"] == (96, 96 * 99, 0)
    assert found["reverse_sde_correlation"] == (64 * 1344, 64 * 3 * 33, 0)


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


def test_tracking_along_the_reverse_sde_goes_with_the_density_the_more_steps_there_are():
    keys = jax.random.split(jax.random.key(3), 32)
    data = dgjax.gaussian(jnp.full(SHAPE, 0.7), 0.25)
    # sigma 1 at t_min, where alpha is 0.7 on the path of the SDE and 1 here
    model = dgjax.closed_form(data, dgjax.edm(7.0), t_min=1.0, t_max=1.9)
    errors = []
    for steps in (64, 1024):
        one = partial(reverse_sde_correlation.sampled, model, shape=SHAPE, steps=(steps, 32))
        tracked, flow, _ = jax.jit(jax.vmap(one))(keys)
        errors.append(np.std(tracked - flow))
    assert errors[1] < 0.5 * errors[0]
    assert np.corrcoef(tracked, flow)[0, 1] > 0.9
    assert abs(np.mean(tracked - flow)) < 0.5


def test_ascent_in_the_latent_changes_its_norm_alone_where_that_is_all_there_is(sphere, keys):
    """On N(0, v I) log p of a sample depends on the norm of the latent."""
    start = jax.vmap(lambda key: dgjax.prior_sample(sphere, key, SHAPE))(keys[:4])
    grid = dgjax.grid_logsnr(sphere, 12)
    run = jax.jit(jax.vmap(lambda x: dgjax.sample(sphere, x, grid, key=keys[0]).x))
    true = jax.vmap(lambda x: dgjax.log_density(sphere, sphere.t_min, x))
    before = true(run(start))
    gains = {}
    for name, project in latent_ascent.NORMS.items():
        options = {"grid": grid, "steps": 8, "every": 4}
        found = list(latent_ascent.climb(sphere, start, keys[1], project, **options))
        assert [i for i, _ in found] == [4, 8]
        assert jnp.abs(found[-1][1] - start).max() > 0.1 * jnp.abs(start).max()
        gains[name] = [true(run(x)) - before for _, x in found]
    np.testing.assert_allclose(gains["norm held"], 0, atol=1e-3)
    assert (gains["norm free"][0] > 0.1).all()
    assert (gains["norm free"][1] > gains["norm free"][0]).all()


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


@pytest.mark.parametrize(
    ("name", "order"),
    [("DPM-Solver++(2M)", 2), ("UniPC, order 2", 3), ("UniPC, order 3", 4), ("DEIS, order 3", 3)],
)
def test_the_rivals_of_few_steps_have_their_order(name, order):
    # First and last steps are of lower order; the denoised image changes little there.
    mean, variance, ends = 0.7, 0.3**2, (3e3, 1e-4)
    denoise = lambda x, sigma: mean + variance / (variance + sigma**2) * (x - mean)
    start = mean + ends[0] * np.array([0.9, -1.4])
    scale = np.sqrt((variance + ends[1] ** 2) / (variance + ends[0] ** 2))
    exact = mean + (start - mean) * scale
    errors = []
    for steps in (200, 400):
        sigmas = np.geomspace(*ends, steps + 1)
        found = few_steps.integrate(few_steps.RIVALS[name], denoise, start, sigmas)
        errors.append(np.abs(found - exact).max())
    assert np.log2(errors[0] / errors[1]) > order - 0.2  # that of DEIS is 4 on a Gaussian


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


SPRINGS = particle_systems.System(
    3, 2, lambda r: 0.5 * r**2, 1.0, 0.8, 0, 0, 0, 0, 64, law=16
)  # exp(-energy) is N(0, I/4) of the mean-free coordinates


def test_chains_of_springs_are_gaussian():
    z = particle_systems.metropolis(SPRINGS, jax.random.key(0), chains=64, kept=32, thin=8, burn=50)
    assert z.shape == (64, 32, 4)
    variances = np.var(z.reshape(-1, 4), axis=0)
    np.testing.assert_allclose(variances, 0.25, rtol=0.15)
    assert np.mean(variances) == pytest.approx(0.25, rel=0.05)


@pytest.mark.slow
def test_samples_reweighed_to_springs():
    variance, noise = 0.35, particles.SIGMAS[0] ** 2
    data = dgjax.gaussian(jnp.zeros(4), variance)
    model = dgjax.closed_form(data, dgjax.edm(), t_min=noise**0.5, t_max=particles.SIGMAS[1])
    draw = lambda k: dgjax.prior_sample(model, k, (4,))
    found = particles.measure(
        SPRINGS, model, jax.vmap(draw)(jax.random.split(jax.random.key(0), 512)), 16
    )
    np.testing.assert_allclose(found.off, 0, atol=0.02)  # of 16 steps
    # All distances are of particles with mean 0: their squares sum to 3 |z|^2.
    np.testing.assert_allclose(np.sum(found.pairs**2, 1), found.energies * 6 / 4, rtol=1e-4)
    square = found.energies / 2
    log_q = -square / (2 * (variance + noise)) - 2 * np.log(2 * np.pi * (variance + noise))
    np.testing.assert_allclose(found.log_weights, -found.energies - log_q, atol=0.02)
    mean = dgjax.weighted_mean(found.energies, found.log_weights, confidence=0.999)
    assert mean.low < 2 < mean.high  # D/2


def test_published_superposition_of_gaussians():
    variances, ends = np.array([0.3, 0.6]), (0.1, 40.0)
    data = [dgjax.gaussian(jnp.array([1.0, 0.0]), 0.3), dgjax.gaussian(jnp.array([0.5, 0.5]), 0.6)]
    models = [dgjax.closed_form(d, dgjax.edm(), t_min=ends[0], t_max=ends[1]) for d in data]
    keys = jax.random.split(jax.random.key(0), 32)
    latents = jax.vmap(lambda k: dgjax.prior_sample(models[0], k, (2,)))(keys)
    each = lambda f, x: np.stack([jax.vmap(partial(f, model))(x) for model in models], 1)
    off = {}
    for name in ("OR", "AND"):
        run = jax.jit(jax.vmap(partial(superposition.ito, models, name, steps=1000)))
        found = run(latents, keys)
        off[name] = found.stated - each(lambda m, x: dgjax.log_density(m, ends[0], x), found.x)
    assert np.sqrt(np.mean(off["OR"] ** 2)) < 0.3
    apart = each(dgjax.log_prior, latents)
    np.testing.assert_allclose(np.diff(found.stated), np.diff(apart), atol=1e-2)
    # AND has no noise along the difference of the scores, and the estimator counts its curvature.
    lost = -0.5 * np.log((variances + ends[1] ** 2) / (variances + ends[0] ** 2))
    np.testing.assert_allclose(off["AND"].mean(0), lost, atol=0.3)


def test_products_of_gaussians_have_the_integral_on_a_grid():
    means, covariances = products.gaussians(size=2)
    pairs = zip(jnp.asarray(means), jnp.asarray(covariances), strict=True)
    models = [products.model_of(dgjax.gaussian(*pair)) for pair in pairs]
    line = jnp.linspace(-8, 8, 161)
    points = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
    logs = [jax.vmap(lambda x, m=m: dgjax.log_density(m, 0.05, x))(points) for m in models]
    total = jax.nn.logsumexp(1.3 * logs[0] + 0.4 * logs[1]) + 2 * jnp.log(line[1] - line[0])
    found = products.log_normalizer((1.3, 0.4), means, covariances)
    assert found == pytest.approx(float(total), abs=1e-3)
    # One density alone has no weights.
    grid = dgjax.grid_logsnr(models[0], 48)
    weights = products.corrector(models, (1.0, 0.0), grid, 8)
    np.testing.assert_allclose(weights, 0, atol=0.02)


def test_noisy_correctors_find_the_normalizer_of_a_product():
    models, truths = products.gaussian_models()
    grid = dgjax.grid_logsnr(models[0], 800)
    name = "p1^0.5 p2^0.2"
    log_z, least, ancestors = products.noisy_corrector(models, products.PRODUCTS[name], grid, 2000)
    assert log_z == pytest.approx(truths[name], abs=0.15)
    assert 0 < least < 0.5  # resampled
    assert 0 < ancestors < 1


def test_divergence_along_any_curve_is_a_sum_on_a_grid():
    model = transition_paths.state_model()
    points = transition_paths.square(transition_paths.SPACING / 4)
    log_p = jax.vmap(lambda x: model.network.log_density(x, 0.0))(jnp.asarray(points))
    share = jnp.linspace(0, 1, 129)[:, None]
    xs = (1 - share) * transition_paths.STATES[0] + share * jnp.array([0.1, 0.3])
    ts = 0.5 + 0.4 * share[:, 0]
    along = dgjax.posterior_kl(
        model, ts, xs, key=jax.random.key(0), divergence=dgjax.Exact(), batch=43
    )
    ends = (ts[0], xs[0]), (ts[-1], xs[-1])
    on_grid = transition_paths.divergence_on_grid(points, np.asarray(log_p), *ends)
    assert on_grid > 0.5
    assert float(along[-1]) == pytest.approx(on_grid, rel=5e-3)


def test_mode_of_the_denoising_density_of_a_gaussian():
    mean, variance, sigma, low = jnp.array([1.0, -2.0]), 0.3, 1.5, low_dimension.SIGMAS[0]
    data, x = dgjax.gaussian(mean, variance), jnp.array([2.0, 0.5])
    found = low_dimension.mode_tracking(data, x, sigma, steps=60)
    weights = 1 / (sigma**2 - low**2), 1 / (variance + low**2)
    np.testing.assert_allclose(
        found, (weights[0] * x + weights[1] * mean) / sum(weights), rtol=1e-4
    )
    # The score times w shrinks x - mean by the ratio of variances to the power w/2.
    for weight in (1, 2):
        found = low_dimension.weighted_score(data, x, sigma, weight)
        shrunk = ((variance + low**2) / (variance + sigma**2)) ** (weight / 2)
        np.testing.assert_allclose(found, mean + shrunk * (x - mean), rtol=1e-4)


def test_bias_of_the_reverse_sde_by_the_formula_of_its_path():
    true, wrong = dgjax.gaussian(jnp.zeros(2), 0.4), dgjax.gaussian(jnp.array([1.0, 0.0]), 1.2)
    # The latents' log-density is the true one, as of a model with this prior.
    model = low_dimension.closed(wrong)
    x, keys = low_dimension.latents(model, 32)
    run = jax.jit(jax.vmap(lambda x, key: low_dimension.reverse(model, x, key, 1000, true)))
    x_end, tracked, bias, path = run(x, keys)
    at = lambda data, x, sigma: jax.vmap(lambda x: data.log_density(x, sigma))(x)
    low, high = low_dimension.SIGMAS
    start = at(wrong, x, high) - at(true, x, high)
    off = np.asarray(tracked - start - at(true, x_end, low))
    assert np.std(off - path) < 0.3 < np.std(off)
    assert abs(np.mean(off - path)) < 0.15
    assert np.mean(bias) > 0.5


def test_the_loss_of_steins_identity_is_the_squared_error_in_the_mean():
    mixture, size = stein_divergence.cloud(3), 3
    low, high = stein_divergence.LOW, stein_divergence.HIGH
    model = dgjax.closed_form(mixture, dgjax.edm(), t_min=low, t_max=high)
    head = DiagonalHead((size,), rngs=nnx.Rngs(0))
    head.leave.kernel[...] = 0.3 * jax.random.normal(jax.random.key(4), head.leave.kernel.shape)

    @jax.jit
    @jax.vmap
    def losses(key):
        keys = jax.random.split(key, 3)
        w, y = stein_divergence.draw(mixture, keys)
        exact = jnp.trace(jax.jacfwd(lambda y: model.pair(w, y).x0)(y))
        value = stein_divergence.trace(model, head, w, y)
        stein = stein_divergence.by_stein(model, head, w, y, keys[2])
        return stein - (value**2 - 2 * value * exact), value * exact

    off, product = losses(jax.random.split(jax.random.key(0), 20_000))
    error = float(jnp.std(off)) / np.sqrt(len(off))
    assert error < 0.05 * float(jnp.mean(product))
    assert abs(float(jnp.mean(off))) < 4 * error
