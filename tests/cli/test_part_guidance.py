"""`dgjax sample --mask` and `--band` do what the library does with a part and `hold`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import dgjax
from dgjax.checkpoints.opened import open_model

SHAPE, SEED, STEPS = (8, 6, 1), 5, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_model):
    place = tmp_path_factory.mktemp("model") / "small"
    return small_model(place, SHAPE, spread=0.7, weights=0.2, width=16, depth=2)


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    file = tmp_path_factory.mktemp("mask") / "mask.png"
    Image.fromarray(np.tile(np.array([0, 0, 51, 255, 255, 255], np.uint8), (8, 1))).save(file)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("by", ["mask", "band"])
def test_the_part_is_guided_and_the_rest_is_held(by, folder, mask, tmp_path, run):
    options = ["--model", folder, "--seed", SEED, "--num", 1, "--steps", STEPS, "--q", 0.3]
    options += ["--q", 0.5, "--solver", "rk4", "--probes", 1, "--out", tmp_path]
    options += ["--mask", mask] if by == "mask" else ["--band", "high"]
    assert run("sample", *options)[0] == 0
    found = np.load(tmp_path / "samples.npz")
    assert json.loads((tmp_path / "summary.json").read_text())[by] in (str(mask), "high")

    model = open_model(str(folder)).field
    keys = jax.random.split(jax.random.key(SEED), 3)
    x = dgjax.prior_sample(model, jax.random.fold_in(keys[0], 0), SHAPE)
    part = dgjax.band(SHAPE, low=0.125)
    if by == "mask":
        part = dgjax.region(jnp.array([0, 0, 0.2, 1, 1, 1])[:, None])
    grid = dgjax.grid_logsnr(model, STEPS)
    solve = {"key": jax.random.fold_in(keys[1], 0), "solver": dgjax.RK4()}
    solve["divergence"] = dgjax.Hutchinson(1)
    free = dgjax.sample(model, x, grid, save=dgjax.Trajectory, **solve)
    held = dgjax.hold(part.rest(), model, free.trajectory.t, free.trajectory.x)
    guides = (held, dgjax.density_guidance(jnp.float32(0.3), part=part))
    expected = dgjax.sample(model, x, grid, guides=guides, **solve)
    np.testing.assert_allclose(found["x"][0, 0], expected.x, atol=1e-4)
    np.testing.assert_allclose(found["log_density"][0, 0], expected.log_density, rtol=1e-4)
    changed = np.abs(found["x"][0, 0] - found["x"][1, 0])
    if by == "mask":
        assert changed[:, :2].max() < 0.05 * changed[:, 3:].max()


def picture(size, level, file):
    Image.fromarray(np.full(size, level, np.uint8)).save(file)
    return file


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask", "black.png"], "is black"),
        (["--mask", "small.png"], "has 5 x 4 pixels (width x height) and pictures of this"),
        (["--band", "middle"], "Invalid value for '--band': 'middle' is not one of"),
        (["--mask", "none.png"], "there is no file"),
        (["--mask", "white.png", "--band", "low"], "either --mask or --band"),
        (["--band", "low", "--noise", "0.1"], "without --noise"),
        (["--band", "low", "--target-log-density", "1"], "without --target-log-density"),
    ],
)
def test_wrong_options_give_one_line(options, message, folder, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(SHAPE[:2], 0, tmp_path / "black.png")
    picture(SHAPE[:2], 255, tmp_path / "white.png")
    picture((4, 5), 255, tmp_path / "small.png")
    status, _, error = run("sample", "--model", folder, "--num", 1, *options)
    assert status != 0
    assert message in " ".join(error.split())
    assert not (tmp_path / "dgjax-out").exists()
