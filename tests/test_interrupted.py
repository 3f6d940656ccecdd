"""A run that is killed, runs out of room or meets a damaged checkpoint loses nothing it saved."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dgjax.checkpoint import read_arrays
from dgjax.training import fit, load_config

ROOT = Path(__file__).parents[1]
CONFIG = """
steps = 60
batch = 8
ema_snapshots = 6
label_dropout = 0.2
[model]
shape = [4, 4, 1]
network = { kind = "mlp", width = 96, depth = 2, num_classes = 3 }
path = { kind = "edm" }
parametrization = { kind = "preconditioned", sigma_data = 1.0 }
t_min = 0.02
t_max = 80.0
[adaptive]
bins = 4
patience = 1
[data]
dataset = "npz"
sigma_data = 1.0
flip = true
path = "PATH"
[records]
save_every = 5
log_every = 1
watch_every = 0
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    rng = np.random.default_rng(0)
    np.savez(folder / "x.npz", x=rng.normal(size=(50, 4, 4, 1)), labels=np.arange(50) % 3)
    (folder / "tiny.toml").write_text(CONFIG.replace("PATH", str(folder / "x.npz")))
    return folder / "tiny.toml"


def start(config, run):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", "from dgjax.cli import main; main()", "train", config, "--out", run],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert "finished at step 60" in " ".join(said.split())


def step_of(run):
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_run_killed_at_random_moments_ends_with_the_very_same_weights(config, tmp_path):
    finish(start(config, tmp_path / "whole"))
    chance = random.Random(0)
    run = tmp_path / "killed"
    for reached in (12, 34):  # and then some, into writing, training or tidying
        process = start(config, run)
        while step_of(run) < reached:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert reached <= step_of(run) < 60
        saved = [f for f in (run / "checkpoints").iterdir() if f.name.isdigit()]
        assert saved, "nothing was saved before the kill"
    finish(start(config, run))

    last = "checkpoints/60/default"
    expected = read_arrays(tmp_path / "whole" / last)
    found = read_arrays(run / last)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    lines = [
        [json.loads(line) | {"time": 0} for line in (folder / "metrics.jsonl").open()]
        for folder in (tmp_path / "whole", run)
    ]
    assert lines[0] == lines[1]
    # Nothing half-written is left: whole checkpoints, whole snapshots, and the model.
    left = sorted(f.name for f in (run / "checkpoints").iterdir())
    assert left == ["55", "60"]
    assert sorted(f.name for f in (run / "averages").iterdir()) == sorted(
        f"{step}.npz" for step in range(10, 61, 10)
    )


def test_no_room_is_one_clear_line_and_what_was_saved_stays(config, tmp_path):
    resource = pytest.importorskip("resource")
    run = tmp_path / "run"
    before = fit(load_config(config), run, progress=False)
    kept = read_arrays(run / "checkpoints/60/default")
    (run / "checkpoints/60").rename(tmp_path / "aside")  # so that five steps are left to do
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no larger file can be written
    try:
        with pytest.raises(ValueError, match=r"cannot write .*(make room|averages)"):
            fit(load_config(config), run, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [f.name for f in (run / "checkpoints").iterdir() if f.name.isdigit()] == ["55"]
    resumed = fit(load_config(config), run, progress=False)
    assert resumed.finished
    assert before.finished
    for name, value in read_arrays(run / "checkpoints/60/default").items():
        np.testing.assert_array_equal(value, kept[name], err_msg=name)


def test_a_truncated_checkpoint_is_named_with_its_mend(config, tmp_path):
    fit(load_config(config), tmp_path, progress=False)
    folder = tmp_path / "checkpoints/60"
    data = [f for f in folder.rglob("*") if f.is_file() and f.parent.name == "d"]
    assert data
    for file in data:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"damaged.*delete {folder} to go on from step 55"):
        fit(load_config(config), tmp_path, progress=False)
