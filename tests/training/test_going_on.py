"""Runs that go on with other settings or moved data, start from other weights, and are logged."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dgjax.checkpoints.arrays import to_named
from dgjax.data import load_dataset
from dgjax.data.named_datasets import load_data
from dgjax.networks import UNet
from dgjax.networks.unet import fold, unfold
from dgjax.training import TrainConfig, export, fit
from dgjax.training.checkpointing import is_finished, restore_latest
from dgjax.training.components import scale_notes, state_shapes
from dgjax.training.run_folder import check_recorded_run, is_recorded, read_config

MODEL = {
    "shape": [2],
    "network": {"kind": "mlp", "width": 8, "depth": 1},
    "path": {"kind": "edm"},
    "parametrization": {"kind": "preconditioned", "sigma_data": 1.0},
    "t_min": 0.02,
    "t_max": 80.0,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data, and a finished run of two steps on them."""
    folder = tmp_path_factory.mktemp("trained")
    x = np.random.default_rng(0).normal(0.3, 0.8, (40, 2)).astype(np.float32)
    np.savez(folder / "data.npz", x=x)
    fit(config(folder / "data.npz"), folder / "run", progress=False)
    return folder


@pytest.fixture
def data(trained):
    return trained / "data.npz"


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(trained / "run", tmp_path / "run")


def config(data, steps=2, **changes):
    values = {
        "model": MODEL,
        "data": {"dataset": "npz", "sigma_data": 1.0, "path": str(data)},
        "steps": steps,
        "batch": 8,
        "records": {"save_every": 10, "log_every": 1, "validate_every": 0},
    }
    return TrainConfig.from_dict(values | changes)


def test_a_run_goes_on_with_other_length_rate_batch_and_place_of_its_data(
    data, finished, tmp_path, capsys
):
    moved = tmp_path / "moved.npz"
    shutil.copy(data, moved)
    first = restore_latest(finished, state_shapes(config(data)))
    changed = config(moved, steps=4, batch=16, optimiser={"learning_rate": 0.5})
    second = fit(changed, finished)
    assert "steps was 2 and is 4" in capsys.readouterr().err.replace("\n", " ")
    assert second.finished
    assert int(second.state.step) == 4
    line = json.loads((finished / "changes.jsonl").read_text())
    assert line["step"] == 2
    assert line["changed"] == {
        "data.path": [str(data), str(moved)],
        "steps": [2, 4],
        "batch": [8, 16],
        "optimiser.learning_rate": [1e-3, 0.5],
    }
    assert read_config(finished) == changed
    # Adam's steps are as long as the learning rate, at most: the new one was taken.
    pairs = zip(*map(jax.tree.leaves, (first.network, second.state.network)), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) > 0.05


def test_data_are_recognized_by_their_content(data, finished, tmp_path):
    chosen, loaded = config(data, steps=3), load_dataset("npz", data)
    check_recorded_run(finished, config(tmp_path / "moved.npz"), loaded)
    x = loaded.values
    rng = np.random.default_rng(1)
    # Another decoder of the same files, and other values of one number, shape and range.
    near = replace(loaded, values=x + 1e-3 * rng.normal(size=x.shape))
    check_recorded_run(finished, config(data), near)
    other = replace(loaded, values=rng.permutation(x.reshape(-1)).reshape(x.shape))
    with pytest.raises(ValueError, match="number and shape are the same, and their values differ"):
        check_recorded_run(finished, config(data), other)
    labelled = replace(loaded, labels=np.zeros(40, np.int32))
    with pytest.raises(ValueError, match="other data: labels was absent and is"):
        check_recorded_run(finished, config(data), labelled)
    np.savez(tmp_path / "fewer.npz", x=x[:-1])
    with pytest.raises(ValueError, match="other data: samples was 40 and is 39; set data"):
        fit(replace(chosen, data=replace(chosen.data, path=str(tmp_path / "fewer.npz"))), finished)
    assert read_config(finished) == config(data)
    facts = json.loads((finished / "data.json").read_text())
    earlier = {k: v for k, v in facts.items() if k not in ("labels", "projections")}
    (finished / "data.json").write_text(json.dumps(earlier))
    check_recorded_run(finished, config(data), other)  # nothing is known that would differ


def test_hosts_agree_on_what_all_of_them_compute(data, finished):
    loaded = load_dataset("npz", data)
    with pytest.raises(ValueError, match="steps was 2 and is 3"):
        check_recorded_run(finished, config(data, steps=3), loaded)


