"""`dgjax sample --class --guidance` draws what the library draws with that condition and guide."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgjax.checkpoint import load
from dgjax.closed_loop import target_guidance
from dgjax.contrast import classifier_free_guidance
from dgjax.divergence import Hutchinson
from dgjax.fields import repath
from dgjax.grids import grid_logsnr
from dgjax.guidance import density_guidance
from dgjax.paths import edm
from dgjax.prior import prior_sample
from dgjax.sampling import sample
from dgjax.solvers import RK4
from dgjax.targets import pilot

SHAPE, SEED, NUM, STEPS = (4, 4, 1), 5, 2, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_model):
    place = tmp_path_factory.mktemp("model") / "labelled"
    return small_model(place, SHAPE, spread=0.7, weights=0.2, width=16, depth=2, num_classes=3)


@pytest.mark.slow
@pytest.mark.parametrize(("by", "weight"), [("q", 1.0), ("q", 2.5), ("target", 2.5)])
def test_the_class_conditions_and_the_weight_strengthens(by, weight, folder, tmp_path, run):
    options = ["--model", folder, "--seed", SEED, "--num", NUM, "--steps", STEPS]
    options += ["--solver", "rk4", "--probes", 1, "--out", tmp_path, "--class", 2]
    options += ["--q", 0.4] if by == "q" else ["--target-log-density", 10.0]
    options += [] if weight == 1 else ["--guidance", weight]
    assert run("sample", *options)[0] == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["class"], summary["guidance"]) == (2, weight)

    model = repath(load(folder)[0], edm(7.0))
    grid, keys = grid_logsnr(model, STEPS), jax.random.split(jax.random.key(SEED), 3)
    drawn = jax.vmap(lambda k: prior_sample(model, k, SHAPE))(jax.random.split(keys[0], 4))
    latents = drawn[:NUM]

    @jax.jit
    def expected(label, weight):
        solve = {"divergence": Hutchinson(1), "cond": label, "solver": RK4()}
        if by == "q":
            last = density_guidance(jnp.float32(0.4))
        else:
            last = target_guidance(10.0, model, pilot(model, drawn, grid, key=keys[2], **solve))
        guides = (classifier_free_guidance(weight, model), last)
        one = lambda x, k: sample(model, x, grid, key=k, guides=guides, **solve)
        return jax.vmap(one)(latents, jax.random.split(keys[1], NUM))

    right = expected(2, weight)
    with np.load(tmp_path / "samples.npz") as found:
        np.testing.assert_allclose(found["x"][0], right.x, atol=1e-3)
        np.testing.assert_allclose(found["log_density"][0], right.log_density, atol=0.05)
    for other in (expected(1, weight), expected(2, weight + 1)):
        assert np.abs(right.x - other.x).max() > 0.02


def test_trouble_with_classes_is_one_clear_line(folder, tmp_path, run, small_model):
    unlabelled = small_model(tmp_path / "unlabelled", SHAPE, spread=0.7)
    for arguments, message in [
        (["--model", folder, "--class", 3], "class 3 is out of range: .* takes 0 to 2"),
        (["--model", folder, "--class", -1], "class -1 is out of range"),
        (["--model", unlabelled, "--class", 0], "takes no class labels: leave --class out"),
        (["--model", folder, "--guidance", 2], "add --class, or leave it out"),
        (["--model", folder, "--class", 0, "--guidance", "nan"], "weight must be finite"),
    ]:
        status, _, complaint = run("sample", *arguments, "--out", tmp_path / "out")
        assert status == 1
        assert len(complaint.splitlines()) == 1
        assert re.search(message, complaint)
        assert not (tmp_path / "out").exists()
