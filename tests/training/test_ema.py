"""Averages of any width from stored ones: against quadrature and against the whole sequence."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from typer.testing import CliRunner

from dgjax.checkpoints.arrays import to_named
from dgjax.checkpoints.checkpoint import load
from dgjax.cli import app
from dgjax.training import TrainConfig, ema, ema_snapshots, export, fit, load_config, loop

WIDTHS = (0.05, 0.1)
STEPS = 320


def profile(tau, step, gamma):
    return np.where(tau <= step, (gamma + 1) / step * (tau / step) ** gamma, 0.0)


def stored(steps, widths=WIDTHS):
    """Steps and exponents of all the averages of some snapshots, as `combine` takes them."""
    steps = sorted(steps)
    return np.repeat(steps, len(widths)), [ema.exponent(w) for w in widths] * len(steps)


@pytest.fixture(scope="module")
def walk():
    """Weights of 320 steps: a decaying trend under a random walk and noise, of size about 1."""
    rng = np.random.default_rng(0)
    k = np.arange(1, STEPS + 1)[:, None]
    trend = rng.normal(size=(1, 50)) * np.exp(-k / 80)
    wander = rng.normal(size=(STEPS, 50)).cumsum(0) / np.sqrt(STEPS)
    return trend + wander + 0.1 * rng.normal(size=(STEPS, 50))


def direct(walk, width, step):
    """The average by its definition, from every step's weights."""
    edges = (np.arange(step + 1) / step) ** (ema.exponent(width) + 1)
    return np.diff(edges) @ walk[:step]


@pytest.fixture(scope="module")
def snapshots(walk):
    """The averages of both widths after each snapshot's step, tracked as training does."""
    kept, now = {}, [jnp.zeros(50)] * len(WIDTHS)
    for step, weights in enumerate(walk, start=1):
        gammas = map(ema.exponent, WIDTHS)
        now = [ema.update(a, weights, step, g) for a, g in zip(now, gammas, strict=True)]
        if step in ema_snapshots.snapshot_steps(STEPS, 32):
            kept[step] = [np.asarray(a) for a in now]
    return kept


# Profiles


@pytest.mark.parametrize(
    ("step", "gamma", "other", "delta"),
    [(100, 6.9, 100, 6.9), (100, 6.9, 80, 16.2), (3, 0.0, 50, 2.5), (1000, 96.5, 990, 6.9)],
)
def test_inner_products_are_those_of_quadrature(step, gamma, other, delta):
    product = lambda tau: profile(tau, step, gamma) * profile(tau, other, delta)
    exact, _ = scipy.integrate.quad(product, 0, min(step, other), epsabs=0, epsrel=1e-11)
    found = ema.inner_product(step, gamma, other, delta)
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    np.testing.assert_allclose(ema.inner_product(other, delta, step, gamma), found, rtol=1e-14)


@pytest.mark.parametrize("index", [0, 17, 40, 63])
def test_a_stored_average_is_made_of_itself_alone(index):
    steps, gammas = stored(ema_snapshots.snapshot_steps(3500, 32))
    found = ema.combine(steps, gammas, steps[index], gammas[index])
    np.testing.assert_allclose(found.coefficients, np.eye(64)[index], atol=1e-9)
    assert found.error < 1e-6


@pytest.mark.parametrize(("step", "width"), [(100, 0.07), (93, 0.15), (100, 0.02)])
def test_no_other_combination_is_nearer(step, width):
    steps, gammas = stored(ema_snapshots.snapshot_steps(100, 20))
    tau = (np.arange(40000) + 0.5) / 400
    rows = np.stack([profile(tau, t, g) for t, g in zip(steps, gammas, strict=True)])
    asked = profile(tau, step, ema.exponent(width))
    size = np.linalg.norm(asked)
    found = ema.combine(steps, gammas, step, ema.exponent(width))
    least = np.linalg.norm(found.coefficients @ rows - asked) / size
    np.testing.assert_allclose(found.error, least, rtol=1e-3)
    np.testing.assert_allclose(found.coefficients.sum(), 1, atol=1e-12)
    for change in np.random.default_rng(0).normal(size=(50, len(steps))) * 1e-2:
        other = found.coefficients + change - change.mean()
        assert np.linalg.norm(other @ rows - asked) / size > least


def test_coefficients_depend_on_ratios_of_steps_only_and_do_not_overflow():
    steps, gammas = stored(ema_snapshots.snapshot_steps(320, 16), (0.005, 0.01))
    near = ema.combine(steps, gammas, 320, ema.exponent(0.007))
    far = ema.combine(steps * 10_000_000, gammas, 3_200_000_000, ema.exponent(0.007))
    assert max(gammas) > 190
    np.testing.assert_allclose(far.coefficients, near.coefficients, atol=1e-9)


def test_more_snapshots_are_nearer():
    errors = []
    for count in (8, 16, 32, 64):
        steps, gammas = stored(ema_snapshots.snapshot_steps(6400, count))
        errors.append(ema.combine(steps, gammas, 6400, ema.exponent(0.07)).error)
    np.testing.assert_array_less(errors, [2e-2, 5e-3, 1.2e-3, 3e-4])
    assert (np.diff(np.log2(errors)) < -1.5).all()


