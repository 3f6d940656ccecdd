"""A run that is killed, runs out of room or meets a damaged checkpoint loses nothing it saved."""

import json
import random
import signal
import time
from contextlib import contextmanager

import numpy as np
import pytest
from orbax.checkpoint import CheckpointManager

from dgjax.checkpoints.orbax_folder import read_arrays
from dgjax.training import fit, load_config
from dgjax.training.checkpointing import open_checkpoints
from dgjax.training.recorder import open_recorder
from dgjax.training.run_folder import lock_run
from dgjax.training.sections import Records
from dgjax.training.step import TrainState

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
[importance_sampling]
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
validate_every = 0
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    rng = np.random.default_rng(0)
    np.savez(folder / "x.npz", x=rng.normal(size=(50, 4, 4, 1)), labels=np.arange(50) % 3)
    (folder / "tiny.toml").write_text(CONFIG.replace("PATH", str(folder / "x.npz")))
    return folder / "tiny.toml"


# Before its last step it waits, so that it cannot finish before it is killed.
HELD = """
import time
from dgjax.training.recorder import Recorder
scalars = Recorder.scalars
def held(self, step, values):
    scalars(self, step, values)
    while step == 59: time.sleep(1)
Recorder.scalars = held
"""


@pytest.fixture
def start(process):
    def call(config, run, prelude=""):
        program = f"{prelude}\nfrom dgjax.cli import main; main()"
        return process(["-c", program, "train", config, "--out", run])

    return call


def finish(process):
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert "finished at step 60" in " ".join(said.split())


def step_of(run):
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_another_process_on_the_same_run_is_refused(config, tmp_path, process):
    """Two of them waited for each other, and tangled their metrics."""
    run = tmp_path / "run"
    program = f"""
import time
from pathlib import Path
from dgjax.training.run_folder import lock_run
with lock_run(Path({str(run)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    other = process(["-c", program])
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=r"another process is training in .*run: wait"):
        fit(load_config(config), run)
    assert sorted(p.name for p in run.iterdir()) == [".lock"]
    other.kill()
    other.wait()
    with lock_run(run):
        pass


@contextmanager
def small_files(size=20_000):
    """No larger file can be written, as if the disk were full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_a_run_stopped_at_random_moments_ends_with_the_very_same_weights(config, tmp_path, start):
    finish(start(config, tmp_path / "whole"))
    chance = random.Random(0)
    run = tmp_path / "stopped"
    # and then some, into writing, training or tidying
    for reached, stop in ((8, signal.SIGTERM), (18, signal.SIGKILL), (34, signal.SIGKILL)):
        process = start(config, run, HELD)
        while step_of(run) < reached:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(stop)
        said = process.communicate(timeout=600)[1]
        if stop == signal.SIGTERM:  # not 0, so that `train && evaluate` stops
            assert process.returncode == 130, said
            assert "stopped; run the same command to go on at step" in " ".join(said.split())
        assert reached <= step_of(run) < 60
        saved = [f for f in (run / "checkpoints").iterdir() if f.name.isdigit()]
        assert saved, "nothing was saved before the kill"
    half = run / "checkpoints/7.orbax-checkpoint-tmp"  # as of a step that is not saved again
    half.mkdir()
    (half / "data").write_text("half")
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


def test_a_run_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with (
        pytest.raises(ValueError, match="run: it is there and is no folder"),
        lock_run(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.slow
def test_no_room_is_one_clear_line_and_what_was_saved_stays(config, tmp_path):
    run = tmp_path / "run"
    before = fit(load_config(config), run, progress=False)
    kept = read_arrays(run / "checkpoints/60/default")
    (run / "checkpoints/60").rename(tmp_path / "aside")  # so that five steps are left to do
    cannot = pytest.raises(ValueError, match=r"cannot write .*(make room|averages)")
    with small_files(), cannot:
        fit(load_config(config), run, progress=False)
    assert [f.name for f in (run / "checkpoints").iterdir() if f.name.isdigit()] == ["55"]
    resumed = fit(load_config(config), run, progress=False)
    assert resumed.finished
    assert before.finished
    for name, value in read_arrays(run / "checkpoints/60/default").items():
        np.testing.assert_array_equal(value, kept[name], err_msg=name)


@pytest.mark.slow
def test_a_truncated_checkpoint_is_named_with_its_fix(config, tmp_path):
    fit(load_config(config), tmp_path, progress=False)
    folder = tmp_path / "checkpoints/60"
    data = [f for f in folder.rglob("*") if f.is_file() and f.parent.name == "d"]
    assert data
    for file in data:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"damaged.*delete {folder} to resume from step 55"):
        fit(load_config(config), tmp_path, progress=False)


def test_the_error_that_ends_a_run_comes_through_and_what_is_open_is_closed(tmp_path, monkeypatch):
    closed, close = [], CheckpointManager.close
    monkeypatch.setattr(CheckpointManager, "close", lambda self: closed.append(close(self)))
    noise = np.random.default_rng(0).normal(size=10**5)  # which cannot be compressed
    state = TrainState(np.array(5), noise, (), ())

    def save_and(then):
        with small_files(), open_checkpoints(tmp_path, Records()) as save:
            save(state)  # in the background
            then()

    def fail():
        raise ValueError("the loss is nan")

    with pytest.raises(ValueError, match="the loss is nan") as caught:
        save_and(fail)
    assert "cannot write a checkpoint" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match=r"cannot write a checkpoint .*make room"):
        save_and(lambda: None)
    assert closed == [None, None]


def test_records_explain_their_own_errors_only(tmp_path):
    def recorded(write):
        with open_recorder(tmp_path, 0) as record:
            write(record)

    def scalars(record):
        for step in range(10):
            record.scalars(step, {"loss": 1.0})

    def picture(record):
        record.picture(1, np.zeros((1, 2, 2, 1)), (-1.0, 1.0))

    with pytest.raises(FileNotFoundError, match="elsewhere"):
        recorded(lambda record: (tmp_path / "elsewhere").read_text())
    cannot = rf"cannot write the records of {tmp_path} \(.*make room"
    with small_files(100), pytest.raises(ValueError, match=cannot):
        recorded(scalars)
    (tmp_path / "samples").write_text("in the way")
    with pytest.raises(ValueError, match=cannot):
        recorded(picture)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ValueError, match=cannot):
        recorded(lambda record: None)