def test_a_finished_run_in_a_read_only_folder_is_left_alone(data, tmp_path, run):
    file = tmp_path / "config.toml"
    file.write_text(
        "steps = 2\nbatch = 8\n[model]\nshape = [2]\nt_min = 0.02\nt_max = 80.0\n[model.network]\n"
        'kind = "mlp"\nwidth = 8\ndepth = 1\n[model.path]\nkind = "edm"\n[model.parametrization]\n'
        f'kind = "preconditioned"\n[data]\ndataset = "npz"\npath = "{data}"\nsigma_data = 1.0\n'
        "[records]\nvalidate_every = 0\n"
    )
    assert run("train", file, "--out", tmp_path / "run")[0] == 0
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
    code, _, said = run("train", file, "--out", tmp_path / "run")
    assert code == 0
    assert "finished at step 2" in said
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")} == before
    shutil.rmtree(tmp_path / "run/model")  # which is written again
    assert run("train", file, "--out", tmp_path / "run")[0] == 0
    assert (tmp_path / "run/model/config.json").exists()


@pytest.mark.parametrize("of", ["run", "model"])
def test_a_run_starts_from_the_weights_of_another(data, trained, tmp_path, of):
    source = trained / of
    if of == "model":
        export(trained / "run", source)
    first = restore_latest(trained / "run", state_shapes(config(data))).averages[0]
    # With a rate of almost nothing the weights stay what they were.
    chosen = config(data, steps=1, optimiser={"learning_rate": 1e-30})
    second = fit(replace(chosen, init_from=str(source)), tmp_path / "run", progress=False)
    assert int(second.state.step) == 1
    for tree in (second.state.network, *second.state.averages):
        for name, value in to_named(tree).items():
            expected = to_named(first)[name]
            np.testing.assert_allclose(value, expected, atol=1e-29 if of == "run" else 1e-3)
    stated = json.loads((tmp_path / "run/start.json").read_text())
    assert stated["init_from"] == str(source)
    assert stated["steps"] == 2
    # The record serves a command that does not name the source again, and refuses another.
    assert is_finished(tmp_path / "run", chosen)
    with pytest.raises(ValueError, match="init_from was"):
        is_finished(tmp_path / "run", replace(chosen, init_from="other"))


def test_weights_that_do_not_fit_are_refused_before_the_run_is_recorded(data, trained, tmp_path):
    wider = {**MODEL, "network": {**MODEL["network"], "width": 12}}
    chosen = config(data, model=wider, init_from=str(trained / "run"))
    message = r"its embed\.inner\.bias has shape \(8,\), and in this model it has shape \(12,\)"
    with pytest.raises(ValueError, match=message):
        fit(chosen, tmp_path / "second", progress=False)
    assert not is_recorded(tmp_path / "second")


def test_a_logger_gets_what_is_recorded(data, tmp_path):
    seen = []
    run = tmp_path / "run"
    fit(config(data), run, progress=False, log=lambda step, values: seen.append((step, values)))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [step for step, _ in seen] == [1, 2]
    assert seen == [(e.pop("step"), {k: e[k] for k in e if k != "time"}) for e in lines]