@pytest.mark.parametrize(
    ("steps", "gammas", "step", "message"),
    [
        ([], [], 1, "n > 0"),
        ([1, 2], [3.0], 1, r"\(2,\) and gammas \(1,\)"),
        ([5, 10], [3.0, 3.0], 11, "last stored, 10; got 11"),
        ([5, 10], [3.0, 3.0], 0, "got 0"),
    ],
)
def test_what_cannot_be_combined_is_refused(steps, gammas, step, message):
    with pytest.raises(ValueError, match=message):
        ema.combine(steps, gammas, step, 3.0)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3, float("nan")])
def test_widths_without_a_profile_are_refused(width):
    with pytest.raises(ValueError, match="ema: width must be in"):
        ema.exponent(width)


# Averages


@pytest.mark.parametrize(
    ("width", "step", "share"),
    [
        (0.05, 320, 1e-9),
        (0.07, 320, 1e-3),
        (0.15, 320, 1e-3),
        (0.03, 320, 1e-2),
        (0.07, 220, 2e-3),
        (0.07, 215, 0.1),  # between stored steps: the profile's end is matched poorly
    ],
)
def test_the_combination_is_near_the_average_of_the_whole_sequence(
    walk, snapshots, width, step, share
):
    steps, gammas = stored(snapshots)
    found = ema.combine(steps, gammas, step, ema.exponent(width))
    made = found.coefficients @ np.concatenate([snapshots[s] for s in sorted(snapshots)])
    spread = np.linalg.norm(direct(walk, WIDTHS[0], step) - direct(walk, WIDTHS[1], step))
    error = np.linalg.norm(made - direct(walk, width, step))
    assert error < share * spread, error / spread


def test_half_precision_files_keep_the_average(walk, snapshots, tmp_path):
    for step, (narrow, wide) in snapshots.items():
        ema_snapshots.write_snapshot(
            tmp_path, step, [{"w": jnp.asarray(narrow)}, {"w": jnp.asarray(wide)}]
        )
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f"{s}.npz" for s in snapshots)
    chosen = ema_snapshots.plan_reconstruction(tmp_path, WIDTHS, 0.07)
    made = ema_snapshots.reconstruct(tmp_path, chosen, {"w": jnp.zeros(50)})["w"]
    exact = direct(walk, 0.07, STEPS)
    # float16 rounds by 2^-11 at most; the coefficients, of norm 0.9, add up less than that.
    assert np.abs(made - exact).max() < 2**-11 * np.abs(walk).max()
    spread = np.linalg.norm(direct(walk, WIDTHS[0], STEPS) - direct(walk, WIDTHS[1], STEPS))
    assert np.linalg.norm(made - exact) < 1e-2 * spread


@pytest.mark.parametrize(("steps", "count"), [(320, 32), (3500, 32), (24, 7), (5, 32), (1, 1)])
def test_snapshots_are_spread_evenly_up_to_the_end(steps, count):
    places = sorted(ema_snapshots.snapshot_steps(steps, count))
    assert len(places) == min(steps, count)
    assert places[-1] == steps
    gaps = np.diff([0, *places])
    assert 1 <= gaps.min() <= gaps.max() <= gaps.min() + 1


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def savez(stream, **arrays):
        stream.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(ValueError, match=r"cannot write to .*3\.npz: No space left"):
        ema_snapshots.write_snapshot(tmp_path / "averages", 3, [{"w": jnp.zeros(2)}])
    assert list((tmp_path / "averages").iterdir()) == []


def test_snapshots_that_do_not_serve_are_refused(tmp_path):
    like = {"w": jnp.zeros(2)}
    with pytest.raises(ValueError, match="holds no averages yet"):
        ema_snapshots.plan_reconstruction(tmp_path, WIDTHS, 0.07)
    for step in ema_snapshots.snapshot_steps(100, 16):
        ema_snapshots.write_snapshot(tmp_path, step, [like, like])
    with pytest.raises(
        ValueError, match=r"width 0.01 at step 100 cannot be reconstructed.*ema_snapshots"
    ):
        ema_snapshots.plan_reconstruction(tmp_path, WIDTHS, 0.01)
    chosen = ema_snapshots.plan_reconstruction(tmp_path, WIDTHS, 0.07)
    with pytest.raises(ValueError, match="'w' has shape"):
        ema_snapshots.reconstruct(tmp_path, chosen, {"w": jnp.zeros(3)})
    ema_snapshots.write_snapshot(tmp_path, 50, [like, {"w": jnp.array([0.0, 1e6])}])
    with pytest.raises(ValueError, match=r"1.w in .*50.npz is not finite"):
        ema_snapshots.reconstruct(tmp_path, chosen, like)
    (tmp_path / "50.npz").write_bytes((tmp_path / "100.npz").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"50.npz cannot be read"):
        ema_snapshots.reconstruct(tmp_path, chosen, like)


