"""With `--class`, and `--guidance`, commands do what the library does with condition and guide."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dgjax.checkpoints.checkpoint import load
from dgjax.checkpoints.opened import open_model
from dgjax.evaluation.alignment import alignment_statistics
from dgjax.evaluation.batched import SolverSettings, measure_alignments
from dgjax.guidance.classifier_free import autoguidance, classifier_free_guidance
from dgjax.guidance.density import density_guidance
from dgjax.guidance.target import target_guidance
from dgjax.model.divergence import Hutchinson
from dgjax.model.paths import edm
from dgjax.model.prior import prior_sample
from dgjax.model.repath import repath
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.sample import sample
from dgjax.sampling.shooting import pilot
from dgjax.sampling.solvers import RK4
from dgjax.sampling.time_grids import grid_logsnr

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


@pytest.mark.slow
def test_a_weaker_model_guides(folder, tmp_path, run, small_model):
    weak = small_model(tmp_path / "weak", SHAPE, spread=0.7, weights=0.3, num_classes=3)
    options = ["--model", folder, "--seed", SEED, "--num", NUM, "--class", 2, "--q", 0.4]
    options += ["--solver", "rk4", "--probes", 1, "--out", tmp_path / "out"]
    options += ["--guidance-model", weak, "--guidance", 2.5, "--steps", STEPS]
    assert run("sample", *options)[0] == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["guidance"], summary["guidance_model"]) == (2.5, str(weak))

    model, other = (repath(load(place)[0], edm(7.0)) for place in (folder, weak))
    grid, keys = grid_logsnr(model, STEPS), jax.random.split(jax.random.key(SEED), 3)
    guide = autoguidance(2.5, other, cond=2)
    solve = {"divergence": Hutchinson(1), "cond": 2, "solver": RK4()}

    @jax.jit
    def expected(model, guide):
        def one(x, key):
            guides = (guide, density_guidance(jnp.float32(0.4)))
            return sample(model, x, grid, key=key, guides=guides, **solve)

        latents = jax.vmap(lambda k: prior_sample(model, k, SHAPE))(jax.random.split(keys[0], NUM))
        return jax.vmap(one)(latents, jax.random.split(keys[1], NUM))

    right = expected(model, guide)
    with np.load(tmp_path / "out" / "samples.npz") as found:
        np.testing.assert_allclose(found["x"][0], right.x, atol=1e-3)
        np.testing.assert_allclose(found["log_density"][0], right.log_density, atol=0.05)
    of_another_class = expected(model, autoguidance(2.5, other, cond=jnp.asarray(1)))
    assert np.abs(of_another_class.x - right.x).max() > 0.02


def test_trouble_with_classes_is_one_clear_line(folder, tmp_path, run, small_model):
    unlabelled = small_model(tmp_path / "unlabelled", SHAPE, spread=0.7)
    more = small_model(tmp_path / "more", SHAPE, spread=0.7, num_classes=4)
    wide = small_model(tmp_path / "wide", (4, 6, 1), spread=0.7)
    weaker = ["--model", folder, "--guidance", 2, "--guidance-model"]
    for arguments, message in [
        (["--model", folder, "--class", 3], "class 3 is out of range: .* takes 0 to 2"),
        (["--model", folder, "--class", -1], "class -1 is out of range"),
        (["--model", unlabelled, "--class", 0], "takes no class labels: ask for no class"),
        (["--model", folder, "--guidance", 2], "add --class or --guidance-model"),
        (["--model", folder, "--class", 0, "--guidance", "nan"], "weight must be finite"),
        ([*weaker, more], "differ in their number of classes .3 and 4.: choose"),
        ([*weaker, wide], "differ in their shape"),
        ([*weaker, unlabelled, "--guidance", "inf"], "weight must be finite"),
        ([*weaker, unlabelled, "--guidance", 1], "needs a weight other than 1"),
    ]:
        status, _, complaint = run("sample", *arguments, "--out", tmp_path / "out")
        assert status == 1
        assert len(complaint.splitlines()) == 1
        assert re.search(message, complaint)
        assert not (tmp_path / "out").exists()


def measured(folder, tmp_path, run, command, label, *extra):
    """What `command` says in JSON of class `label`, and what it prints without --json."""
    options = ["--model", folder, "--seed", SEED, "--steps", STEPS, "--solver", "rk4"]
    options += ["--probes", 2, "--class", label, *extra]
    status, printed, complaint = run(*command, *options, "--json")
    assert status == 0, complaint
    # Titles are broken over lines, as the table's width demands.
    return json.loads(printed), " ".join(run(*command, *options)[1].split())


@pytest.mark.slow
def test_likelihoods_are_those_of_the_class(folder, tmp_path, run):
    x = np.random.default_rng(0).normal(size=(NUM, *SHAPE)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    command = ("likelihood", tmp_path / "data.npz")
    model = repath(load(folder)[0], edm(7.0))
    grid, keys = grid_logsnr(model, STEPS), jax.random.split(jax.random.key(SEED), 2)
    solve = {"divergence": Hutchinson(2), "solver": RK4()}
    one = lambda x, i, label: likelihood(
        model, x, grid, key=jax.random.fold_in(keys[1], i), cond=label, **solve
    )
    expected = jax.jit(jax.vmap(one, (0, 0, None)))
    given = [expected(x, jnp.arange(NUM), label).log_density for label in (1, 2)]
    summary, shown = measured(folder, tmp_path, run, command, 2)
    found = [row["log_density"] for row in summary["rows"]]
    np.testing.assert_allclose(found, given[1], atol=0.05)
    assert np.abs(given[0] - given[1]).min() > 0.2  # the class tells
    assert summary["class"] == 2
    assert "log p(x | class 2) at t_min" in shown


@pytest.mark.slow
def test_an_edit_is_under_the_class(folder, tmp_path, run):
    levels = np.random.default_rng(0).integers(0, 256, SHAPE[:2]).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "image.png")
    command = ("edit", tmp_path / "image.png", "--out", tmp_path / "out", "--q", 0.5)
    summary, shown = measured(folder, tmp_path, run, command, 2)
    assert summary["class"] == 2
    assert "log p(x | class 2) at t_min" in shown
    model = repath(load(folder)[0], edm(7.0))
    solve = {"divergence": Hutchinson(2), "solver": RK4()}
    grid, keys = grid_logsnr(model, STEPS), jax.random.split(jax.random.key(SEED), 3)
    with np.load(tmp_path / "out" / "edit.npz") as found:
        x, latent, decoded = found["original"], found["latent"], found["x"][0]
    code = likelihood(model, x, grid, key=keys[1], cond=2, **solve)
    assert summary["log_density"] == pytest.approx(float(code.log_density), abs=0.05)
    np.testing.assert_allclose(latent, code.latent, rtol=1e-3, atol=1e-3)
    guides = (density_guidance(jnp.float32(0.5)),)
    again, other = (
        sample(model, latent, grid, key=keys[2], guides=guides, cond=c, **solve).x for c in (2, 1)
    )
    np.testing.assert_allclose(decoded, again, atol=1e-3)
    assert np.abs(again - other).max() > 0.02


@pytest.mark.slow
def test_alignment_is_of_the_class(folder, tmp_path, run):
    command = ("align", "--num", NUM)
    summary, shown = measured(folder, tmp_path, run, command, 2)
    assert summary["class"] == 2
    assert "score alignment of class 2 from" in shown
    chosen = open_model(str(folder))
    settings = SolverSettings(STEPS, RK4(), 2, NUM, SEED)
    right, other = (
        alignment_statistics(measure_alignments(chosen, NUM, np.full(NUM, label), settings))
        for label in (2, 1)
    )
    assert summary["mean_angle"] == pytest.approx(float(right.mean_angle), abs=0.01)
    assert abs(right.mean_angle - other.mean_angle) > 0.05
