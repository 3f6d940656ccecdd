"""`dgjax distil` stores a head with the model, and commands that track log-density take it."""

import json

import numpy as np

from dgjax.checkpoints import load
from dgjax.training.lessons import PART


def test_a_head_is_trained_stored_and_used(tmp_path, run, small_model):
    source = small_model(tmp_path / "source", (2, 2, 1), spread=0.7, weights=0.3)
    folder = tmp_path / "distilled"
    words = ("distil", source, "--out", folder, "--points", PART, "--width", 8)
    status, _, said = run(*words, "--steps", 20)
    assert status == 0, said
    assert "stated error of a log-density" in said
    assert f"{folder / 'lessons'} (" in said
    files = sorted((folder / "lessons").iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    assert run(*words, "--steps", 40)[0] == 0
    assert [file.stat().st_mtime_ns for file in files] == stamps  # measured once
    head = load(folder)[0].trace_head
    assert np.all(np.asarray(head.errors[...]) < 4)  # 4 elements: not measured

    sampling = ("--num", 2, "--steps", 6, "--q", 0.5, "--json", "--out", tmp_path / "out")
    status, out, said = run("sample", "--model", folder, "--divergence", "distilled", *sampling)
    assert status == 0, said
    assert json.loads(out)["divergence"] == "distilled"
    samples = np.load(tmp_path / "out" / "samples.npz")
    assert np.isfinite(samples["log_density"]).all()
    np.savez(tmp_path / "x.npz", x=np.zeros((20, 2, 2, 1), np.float32))
    few = ("--divergence", "distilled", "--fitted", 2, "--fit-samples", 16)
    status, _, said = run("likelihood", tmp_path / "x.npz", "--model", folder, *few)
    assert status == 1
    assert "would not know the error of the head" in " ".join(said.split())
    # All samples of a model have one stated error: it depends on the noise levels alone.
    errors = samples["standard_error"]
    assert np.allclose(errors, errors.flat[0], rtol=1e-3)
    assert errors.flat[0] > 0

    status, _, said = run("distil", source, "--out", folder, "--seed", 1)
    assert status == 1
    assert "of other settings" in said


def test_a_model_without_a_head_is_refused(tmp_path, run, small_model):
    source = small_model(tmp_path / "source", (2, 2, 1), spread=0.7, weights=0.3)
    status, _, said = run("sample", "--model", source, "--divergence", "distilled", "--num", 1)
    assert status == 1
    assert "dgjax distil" in said
    status, _, said = run("sample", "--model", source, "--divergence", "probe", "--num", 1)
    assert status == 1
    assert "did you mean 'probes'" in said


def test_the_original_stays(tmp_path, run, small_model):
    source = small_model(tmp_path / "source", (2, 2, 1), spread=0.7)
    (tmp_path / "link").symlink_to(source)
    status, _, said = run("distil", source, "--out", tmp_path / "link")
    assert status == 1
    assert "is the model itself" in " ".join(said.split())
    assert not (source / "lessons").exists()