# Runs


CONFIG = """
steps = 24
batch = 8
ema_widths = [0.1, 0.2]
ema_snapshots = 12
[model]
shape = [2]
network = { kind = "mlp", width = 8, depth = 1 }
path = { kind = "edm" }
parametrization = { kind = "preconditioned", sigma_data = 1.0 }
t_min = 0.02
t_max = 80.0
[data]
dataset = "npz"
sigma_data = 1.0
path = "PATH"
[records]
save_every = 10
validate_every = 0
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    np.savez(folder / "x.npz", x=np.random.default_rng(0).normal(size=(64, 2)))
    (folder / "tiny.toml").write_text(CONFIG.replace("PATH", str(folder / "x.npz")))
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A finished run's folder and what `fit` said of it."""
    folder = tmp_path_factory.mktemp("run")
    return folder, fit(load_config(config), folder, progress=False)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_very_same_averages(config, run, tmp_path, monkeypatch):
    def killed(folder, step, now):
        if step == 20:  # of a snapshot and of a checkpoint
            raise KeyboardInterrupt
        ema_snapshots.write_snapshot(folder, step, now)

    monkeypatch.setattr(loop, "write_snapshot", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(load_config(config), tmp_path, progress=False)
    monkeypatch.undo()
    resumed = fit(load_config(config), tmp_path, progress=False)
    folder, whole = run
    assert len(resumed.state.averages) == 2
    expected = to_named(whole.state)
    for name, value in to_named(resumed.state).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    files = sorted(f.name for f in (folder / "averages").iterdir())
    assert files == sorted(f"{step}.npz" for step in range(2, 25, 2))
    assert files == sorted(f.name for f in (tmp_path / "averages").iterdir())
    for name in files:
        with np.load(folder / "averages" / name) as a, np.load(tmp_path / "averages" / name) as b:
            assert a.files == b.files
            for array in a.files:
                np.testing.assert_array_equal(a[array], b[array], err_msg=f"{name}: {array}")


def test_export_makes_the_width_that_is_asked_for(run, tmp_path):
    folder, result = run
    first, second = (to_named(a) for a in result.state.averages)
    exported = {}
    for width in (None, 0.1, 0.15, 0.2):
        meta = export(folder, tmp_path / str(width), width=width)
        assert meta == result.meta
        exported[width] = to_named(load(tmp_path / str(width))[0].network)
    for name in first:
        half = {"rtol": 2**-10, "atol": 1e-6}
        np.testing.assert_allclose(exported[None][name], first[name], **half)
        np.testing.assert_allclose(exported[0.1][name], first[name], **half)
        np.testing.assert_allclose(exported[0.2][name], second[name], **half)
    flat = {w: np.concatenate([np.ravel(a) for a in e.values()]) for w, e in exported.items()}
    middle, ends = flat[0.15], (flat[0.1], flat[0.2])
    spread = np.linalg.norm(ends[0] - ends[1])
    assert all(0.1 * spread < np.linalg.norm(middle - end) < 0.9 * spread for end in ends)


def test_export_takes_an_earlier_step(run, tmp_path):
    folder, _ = run
    assert export(folder, tmp_path / "model", step=12).steps == 12
    with np.load(folder / "averages" / "12.npz") as arrays:
        for name, value in to_named(load(tmp_path / "model")[0].network).items():
            np.testing.assert_allclose(value, arrays[f"0.{name}"], rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"width": 0.5}, "ema: width must be in"),
        ({"width": 0.01}, "cannot be reconstructed"),
        ({"step": 25}, "last stored, 24; got 25"),
        ({"step": 13}, "stored step .the nearest is 12"),
    ],
)
def test_export_refuses_what_is_not_stored(run, tmp_path, asked, message):
    with pytest.raises(ValueError, match=message):
        export(run[0], tmp_path / "model", **asked)
    assert not (tmp_path / "model").exists()


def test_the_command_exports_another_width_of_a_finished_run(config, run, tmp_path):
    folder = run[0]
    before = (folder / "averages" / "24.npz").stat().st_mtime_ns
    arguments = ["train", str(config), "--out", str(folder), "--ema-width", "0.15"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (folder / "averages" / "24.npz").stat().st_mtime_ns == before
    export(folder, tmp_path / "expected", width=0.15)
    expected = to_named(load(tmp_path / "expected")[0].network)
    for name, value in to_named(load(folder / "model-0.15")[0].network).items():
        np.testing.assert_array_equal(value, expected[name])


def test_the_command_refuses_a_bad_width_before_it_trains(config, tmp_path):
    arguments = ["train", str(config), "--out", str(tmp_path / "run"), "--ema-width", "0.4"]
    with pytest.raises(ValueError, match="ema: width"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_its_widths(config, run):
    values = load_config(config).to_dict()
    assert json.loads((run[0] / "config.json").read_text())["ema_widths"] == [0.1, 0.2]
    with pytest.raises(ValueError, match="ema_widths was"):
        fit(TrainConfig.from_dict({**values, "ema_widths": [0.1]}), run[0], progress=False)
