"""One step is the same step on one device and on eight, whole and in parts, and on two hosts."""

import json
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import devices

from dgjax.checkpoints.orbax_folder import read_arrays
from dgjax.checkpoints.spec import ModelSpec, build
from dgjax.devices.sharding import device_mesh
from dgjax.training import fit, load_config
from dgjax.training.checkpointing import restore_latest
from dgjax.training.components import state_shapes
from dgjax.training.data_parallel import contiguous, host_rows
from dgjax.training.objective import Batch
from dgjax.training.validation import held_out_losses

PROGRAMS = Path(__file__).parents[1] / "programs"
ROOT = Path(__file__).parents[2]


def environment(**changes):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **changes}


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, PROGRAMS / "eight_devices.py"],
        env=environment(**devices(8)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replicated", "sharded", "in_parts"])
def test_eight_devices_take_the_steps_that_one_takes(found, how):
    np.testing.assert_allclose(found[how]["losses"], found["one"]["losses"], rtol=1e-5)
    # Weights move by 2e-3. Adam divides by the root of tiny moments, which multiplies rounding.
    for one, other in zip(found["one"]["state"], found[how]["state"], strict=True):
        np.testing.assert_allclose(other, one, atol=2e-4)


@pytest.mark.slow
def test_replicated_weights_are_never_gathered(found):
    counts = found["replicated"]["collectives"]
    assert counts["all-reduce"] > 0  # of gradients
    assert [counts[c] for c in ("all-gather", "all-to-all", "collective-permute")] == [0, 0, 0]
    assert not any(found["one"]["collectives"].values())


@pytest.mark.slow
def test_each_cut_weight_is_gathered_once_and_nothing_else_is(found):
    sharded = found["sharded"]
    assert sharded["cut"] == len(sharded["large"]) > 0
    assert sorted(sharded["gathered"]) == sorted(sharded["large"])
    assert sharded["collectives"]["all-to-all"] == 0
    # Moments and averages stay cut: an eighth of each on every device.
    assert sharded["share_of_moments"] == [1 / 8] * len(sharded["share_of_moments"]) != []
    assert set(found["replicated"]["share_of_moments"]) == {1.0}


@pytest.mark.slow
def test_each_cut_gradient_is_summed_into_parts_and_never_whole(found):
    sharded = found["sharded"]
    sizes = sorted(np.prod(shape) for shape in sharded["large"])
    assert sorted(8 * np.prod(shape) for shape in sharded["scattered"]) == sizes
    assert all(np.prod(shape) < min(sizes) for shape in sharded["reduced"])
    # Where weights are whole so is every gradient, and the search finds it.
    whole = [shape for shape in found["replicated"]["reduced"] if np.prod(shape) >= min(sizes)]
    assert sorted(whole) == sorted(sharded["large"])
    assert found["replicated"]["scattered"] == []


@pytest.mark.slow
def test_weights_made_in_parts_are_those_made_whole(found):
    for how in ("one", "replicated", "sharded", "in_parts"):
        assert found[how]["apart"] < 1e-6


def test_hosts_make_the_rows_that_lie_on_their_devices():
    assert host_rows(8, device_mesh(jax.devices()[:1])) == slice(0, 8)
    assert contiguous([(4, 6), (6, 8), (2, 4)], 8) == slice(2, 8)  # three of four devices
    with pytest.raises(ValueError, match="rows 2 to 3 of a batch of 8 are another host's"):
        contiguous([(4, 6), (0, 2)], 8)


def test_held_out_losses_in_parts_are_the_same_in_less_memory(float32):
    network = {"kind": "mlp", "width": 64, "depth": 2}
    edm, parametrization = {"kind": "edm"}, {"kind": "preconditioned", "sigma_data": 0.5}
    model = build(ModelSpec((2,), network, edm, parametrization, 0.02, 80.0))
    x = np.random.default_rng(0).normal(size=(1024, 2)).astype(np.float32)
    losses, bytes_used = {}, {}
    for parts in (1, 8):
        run = jax.jit(partial(held_out_losses, sigma_data=0.5, parts=parts))
        compiled = run.lower(model, Batch(x), np.float32([0.1, 1.0])).compile()
        losses[parts] = compiled(model, Batch(x), np.float32([0.1, 1.0]))
        bytes_used[parts] = compiled.memory_analysis().temp_size_in_bytes
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-5)
    assert bytes_used[8] < bytes_used[1] / 4


CONFIG = """
steps = 8
batch = 8
[model]
shape = [4, 4, 1]
network = { kind = "mlp", width = 64, depth = 2 } # its large weights are cut
path = { kind = "edm" }
parametrization = { kind = "preconditioned", sigma_data = 1.0 }
t_min = 0.02
t_max = 80.0
[data]
dataset = "npz"
sigma_data = 1.0
flip = true
path = "PATH"
[execution]
parameters = "sharded"
[records]
save_every = 4
log_every = 2
validate_every = 8
validation_samples = 16
"""


REFUSALS = {
    "a folder each": "own-1 on this host lacks the config.json .* all hosts share",
    "no data": "nowhere.npz",
    "another step": r"steps \[4, 8\]: .*behind must be one folder",
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_one_goes_on_from_there(tmp_path, float32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 64, 4, 4, 1)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x[0], held_out=x[1])
    config = tmp_path / "tiny.toml"
    config.write_text(CONFIG.replace("PATH", str(tmp_path / "x.npz")))
    alone = fit(load_config(config), tmp_path / "alone", progress=False)

    shared = tmp_path / "shared"
    hosts = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAMS / "two_hosts.py", config, shared],
            env=environment(**hosts, JAX_PROCESS_ID=str(i)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "finished at step 8" in " ".join(said[0][1].split())

    # Whatever one host cannot do, both refuse, and none is left waiting.
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
    for case, why in REFUSALS.items():
        assert re.search(why, second[case]), case
    for case in ("a folder each", "no data"):
        assert "not all hosts can continue; host 1: " + second[case][:200] in first[case]
    assert first["another step"].startswith("hosts would start from different steps [4, 8]")
    assert not (tmp_path / "without").exists()

    last = "checkpoints/8/default"
    expected = read_arrays(tmp_path / "alone" / last)
    for name, value in read_arrays(shared / last).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        for folder in (tmp_path / "alone", shared)
    ]
    for one, other in zip(*lines, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"time"}:
            np.testing.assert_allclose(other[key], one[key], rtol=1e-3, err_msg=key)

    # Nothing of what is read lies on a device before it is placed.
    restored = restore_latest(shared, state_shapes(load_config(config)))
    assert {type(leaf) for leaf in jax.tree.leaves(restored)} == {np.ndarray}

    # One process, with another number of devices, goes on from what the two have written.
    (shared / "checkpoints/8").rename(tmp_path / "set-aside")
    resumed = fit(load_config(config), shared, progress=False)
    assert int(resumed.state.step) == int(alone.state.step) == 8
    again = [json.loads(line) for line in (shared / "metrics.jsonl").open()]
    kept = [one["time"] == other["time"] for one, other in zip(lines[1], again, strict=True)]
    assert kept == [line["step"] <= 4 for line in again]  # it did not begin anew
    for name, value in read_arrays(shared / last).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)