def test_the_logger_of_the_documentation_writes_curves(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs/how-to/train.md"
    (code,) = [part for part in page.read_text().split("```") if "def log(" in part]
    monkeypatch.chdir(tmp_path)
    fitted = []
    names = {"fit": lambda *_, log: fitted.append(log), "load_config": lambda name: name}
    exec(code.removeprefix("python\n"), names)
    (log,) = fitted
    log(1, {"loss": 0.5, "gradient_norm": 1.0})
    log(1, {"samples": np.zeros((4, 4, 3), np.uint8)})
    assert [f.name.startswith("events") for f in (tmp_path / "curves").iterdir()] == [True]


def test_weights_and_biases_gets_curves_and_pictures(data, tmp_path, monkeypatch):
    from dgjax.cli.loggers import open_logger

    begun, logged, ended = [], [], []

    class Run:
        def log(self, values, step):
            logged.append((step, values))

        def finish(self):
            ended.append(True)

    wandb = SimpleNamespace(
        init=lambda **options: begun.append(options) or Run(), Image=lambda a: ("picture", a.shape)
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    chosen = config(data)
    for _ in range(2):
        with open_logger("wandb", tmp_path / "run", chosen) as log:
            log(3, {"loss": 0.5})
            log(3, {"samples": np.zeros((4, 4, 3), np.uint8)})
    assert logged[:2] == [(3, {"loss": 0.5}), (3, {"samples": ("picture", (4, 4, 3))})]
    assert begun[0]["config"]["steps"] == 2
    assert begun[0]["id"] == begun[1]["id"]  # a resumed run continues its curves
    assert len(ended) == 2
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(ValueError, match="pip install wandb"),
        open_logger("wandb", tmp_path, chosen),
    ):
        pass


@pytest.mark.parametrize("shape", [(13, 2), (5, 6, 7, 1)])
def test_a_unet_of_any_rank_takes_samples_of_any_length(shape):
    net = UNet(shape, (8,), 1, 8, num_classes=2, rngs=nnx.Rngs(0))
    leaves, tree = jax.tree.flatten(net)
    rng = np.random.default_rng(0)
    net = jax.tree.unflatten(
        tree, [jnp.asarray(rng.normal(0, 0.2, a.shape), a.dtype) for a in leaves]
    )
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    out = jax.jit(lambda net, x: net(x, jnp.float32(0.3), 1))(net, x)
    assert out.shape == shape
    assert np.isfinite(out).all()
    assert np.std(out) > 0.01


@pytest.mark.parametrize("sides", [(6,), (4, 6), (4, 6, 2)])
def test_fold_gathers_neighbours_of_any_rank_and_unfold_inverts_it(sides):
    x = np.arange(np.prod(sides) * 3).reshape(1, *sides, 3)
    folded = np.asarray(fold(jnp.asarray(x)))
    assert folded.shape == (1, *(side // 2 for side in sides), 3 * 2 ** len(sides))
    at = tuple(side // 2 - 1 for side in sides)
    block = x[0][tuple(slice(2 * i, 2 * i + 2) for i in at)]
    np.testing.assert_array_equal(folded[0][at], block.reshape(-1))
    np.testing.assert_array_equal(unfold(jnp.asarray(folded)), x)


def test_a_vector_is_no_grid():
    with pytest.raises(ValueError, match=r"\(L, C\), \(H, W, C\) or \(D, H, W, C\)"):
        UNet((4,), rngs=nnx.Rngs(0))


def test_a_missing_package_is_named_before_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ValueError, match="training needs grain: `pip install "):
        fit(config(tmp_path / "none.npz"), tmp_path / "run", progress=False)
    assert not any(tmp_path.iterdir())


def test_all_missing_keys_are_named_with_the_command_that_prints_them():
    model = {key: value for key, value in MODEL.items() if key not in ("path", "t_max")}
    values = {"model": model, "data": {"dataset": "npz"}}
    told = "steps, model.path, model.t_max, data.sigma_data missing; `dgjax train digits --show`"
    with pytest.raises(ValueError, match=told):
        TrainConfig.from_dict(values)
    with pytest.raises(ValueError, match="config: model, data missing"):
        TrainConfig.from_dict({"steps": 1})


def test_a_sigma_far_from_that_of_the_data_is_said(tmp_path):
    x = np.random.default_rng(0).normal(-0.4, 0.31, (500, 2)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    found = config(tmp_path / "x.npz")
    data = load_data(found.data, found.model.shape)
    assert data.standard_deviation() == pytest.approx(x.std(), rel=1e-5)
    told = f"is 1, and the standard deviation of the data is about {x.std():.3g}"
    notes = scale_notes(found, data)
    assert [note.split(" ", 1)[0] for note in notes] == [
        "data.sigma_data",
        "model.parametrization.sigma_data",
    ]
    assert all(told in note for note in notes)
    near = replace(found, data=replace(found.data, sigma_data=0.28))
    assert len(scale_notes(near, data)) == 1


def test_a_run_that_saved_nothing_starts_again_with_any_configuration_and_data(
    data, trained, tmp_path, capsys
):
    def stop(step, values):
        raise InterruptedError

    first = config(data, init_from=str(trained / "run"))
    with pytest.raises(InterruptedError):
        fit(first, tmp_path / "run", log=stop)
    assert (tmp_path / "run/start.json").exists()
    x = np.random.default_rng(1).normal(0.3, 0.8, (30, 2)).astype(np.float32)
    np.savez(tmp_path / "other.npz", x=x)
    wider = MODEL | {"network": {"kind": "mlp", "width": 9, "depth": 1}}
    other = config(tmp_path / "other.npz", model=wider)
    assert fit(other, tmp_path / "run").finished
    said = capsys.readouterr().err.replace("\n", " ")
    assert "without checkpoint, started again with changes" in said
    assert "model.network.width was 8 and is 9" in said
    assert read_config(tmp_path / "run") == other
    assert json.loads((tmp_path / "run/data.json").read_text())["samples"] == 30
    assert not (tmp_path / "run/start.json").exists()  # of weights that this run does not have
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").open()]
    assert steps == [1, 2]
    # Now it has a checkpoint, and stays the run that it is.
    with pytest.raises(ValueError, match=r"another configuration: .*width was 9 and is 8"):
        fit(config(tmp_path / "other.npz"), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="other data: samples was 30 and is 40"):
        fit(config(data, model=wider), tmp_path / "run", progress=False)


def test_data_are_compared_where_the_configuration_is_lost(data, finished, tmp_path):
    (finished / "config.json").unlink()
    np.savez(tmp_path / "fewer.npz", x=load_dataset("npz", data).values[:-1])
    with pytest.raises(ValueError, match="other data: samples was 40 and is 39"):
        fit(config(tmp_path / "fewer.npz"), finished, progress=False)


def test_a_snapshot_without_a_checkpoint_keeps_the_configuration(data, tmp_path):
    run = tmp_path / "run"
    fit(config(data), run, progress=False)
    shutil.rmtree(run / "checkpoints")
    wider = MODEL | {"network": {"kind": "mlp", "width": 9, "depth": 1}}
    with pytest.raises(ValueError, match="another configuration"):
        fit(config(data, model=wider), run, progress=False)
    assert fit(config(data), run, progress=False).finished
