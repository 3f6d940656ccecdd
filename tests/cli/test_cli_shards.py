"""`dgjax sample --shard-size`: the same samples in pieces, whenever and however it was stopped."""

import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import devices

from dgjax.checkpoints.checkpoint import digest, load, save
from dgjax.cli.report import MEASURED
from dgjax.cli.shards import Shards, record_options, write_missing

SHAPE = (4, 4, 1)
DIALS = ("--q", 0.4, "--q", 0.6, "--steps", 8, "--solver", "multistep", "--batch", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_model):
    """A network of random weights, on which samples are all different and probes are noisy."""
    return small_model(tmp_path_factory.mktemp("model") / "random", SHAPE, spread=0.7, weights=0.2)


def command(folder, out, *options):
    return ("sample", "--model", folder, *DIALS, "--out", out, *options)


def process(arguments, prelude="", count=1):
    """The command in a process of its own, after the statements of `prelude`."""
    program = f"import sys; {prelude}\nfrom dgjax.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, **devices(count)},
        capture_output=True,
        text=True,
        check=False,
    )


def arrays(file):
    with np.load(file) as found:
        return dict(found)


def shards(out):
    return {f.name: arrays(f) for f in sorted((out / "shards").glob("*.npz"))}


def assert_close(found, expected):
    """To float tolerance; a pixel that rounds the other way moves a PNG by a few bytes."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = 8 if name == "png_bytes" else 1e-4
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=atol)


@pytest.mark.slow
def test_shards_hold_what_one_file_does_of_any_number(folder, tmp_path, run):
    code, printed, _ = run(
        *command(folder, tmp_path / "a", "--num", 5, "--shard-size", 2, "--json")
    )
    assert code == 0
    assert run(*command(folder, tmp_path / "b", "--num", 3))[0] == 0
    pieces, whole = shards(tmp_path / "a"), arrays(tmp_path / "b" / "samples.npz")
    assert [x["x"].shape[:2] for x in pieces.values()] == [(2, 2), (2, 2), (2, 1)]
    assert list(pieces) == ["00000.npz", "00001.npz", "00002.npz"]
    joined = {
        name: np.concatenate([p[name] for p in pieces.values()], 1)
        if value.ndim > 1
        else pieces["00002.npz"][name]
        for name, value in whole.items()
    }
    first = {name: v[:, :3] if v.ndim > 1 else v for name, v in joined.items()}
    assert_close(first, whole)
    assert len(np.unique(joined["x"][0].reshape(5, -1).round(3), axis=0)) == 5

    summary = json.loads(printed)
    assert summary == json.loads((tmp_path / "a" / "summary.json").read_text())
    assert (summary["num"], summary["seed"]) == (5, 0)
    for row, values, sizes in zip(
        summary["rows"], joined["log_density"], joined["png_bytes"], strict=True
    ):
        assert row["log_density_mean"] == pytest.approx(values.mean(dtype=float), rel=1e-9)
        assert row["log_density_std"] == pytest.approx(values.std(ddof=1, dtype=float), rel=1e-9)
        assert row["png_bytes"] == sizes.mean()
    assert (tmp_path / "a" / "samples.png").read_bytes().startswith(b"\x89PNG")

    code, _, said = run(
        *command(folder, tmp_path / "a", "--num", 5, "--shard-size", 2, "--seed", 1)
    )
    assert code == 1
    assert len(said.splitlines()) == 1
    assert "seed was 0 and is 1" in said
    assert shards(tmp_path / "a").keys() == pieces.keys()


# Killed where a shard would be lost or spoilt if anything could: it is written, not yet in place.
KILL = """
import os, signal
replace = os.replace
def killed(a, b):
    if "00002" in str(b): os.kill(os.getpid(), signal.SIGKILL)
    replace(a, b)
