"""Samples for other programs, single samples of many, and samples in folders and npy files."""

import json

import numpy as np
import pytest
from PIL import Image

from dgjax.checkpoints.opened import open_model
from dgjax.data import DataConfig, load_data, load_folder
from dgjax.evaluation.batched import SolverSettings, denoise_samples
from dgjax.evaluation.reference_data import load_samples
from dgjax.pictures.exported import export_levels
from dgjax.pictures.image_files import convert_colours
from dgjax.sampling.solvers import SOLVERS

SPREAD = 0.3


@pytest.fixture(scope="module")
def pixels(tmp_path_factory, small_model):
    return small_model(tmp_path_factory.mktemp("m") / "pixels", (4, 4, 1), spread=SPREAD)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory, small_model):
    return small_model(tmp_path_factory.mktemp("m") / "sequences", (6, 1), spread=SPREAD)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory, small_model):
    return small_model(tmp_path_factory.mktemp("m") / "volumes", (2, 4, 4, 1), spread=SPREAD)


def test_exported_samples_are_the_levels_as_array_and_as_files(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 1), np.uint8)
    export_levels(tmp_path / "a.npz", levels)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays.files == ["arr_0"]
        np.testing.assert_array_equal(arrays["arr_0"], np.repeat(levels, 3, -1))
    export_levels(tmp_path / "b", levels)
    files = sorted((tmp_path / "b").iterdir())
    assert [f.name for f in files] == ["00000.png", "00001.png", "00002.png"]
    for file, expected in zip(files, levels, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), expected[..., 0])
    with pytest.raises(ValueError, match="not empty"):
        export_levels(tmp_path / "b", levels)


@pytest.mark.slow
def test_evaluate_exports_what_it_compares(pixels, tmp_path, run):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.integers(0, 256, (20, 4, 4, 1), np.uint8))
    common = ("--model", pixels, "--data", tmp_path / "data.npz", "--part", "train", "--num", 6)
    common += ("--only", "png", "--steps", 4, "--num-density", 3, "--out", tmp_path / "out")
    assert run("evaluate", *common, "--export", tmp_path / "png")[0] == 0
    assert run("evaluate", *common, "--export", tmp_path / "a.npz", "--export-denoised")[0] == 0
    noisy = load_samples([tmp_path / "png"], open_model(str(pixels)), None, 0)
    with np.load(tmp_path / "a.npz") as arrays:
        denoised = arrays["arr_0"][..., :1]
    assert noisy.shape == denoised.shape == (6, 4, 4, 1)
    # The denoiser of N(0, s^2) shrinks by s^2/(s^2 + t_min^2): at most a level.
    difference = np.abs(noisy.astype(int) - denoised)
    assert difference.max() <= 1
    code, _, said = run("evaluate", *common, "--export-denoised")
    assert code == 1
    assert "--export-denoised needs --export" in said


def test_denoised_samples_are_those_of_the_gaussian(pixels):
    chosen = open_model(str(pixels))
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    settings = SolverSettings(4, SOLVERS["heun"](), 1, 2, 0)
    t = chosen.facts()["t_min"]
    expected = x * SPREAD**2 / (SPREAD**2 + t**2)
    np.testing.assert_allclose(denoise_samples(chosen, x, None, settings), expected, rtol=1e-5)


