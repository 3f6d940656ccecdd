"""The commands, end to end, on a model whose log-density is known.

A network that has not been trained returns zero. Preconditioned, it is then the exact model of
data from N(0, s^2 I): what the commands print and write can be compared with SciPy, and a
Rademacher probe leaves no noise, since every Jacobian is a multiple of the identity.
"""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dgjax.model.coloured_probes import Coloured
from dgjax.model.divergence import Hutchinson
from dgjax.sampling.solvers import RK4, Multistep, default_divergence

SHAPE, SPREAD, T_MIN = (8, 8, 1), 0.7, 0.02
SIZE = 64


def log_density(x):
    """Of samples (..., 8, 8, 1) at t_min."""
    return stats.norm(scale=np.hypot(SPREAD, T_MIN)).logpdf(x).sum((-3, -2, -1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_model):
    return small_model(tmp_path_factory.mktemp("model") / "gaussian", SHAPE, spread=SPREAD)


def picture(file, levels):
    Image.fromarray(np.asarray(levels, np.uint8)).save(file)
    return file


@pytest.fixture
def image(tmp_path):
    return picture(tmp_path / "ramp.png", np.linspace(90, 160, 64).reshape(8, 8))


def test_sample_writes_the_log_density_of_its_samples(folder, tmp_path, run):
    out = tmp_path / "out"
    code, printed, _ = run(
        "sample", "--model", folder, "--num", 3, "--q", 0.3, "--q", 0.7, "--q", 0.5, "--out", out
    )
    assert code == 0
    with np.load(out / "samples.npz") as arrays:
        found = dict(arrays)
    assert found["x"].shape == (3, 3, *SHAPE)
    np.testing.assert_allclose(found["q"], [0.3, 0.5, 0.7], rtol=1e-6)  # rising, as asked or not
    np.testing.assert_allclose(found["log_density"], log_density(found["x"]), atol=0.02)
    assert (np.diff(found["log_density"], axis=0) > 0).all()
    assert (out / "samples.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((out / "summary.json").read_text())["rows"]
    for row, values in zip(rows, found["log_density"], strict=True):
        assert row["log_density_mean"] == pytest.approx(values.mean(), rel=1e-5)
        assert row["log_density_std"] == pytest.approx(values.std(ddof=1), rel=1e-4)
        bits = -(values.mean() + SIZE * np.log(1 / 127.5)) / (SIZE * np.log(2))
        assert row["bits_per_dim"] == pytest.approx(bits, rel=1e-4)
        assert f"{row['log_density_mean']:,.1f}" in printed
    for name in ("standard_error", "solver_error"):
        means = [row[f"log_density_{name}"] for row in rows]
        np.testing.assert_allclose(means, found[name].mean(-1), rtol=1e-5)
    assert "solver" in printed
    assert "unknown" not in printed
    np.testing.assert_array_equal(found["fault"], np.zeros((3, 3), np.int32))
    assert sorted(p.name for p in out.iterdir()) == ["samples.npz", "samples.png", "summary.json"]


@pytest.mark.slow
def test_samples_depend_on_the_seed_and_not_on_the_batch(folder, tmp_path, run):
    def samples(*options):
        out = tmp_path / "-".join(map(str, options))
        common = ("--model", folder, "--num", 3, "--q", 0.6, "--steps", 6, "--solver", "heun")
        code, printed, _ = run("sample", *common, "--out", out, "--json", *options)
        assert code == 0
        with np.load(out / "samples.npz") as arrays:
            x = arrays["x"][0]
        return x, json.loads(printed)

    whole, summary = samples("--seed", 1, "--batch", 8)
    pieces, same = samples("--seed", 1, "--batch", 2)
    other, _ = samples("--seed", 2, "--batch", 8)
    np.testing.assert_allclose(pieces, whole, atol=1e-5)
    assert same["rows"][0]["q"] == summary["rows"][0]["q"] == 0.6
    assert (summary["t_min"], summary["t_max"]) == (0.02, 80.0)
    assert np.abs(other - whole).max() > 0.1


@pytest.mark.slow
def test_a_prior_quantile_fixes_the_norm(folder, tmp_path, run):
    arguments = ("sample", "--model", folder, "--num", 3, "--q", 0.5, "--out", tmp_path / "o")
    assert run(*arguments, "--prior-quantile", 0.9)[0] == 0
    with np.load(tmp_path / "o" / "samples.npz") as arrays:
        norms = np.sqrt((arrays["x"][0] ** 2).sum((1, 2, 3))) / np.hypot(SPREAD, T_MIN)
    np.testing.assert_allclose(norms, stats.chi(SIZE).ppf(0.1), rtol=1e-3)


@pytest.mark.slow
def test_targets_are_met_and_infeasible_ones_flagged(folder, tmp_path, run):
    mode = log_density(np.zeros(SHAPE))
    asked = [float(mode) - 40, float(mode) + 30]
    arguments = ("sample", "--model", folder, "--num", 2, "--steps", 32, "--out", tmp_path / "o")
    code, printed, _ = run(*arguments, *(p for t in asked for p in ("--target-log-density", t)))
    assert code == 0
    with np.load(tmp_path / "o" / "samples.npz") as arrays:
        found = dict(arrays)
    np.testing.assert_array_equal(found["target_met"], [[1, 1], [0, 0]])
    np.testing.assert_allclose(log_density(found["x"][0]), asked[0], atol=0.01 * SIZE)
    assert np.isnan(found["q"]).all()
    assert "100%" in printed
    assert run("sample", "--q", 0.5, "--target-log-density", 3.0)[0] == 1


@pytest.mark.slow
def test_noise_moves_samples_along_the_level_set(folder, tmp_path, run):
    def samples(steps, *options):
        out = tmp_path / "-".join(map(str, (steps, *options)))
        arguments = ("--num", 2, "--q", 0.6, "--solver", "rk4", "--steps", steps, "--out", out)
        assert run("sample", "--model", folder, *arguments, *options)[0] == 0
        with np.load(out / "samples.npz") as arrays:
            return arrays["x"][0], arrays["log_density"][0]

    x, _ = samples(24)
    _, value = samples(96)
    y, tracked = samples(24, "--noise", 0.5)
    z, finer = samples(96, "--noise", 0.5)
    same, _ = samples(24, "--noise", 0.5, "--noise-window", 90, 100)
    assert min(np.abs(y - x).max(), np.abs(z - x).max(), np.abs(z - y).max()) > 0.3
    # On a Gaussian the log-density's rate depends on time alone, so noise leaves it as it was.
    np.testing.assert_allclose(tracked, value, atol=0.1)
    np.testing.assert_allclose(finer, value, atol=0.02)
    coarse, fine = (np.abs(log_density(a) - b).max() for a, b in ((y, tracked), (z, finer)))
    assert fine < 0.2
    assert 5 * fine < coarse  # of order 2
    np.testing.assert_allclose(same, x, atol=1e-6)


def test_edit_returns_the_picture_at_one_half(folder, image, tmp_path, run):
    out = tmp_path / "out"
    code, *_ = run("edit", image, "--model", folder, "--q", 0.3, "--q", 0.5, "--out", out)
    assert code == 0
    with np.load(out / "edit.npz") as arrays:
        found = dict(arrays)
    shown = np.asarray(Image.open(image))[..., None] / 127.5 - 1
    # What is encoded is the picture with the noise of t_min on it.
    assert 0.01 < np.std(found["original"] - shown) < 0.03
    np.testing.assert_allclose(found["x"][1], found["original"], atol=1e-3)
    np.testing.assert_allclose(found["log_density"], log_density(found["x"]), atol=0.05)
    expected = log_density(found["original"])
    np.testing.assert_allclose(found["original_log_density"], expected, atol=0.02)
    assert found["log_density"][0] < found["log_density"][1]


@pytest.mark.slow
def test_likelihood_of_a_picture_and_of_arrays(folder, image, tmp_path, run):
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    files = (image, tmp_path / "x.npz")
    code, printed, _ = run("likelihood", *files, "--model", folder, "--steps", 64, "--json")
    assert code == 0
    rows = json.loads(printed)["rows"]
    assert [row["file"] for row in rows] == ["ramp.png", "x.npz[0]", "x.npz[1]"]
    assert [row["data"] for row in rows] == ["dequantized", "as given", "as given"]
    values = [row["log_density"] for row in rows]
    np.testing.assert_allclose(values[1:], log_density(x), atol=0.02)
    shown = np.asarray(Image.open(image))[..., None] / 127.5 - 1
    # Noise of one level changes the sum of squares by a hundredth.
    assert values[0] == pytest.approx(log_density(shown), abs=0.3)
    for row in rows:
        # There is no probe noise here; with fewer steps the bend of the curve counts as scatter.
        assert row["log_density_standard_error"] < 0.01
        bits = -(row["log_density"] + SIZE * np.log(1 / 127.5)) / (SIZE * np.log(2))
        assert row["bits_per_dim"] == pytest.approx(bits, rel=1e-4)


@pytest.mark.slow
def test_align_of_a_gaussian_is_perfect(folder, run):
    code, printed, _ = run("align", "--model", folder, "--num", 5, "--batch", 2, "--json")
    assert code == 0
    found = json.loads(printed)
    assert (found["latents"], found["share"], found["agreement"]) == (5, 1.0, 1.0)
    assert found["low"] == pytest.approx(5 / (5 + stats.norm.ppf(0.975) ** 2))  # Wilson's
    assert found["mean_angle"] < 0.1  # degrees


def test_train_resumes_and_its_model_can_be_sampled(tmp_path, run):
    x = np.random.default_rng(0).integers(0, 256, (40, *SHAPE)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    config = tmp_path / "tiny.toml"
    config.write_text(f"""
steps = 6
batch = 4
[model]
shape = [8, 8, 1]
t_min = 0.02
t_max = 80.0
network = {{ kind = "mlp", width = 8, depth = 1 }}
path = {{ kind = "edm" }}
parametrization = {{ kind = "preconditioned", sigma_data = 0.6 }}
[data]
dataset = "npz"
sigma_data = 0.6
path = "{tmp_path / "x.npz"}"
[records]
save_every = 2
log_every = 1
validate_every = 0
""")
    runs = tmp_path / "run"
    code, _, said = run("train", config, "--out", runs)
    assert code == 0
    assert "finished at step 6" in " ".join(said.split())
    before = (runs / "metrics.jsonl").read_text()
    code, _, said = run("sample", "--model", runs, "--num", 1)
    assert code == 1
    assert f"it is the folder of a training run: take its model, {runs / 'model'}" in said
    assert len(before.splitlines()) == 6
    (tmp_path / "x.npz").rename(tmp_path / "away.npz")  # a finished run only exports
    code, _, said = run("train", config, "--out", runs, "--ema-width", 0.07)
    assert code == 0
    assert "finished at step 6" in " ".join(said.split())
    assert (runs / "model-0.07" / "config.json").exists()
    assert (runs / "metrics.jsonl").read_text() == before
    arguments = ("--num", 1, "--q", 0.5, "--steps", 2, "--solver", "heun")
    model = ("--model", runs / "model")
    assert run("sample", *model, *arguments, "--out", tmp_path / "out")[0] == 0
    config.write_text(config.read_text().replace("width = 8", "width = 9"))
    code, _, said = run("train", config, "--out", runs)
    assert code == 1
    assert "model.network.width was 8 and is 9" in " ".join(said.split())


@pytest.mark.slow
def test_likelihood_finds_its_steps(folder, tmp_path, run):
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    options = ("--model", folder, "--steps", "auto", "--tolerance", 40)
    code, printed, said = run("likelihood", tmp_path / "x.npz", *options, "--json")
    assert code == 0
    summary = json.loads(printed)
    assert f"{summary['steps']} steps: error from the solver" in said
    errors = [row["log_density_solver_error"] for row in summary["rows"]]
    assert 0 < max(errors) <= 40
    assert f"{max(errors):.2g} nats" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "tolerance", "least"),
    [(("--q", 0.6), 10, 8), (("--q", 0.6), 0.5, 16), (("--target-log-density", 0.0), 10, 8)],
)
def test_sample_finds_its_steps(by, tolerance, least, folder, tmp_path, run):
    options = ("--model", folder, "--num", 1, "--steps", "auto", "--tolerance", tolerance)
    code, printed, said = run("sample", *options, *by, "--json", "--out", tmp_path / "out")
    assert code == 0
    summary = json.loads(printed)
    assert summary["steps"] >= least
    assert f"{summary['steps']} steps: error from the solver" in said
    assert 0 < summary["rows"][0]["log_density_solver_error"] <= tolerance


@pytest.mark.slow
def test_edit_finds_its_steps(folder, image, tmp_path, run):
    options = ("--model", folder, "--steps", "auto", "--tolerance", 2, "--q", 0.6, "--json")
    code, printed, said = run("edit", image, *options, "--out", tmp_path / "out")
    assert code == 0
    summary = json.loads(printed)
    assert f"{summary['steps']} steps: error from the solver" in said
    for row in (summary, *summary["rows"]):
        assert 0 < row["log_density_solver_error"] <= 2


CASES = 25


def cases(folder, where):
    """What is wrong, the arguments, and what the one line says."""
    empty, text, large = where / "empty.png", where / "text.png", where / "large.png"
    empty.write_bytes(b"")
    text.write_text("no picture")
    picture(large, np.zeros((9, 9)))
    np.savez(where / "y.npz", y=np.zeros(3))
    np.savez(where / "shape.npz", x=np.zeros((2, 7)))
    np.savez(where / "none.npz", x=np.zeros((0, *SHAPE)))
    np.savez(where / "nan.npz", x=np.full((1, *SHAPE), np.nan))
    (where / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    (where / "file").write_text("in the way")
    (where / "foreign").mkdir()
    (where / "bad.toml").write_text("steps = ")
    m = ("--model", folder)
    o = ("--out", where / "out")
    return [
        (("sample", "--model", "fashion-mnits", *o), "did you mean 'fashion-mnist'"),
        (("sample", "--model", where / "nowhere", *o), "no such folder"),
        (("sample", "--model", where / "foreign", *o), "no config.json"),
        (("sample", *m, "--q", 1.0, *o), "strictly between 0 and 1"),
        (("sample", *m, "--q", "nan", *o), "strictly between 0 and 1"),
        (("sample", *m, "--prior-quantile", 0, *o), "strictly between 0 and 1"),
        (("sample", *m, "--target-log-density", "nan", *o), "finite"),
        (("sample", *m, "--solver", "rk5", *o), "did you mean"),
        (("sample", *m, "--noise", 1, "--noise-window", 3, 1, *o), "window"),
        (("sample", *m, "--out", where / "file"), "cannot write to"),
        (("edit", where / "missing.png", *m, *o), "there is no file"),
        (("edit", empty, *m, *o), "not an image"),
        (("edit", text, *m, *o), "not an image"),
        (("likelihood", large, *m), "9x9"),
        (("likelihood", where / "y.npz", *m), "no array x"),
        (("likelihood", where / "shape.npz", *m), "has shape (2, 7)"),
        (("likelihood", where / "none.npz", *m), "no samples"),
        (("likelihood", where / "nan.npz", *m), "finite"),
        (("likelihood", where / "broken.npz", *m), "cannot be read as npz"),
        (("sample", *m, "--tolerance", 1, *o), "--tolerance needs --steps auto"),
        (("edit", large, *m, "--steps", "auto", "--tolerance", 0, *o), "positive number of nats"),
        (("likelihood", large, *m, "--steps", 8, "--tolerance", 1), "--tolerance needs"),
        (("align", *m, "--confidence", 1), "strictly between 0 and 1"),
        (("train", "digit"), "cannot read the config"),
        (("train", where / "bad.toml"), "is not TOML"),
    ]


@pytest.mark.parametrize("i", range(CASES))
def test_trouble_is_one_clear_line_and_nothing_is_written(i, folder, tmp_path, run):
    listed = cases(folder, tmp_path)
    assert len(listed) == CASES
    arguments, message = listed[i]
    before = sorted(tmp_path.rglob("*"))
    code, printed, said = run(*arguments)
    assert code == 1
    assert printed == ""
    assert len(said.splitlines()) == 1
    assert said.startswith("dgjax: ")
    assert message in said
    left = [p for p in sorted(tmp_path.rglob("*")) if p not in before]
    assert [p for p in left if p.is_file()] == []


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_of_equal_keys_are_refused(run, seed):
    status, _, err = run("sample", "--seed", seed)
    assert status == 2
    assert "--seed" in err


def test_misspelt_options_exit_with_2(run):
    assert run("sample", "--qq", 0.5)[0] == 2
    assert run("sample", "--num", 0)[0] == 2
    for steps in ("0", "-3", "2.5", "many"):
        code, _, said = run("sample", "--steps", steps)
        assert code == 2
        assert "neither auto nor a whole number" in " ".join(said.replace("│", "").split())


@pytest.mark.parametrize(
    ("given", "meant"),
    [("--target", "--target-log-density"), ("--prior", "--prior-quantile"), ("-q", "--q")],
)
def test_longer_options_are_suggested(run, given, meant):
    status, _, err = run("sample", given, "0.2")
    assert status == 2
    assert f"No such option: {given} (Possible options: {meant})" in err


def test_probes_fit_the_solver_and_the_size():
    assert default_divergence(5, Multistep(), 2) == Coloured(2)  # no more colours than elements
    assert default_divergence(5, Multistep(), 784) == Coloured(5)
    assert default_divergence(5, RK4(), 2) == Hutchinson(5)  # whose standard error is their spread


def test_likelihood_of_many_samples_by_fitted_weights(folder, tmp_path, run):
    # Weights are exact for a Gaussian; scales vary so that log-densities do.
    noise = np.random.default_rng(0)
    x = noise.normal(size=(40, *SHAPE)) * noise.uniform(0.5, 1.5, (40, 1, 1, 1))
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32))
    few = ("--model", folder, "--steps", 64, "--fitted", 2, "--fit-samples", 24)
    code, printed, said = run("likelihood", tmp_path / "x.npz", *few, "--json")
    assert code == 0
    summary = json.loads(printed)
    rows = summary["rows"]
    assert [row["file"] for row in rows] == [f"x.npz[{i}]" for i in range(40)]
    values = [row["log_density"] for row in rows]
    np.testing.assert_allclose(values, log_density(x), atol=0.05)
    by_weights = [row for row in rows if row["leverage"] is not None]
    assert len(by_weights) == 40 - 24
    assert all(row["log_density_solver_error"] is None for row in by_weights)
    assert all(row["log_density_standard_error"] < 0.05 for row in by_weights)
    assert summary["fitted"] == 2
    assert "fitting weights of 2 evaluations to 24 samples" in said
    x[2] *= 10  # not among the 24
    x[0] *= 1e25  # among them: its log-density overflows
    x[4] *= 1e25
    np.savez(tmp_path / "x.npz", x=x.astype(np.float32))
    code, _, said = run("likelihood", tmp_path / "x.npz", *few)
    assert code == 0
    assert "fitting weights of 2 evaluations to 23 samples" in said
    assert "2 of 16 samples are unlike those of the fit" in " ".join(said.split())
    np.savez(tmp_path / "x.npz", x=np.zeros((40, *SHAPE), np.float32))
    assert run("likelihood", tmp_path / "x.npz", *few)[0] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fit-samples", 20), "--fit-samples needs --fitted"),
        (("--fitted", 4, "--fit-samples", 20), "take at least 28, better 84"),
        (("--fitted", 4), "measures 192 samples by --steps first, and there are 30 in all"),
        (("--fitted", 2, "--fit-samples", 30), "(16 at least)"),
        (("--fitted", 6, "--fit-samples", 40), "there are 30 in all: leave --fitted out"),
    ],
)
def test_likelihood_by_fitted_weights_needs_samples(options, said, folder, tmp_path, run):
    np.savez(tmp_path / "x.npz", x=np.zeros((30, *SHAPE), np.float32))
    code, _, message = run("likelihood", tmp_path / "x.npz", "--model", folder, *options)
    assert code == 1
    assert said in " ".join(message.split())