os.replace = killed
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_makes_damaged_shards_again(folder, tmp_path, run):
    options = ("--num", 7, "--shard-size", 2)
    stopped = process(command(folder, tmp_path / "a", *options), KILL)
    assert stopped.returncode == -signal.SIGKILL
    left = sorted(f.name for f in (tmp_path / "a" / "shards").iterdir())
    assert re.fullmatch(r"\.00002\.npz\.[0-9a-f]{32}\.partial", left[0])
    assert left[1:] == ["00000.npz", "00001.npz", "options.json"]
    assert not (tmp_path / "a" / "summary.json").exists()
    damaged = tmp_path / "a" / "shards" / "00000.npz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    kept = (tmp_path / "a" / "shards" / "00001.npz").stat().st_mtime_ns

    code, _, said = run(*command(folder, tmp_path / "a", *options))
    assert code == 0
    said = "".join(said.split())  # as wide as the terminal
    assert "00000.npzisdamagedandmadeagain" in said
    assert "2of7latentsaretherealready" in said
    assert (tmp_path / "a" / "shards" / "00001.npz").stat().st_mtime_ns == kept
    assert run(*command(folder, tmp_path / "b", *options))[0] == 0
    found, expected = shards(tmp_path / "a"), shards(tmp_path / "b")
    assert len(expected) == 4
    assert found.keys() == expected.keys()
    for name, shard in expected.items():
        assert found[name].keys() == shard.keys()
        for array, value in shard.items():
            np.testing.assert_array_equal(found[name][array], value)
    names = [sorted(f.name for f in (tmp_path / o / "shards").iterdir()) for o in "ab"]
    assert names[0] == names[1]
    texts = [(tmp_path / o / "summary.json").read_text() for o in "ab"]
    assert texts[0] == texts[1]


def test_two_runs_at_once_fill_one_folder(tmp_path, monkeypatch):
    place, save_arrays = Shards(tmp_path, 4, 2, 1, SHAPE), np.savez_compressed

    def draw(start, stop, show):
        each = {name: np.full((1, stop - start), start) for name in MEASURED}
        return {"x": np.zeros((1, stop - start, *SHAPE)), **each}

    def overtaken(stream, **arrays):
        monkeypatch.undo()
        write_missing(place, draw)  # another run, from the first shard to the last
        save_arrays(stream, **arrays)

    monkeypatch.setattr(np, "savez_compressed", overtaken)
    write_missing(place, draw)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["00000.npz", "00001.npz"]
    for i in (0, 1):
        np.testing.assert_array_equal(arrays(place.file(i))[MEASURED[0]], [[2 * i] * 2])

    def full(stream, **arrays):
        raise OSError("no space left")

    place.file(1).unlink()
    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(ValueError, match=r"cannot write to .*no space left"):
        write_missing(place, draw)
    assert [f.name for f in tmp_path.iterdir()] == ["00000.npz"]


@pytest.mark.slow
def test_eight_devices_draw_what_one_does(folder, tmp_path, run):
    arguments = [command(folder, tmp_path / o, "--num", 5) for o in "ab"]
    show = "import jax, atexit; atexit.register(lambda: print(jax.local_device_count()))"
    done = process(arguments[0], show, count=8)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "8"
    assert run(*arguments[1])[0] == 0
    found, expected = (arrays(tmp_path / o / "samples.npz") for o in "ab")
    assert_close(found, expected)


def test_another_folder_is_refused(tmp_path):
    place = Shards(tmp_path / "shards", 4, 2, 1, SHAPE)
    options = {"model": "a", "sha256": "f00", "q": np.float32([0.5]), "noise": 0.0}
    record_options(place, options)
    record_options(place, options | {"model": "moved/a"})  # the same weights
    for other, said in [
        ({"sha256": "ba4"}, r"model \(by its sha256\) was f00 and is ba4"),
        ({"q": np.float32([0.25])}, r"q was \[0.5\] and is \[0.25\]"),
        ({"class": 3}, "class was None and is 3"),
    ]:
        with pytest.raises(ValueError, match=f"other options: {said}; restore it"):
            record_options(place, options | other)
    with pytest.raises(ValueError, match=r"other options: noise was 0\.0 and is None"):
        record_options(place, {k: v for k, v in options.items() if k != "noise"})
    (place.folder / "options.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        record_options(place, options)
    (place.folder / "options.json").unlink()
    place.file(0).touch()
    with pytest.raises(ValueError, match=r"no options.json that says what they are"):
        record_options(place, options)
    assert [f.name for f in place.folder.iterdir()] == ["00000.npz"]


def test_a_digest_is_of_the_weights_and_not_of_the_place(folder, tmp_path):
    model, meta = load(folder)
    save(tmp_path / "copy", model, meta)
    assert digest(*load(tmp_path / "copy")) == digest(model, meta)
    leaves, structure = jax.tree.flatten(model)
    for i, leaf in enumerate(leaves):
        other = [*leaves[:i], leaf + 0.5, *leaves[i + 1 :]]
        changed = digest(jax.tree.unflatten(structure, other), meta)
        weight = any(leaf is w for w in jax.tree.leaves(model.network))
        assert (changed != digest(model, meta)) == weight
