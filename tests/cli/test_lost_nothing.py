"""A full disk, or a figure that cannot be drawn, costs no sample; names are shown as they are."""

import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import slow_but
from PIL import Image

from dgjax.messages import printable

FEW = ["--steps", "2", "--q", "0.4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, small_model):
    return small_model(tmp_path_factory.mktemp("model") / "m", (4, 4, 1), spread=0.5)


@pytest.fixture
def commands(tmp_path, model):
    Image.new("L", (4, 4)).save(tmp_path / "given.png")
    given, out = tmp_path / "given.png", tmp_path / "out"
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8))
    evaluate = ["evaluate", "--model", model, "--data", data, "--part", "train", "--num", 4]
    evaluate += ["--only", "png", "--steps", 2, "--num-density", 3]
    return {
        "evaluation.json": [*evaluate, "--out", out],
        "pictures": [*evaluate, "--export", out / "pictures", "--out", tmp_path / "figures"],
        "samples.npz": ["sample", "--model", model, "--num", 2, *FEW, "--out", out],
        "edit.npz": ["edit", given, "--model", model, *FEW, "--out", out],
        "page.html": [
            *("explore", "--model", model, "--num", 1, "--noise", 0),
            *(*FEW, "--out", out / "page.html"),
        ],
    }


@pytest.mark.skipif(sys.platform != "linux", reason="finds the names of open files in /proc")
@pytest.mark.parametrize(
    "name",
    slow_but(
        ["samples.npz", "edit.npz", "page.html", "evaluation.json", "pictures"],
        *("samples.npz", "pictures"),
    ),
)
def test_a_full_disk_costs_no_sample(name, commands, run, tmp_path, monkeypatch):
    saved = tmp_path / "temporary"
    saved.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(saved))
    fsync = os.fsync

    def full(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_relative_to(tmp_path / "out") and not path.is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    (tmp_path / "out").mkdir()
    status, shown, complaint = run(*commands[name])
    assert status == 1
    lines = [line for line in complaint.splitlines() if line.startswith("dgjax:")]
    assert len(lines) == 1
    assert "No space left" in lines[0]
    assert "Traceback" not in complaint
    kept = Path(re.search(r"what was computed is in (\S+)", lines[0])[1])
    assert kept.name == name
    assert kept.is_relative_to(saved)
    if name.endswith("npz"):
        with np.load(kept) as arrays:
            assert np.isfinite(arrays["x"]).all()
    if name == "evaluation.json":  # shown, too
        assert "PNG bytes" in shown
        assert json.loads(kept.read_text())["figures"]["png_bytes"]["number"] == 4
    if name == "pictures":
        assert len([Image.open(file) for file in kept.glob("*.png")]) == 4
        assert (tmp_path / "figures" / "evaluation.md").is_file()
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("name", ["page.html", "pictures.npz"])
def test_what_is_no_file_is_refused_before_anything_is_computed(
    name, commands, run, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise AssertionError("computed")

    monkeypatch.setattr("dgjax.cli.explore.batch_runner", fail)
    monkeypatch.setattr("dgjax.cli.evaluate.sample_model", fail)
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / name)
    command = [
        str(option).replace("pictures", "pictures.npz")
        for option in commands[name.removesuffix(".npz")]
    ]
    status, _, complaint = run(*command)
    assert (status, len(complaint.splitlines())) == (1, 1)
    assert "it is there and is no file" in complaint


@pytest.mark.parametrize("name", slow_but(["samples.npz", "edit.npz"], "samples.npz"))
def test_a_figure_that_cannot_be_drawn_costs_no_sample(name, commands, run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no font\nat all")

    (tmp_path / "out").mkdir()
    figure = tmp_path / "out" / name.replace("npz", "png")
    figure.touch()  # of an earlier run: it would not be that of the new samples
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    status, _, complaint = run(*commands[name])
    assert status == 1
    assert re.search(r"dgjax: no font at all \(.* is not drawn, .* are complete\)", complaint)
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {name, "summary.json" if name == "samples.npz" else "edit.json"}


def test_names_are_shown_as_they_are(model, run, tmp_path):
    """Neither mathtext, nor Rich's markup, nor the terminal reads them."""
    odd = "$x$ \\foo [bold]b[/] [/c] \x1b[31m \x1b]8;;http:link\x07 :smile: \u202e"
    shutil.copytree(model, tmp_path / odd)
    out = tmp_path / "[red]out"
    status, shown, complaint = run(
        "sample", "--model", tmp_path / odd, "--num", 2, *FEW, "--out", out
    )
    assert status == 0, complaint
    assert f"wrote samples.npz, samples.png and summary.json to {out}/" in complaint
    written = shown + complaint
    assert all(c.isprintable() or c == "\n" for c in written)
    flat = re.sub(r"\s", "", written)
    assert re.sub(r"\s", "", printable(odd)) in flat
    assert json.loads((out / "summary.json").read_text())["model"].endswith(odd)
    assert (out / "samples.png").stat().st_size > 1000


def test_text_is_made_printable():
    assert printable("plain é [b] $x$") == "plain é [b] $x$"
    assert printable("\x1b[31m\r\n\x9b\u202e\udcff") == r"\x1b[31m\r\n\x9b\u202e\udcff"
    assert printable("a\nb\x1b", lines=True) == "a\nb\\x1b"
    assert len(printable("n" * 10**6)) < 1100


@pytest.mark.parametrize("name", ["models/none.pt", "a/b/c", "./a", "here/model", f"a/{'n' * 200}"])
def test_the_hub_is_not_asked_for_paths(name, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("dgjax.importing.source.open_hub", lambda name: pytest.fail("asked"))
    status, _, complaint = run("import", name, "out")
    assert status == 1
    assert "which was not asked" in complaint
    assert ("here is here" in complaint) == name.startswith("here/")


def test_importing_replaces_no_other_model(model, run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("read or downloaded")

    monkeypatch.setattr("dgjax.cli.import_model.import_model", fail)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{")
    for out, message in (
        (model, "has a checkpoint already, trained on"),
        (tmp_path / "file", "cannot write to"),
        (tmp_path / "foreign", "it has files and is no dgjax checkpoint"),
    ):
        status, _, complaint = run("import", "owner/name", out)
        assert (status, len(complaint.splitlines())) == (1, 1)
        assert message in complaint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("import", "a/b", "out", "--shape", 8), "(see dgjax import --help)"),
        (("sample", "--q", 1.2), "got 1.2"),
        (("sample", "--solver", "level_set_euler"), "add --noise"),
        (("sample", "--noise", 1, "--solver", "multistep"), "leave --noise or --solver out"),
        (("sample", "--model", "google/ddpm-cifar10-32"), "`dgjax import` makes a checkpoint"),
        (("sample", "--noise", 1, "--noise-window", "nan,3"), "two log-SNRs, low < high, got nan"),
    ],
)
def test_options_are_refused_in_words_of_the_command(options, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, complaint = run(*options)
    assert status in (1, 2)
    assert message in complaint.strip().splitlines()[-1]


def test_colours_that_a_grey_model_drops_are_said(model, run, tmp_path):
    Image.new("RGB", (4, 4), (200, 30, 30)).save(tmp_path / "red.png")
    Image.new("RGB", (4, 4), (80, 84, 78)).save(tmp_path / "grey.png")
    for name, said in (("red.png", True), ("grey.png", False)):
        status, _, complaint = run("likelihood", tmp_path / name, "--model", model, "--steps", 2)
        assert status == 0, complaint
        assert ("1 picture is in colour and the model is of grey ones" in complaint) == said


def test_asking_the_hub_is_said(run, tmp_path, monkeypatch):
    def refuse(name):
        raise ValueError(f"no {name}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dgjax.importing.source.open_hub", refuse)
    _, _, complaint = run("import", "owner/name", "out")
    assert "asking the Hugging Face hub" in complaint


def test_classes_of_the_shipped_model_have_names():
    from dgjax.checkpoints.opened import density_title, find_label, open_model

    chosen = open_model("fashion-mnist")
    assert [find_label(chosen, name) for name in ("Bag", "t-shirt", "ankle boot")] == [8, 0, 9]
    assert density_title(chosen._replace(label=8).facts()) == "log p(x | class Bag) at t_min = 0.02"
    assert density_title(chosen._replace(label=0).facts())[:24] == "log p(x | class T-shirt)"
    assert density_title(chosen.facts()) == "log p at t_min = 0.02"