@pytest.mark.slow
def test_one_sample_of_many_is_drawn_alone(pixels, tmp_path, run):
    common = ("--model", pixels, "--steps", 4, "--q", 0.4, "--seed", 3)
    assert run("sample", *common, "--num", 5, "--out", tmp_path / "all")[0] == 0
    assert run("sample", *common, "--num", 2, "--start", 3, "--out", tmp_path / "two")[0] == 0
    with np.load(tmp_path / "all/samples.npz") as whole, np.load(tmp_path / "two/samples.npz") as p:
        np.testing.assert_allclose(p["x"], whole["x"][:, 3:], atol=1e-5)
        np.testing.assert_allclose(p["log_density"], whole["log_density"][:, 3:], atol=1e-3)
    assert json.loads((tmp_path / "two/summary.json").read_text())["start"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequences", "volumes"])
def test_sequences_and_volumes_are_drawn_and_measured(kind, tmp_path, run, request):
    folder = request.getfixturevalue(kind)
    common = ("--model", folder, "--steps", 4)
    code, _, said = run("sample", *common, "--num", 2, "--q", 0.4, "--out", tmp_path / "out")
    assert code == 0
    assert "samples.png" in said
    with Image.open(tmp_path / "out/samples.png") as figure:
        assert min(figure.size) > 50
    with np.load(tmp_path / "out/samples.npz") as arrays:
        x = arrays["x"][0]
    np.save(tmp_path / "out/x.npy", x)
    np.savez(tmp_path / "out/y.npz", arr_0=x)
    (tmp_path / "out/samples.npz").unlink()
    (tmp_path / "out/samples.png").unlink()
    code, printed, _ = run("likelihood", tmp_path / "out", *common, "--json")
    assert code == 0
    rows = json.loads(printed)["rows"]
    assert [row["file"] for row in rows] == ["x.npy[0]", "x.npy[1]", "y.npz[0]", "y.npz[1]"]
    assert rows[0]["log_density"] == pytest.approx(rows[2]["log_density"], abs=60)  # other probes
    assert "bits_per_dim" not in rows[0]


def test_evaluate_leaves_bits_of_floats_out(sequences, tmp_path, run):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(20, 6, 1)).astype("f4"))
    common = ("--model", sequences, "--data", tmp_path / "x.npz", "--part", "train", "--num", 6)
    common += ("--only", "bits", "--only", "precision-recall", "--steps", 4, "--num-density", 3)
    code, printed, said = run("evaluate", *common, "--out", tmp_path / "out", "--json")
    assert code == 0
    assert set(json.loads(printed)["figures"]) == {"precision", "recall"}
    assert "no bits per dimension, since these data are floats" in said
    code, _, said = run("evaluate", *common, "--out", tmp_path / "out", "--export", tmp_path / "e")
    assert code == 1
    assert "are no images: leave --export out" in said


def test_a_folder_without_samples_is_named(pixels, tmp_path, run):
    (tmp_path / "empty").mkdir()
    code, _, said = run("likelihood", tmp_path / "empty", "--model", pixels)
    assert code == 1
    assert "there are no samples in the folder" in said


def test_the_range_of_twelve_bits_gives_all_levels(pixels, tmp_path):
    deep = np.linspace(0, 4095, 16).round().reshape(4, 4).astype(np.uint16)
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.fromarray(deep).save(tmp_path / f"photos/{name}.png")
    expected = np.round(deep / 4095 * 255).astype(np.uint8)[..., None]
    data = load_folder(tmp_path / "photos", (4, 4, 1), levels=(0, 4095))
    np.testing.assert_array_equal(data.values[0], expected)
    assert data.notes == ()
    source = DataConfig("folder", 1.0, path=str(tmp_path / "photos"), levels=(0, 4095))
    np.testing.assert_array_equal(load_data(source, (4, 4, 1)).values[0], expected)
    clipped = convert_colours(Image.fromarray(deep), (4, 4, 1), (1000, 2000))
    np.testing.assert_array_equal(
        np.asarray(clipped), np.round(np.clip((deep - 1000.0) / 1000, 0, 1) * 255)
    )
    chosen = open_model(str(pixels))
    read = load_samples([tmp_path / "photos"], chosen, None, 0, (0, 4095))
    np.testing.assert_array_equal(read[0], expected)
    for bad in ((4095, 0), (0, 70000), (-1, 5)):
        with pytest.raises(ValueError, match="levels of black and white"):
            DataConfig("folder", 1.0, path="photos", levels=bad)
    with pytest.raises(ValueError, match="levels is for folders"):
        DataConfig("digits", 1.0, levels=(0, 4095))


@pytest.mark.slow
def test_likelihood_takes_the_range_of_twelve_bits(pixels, tmp_path, run):
    (tmp_path / "photos").mkdir()
    deep = np.linspace(0, 4095, 16).round().reshape(4, 4).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "photos/a.png")
    common = ("likelihood", tmp_path / "photos", "--model", pixels, "--steps", 4, "--json")
    code, printed, said = run(*common)
    assert code == 0
    assert "become 16 of 256 levels" in said
    code, other, said = run(*common, "--data-range", 0, 4095)
    assert code == 0
    assert "levels" not in said
    values = [json.loads(text)["rows"][0]["log_density"] for text in (printed, other)]
    assert abs(values[0] - values[1]) > 1
