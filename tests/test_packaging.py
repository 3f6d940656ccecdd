"""What the package index and installed packages say: links, licences, extras, hints."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from dgjax.messages import install_line

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture(scope="module")
def hook():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_readme_are_absolute_on_the_index(hook):
    metadata = {}
    hook.CustomMetadataHook(str(ROOT), {}).update(metadata)
    address, text = metadata["urls"]["Repository"], metadata["readme"]["text"]
    assert re.fullmatch(r"https://[^\s]+/dgjax", address)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) > 20
    assert all(re.match(r"https?://|#", target) for target in targets)
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures
    for picture in pictures:
        assert picture.startswith(f"{address}/raw/main/")
    assert f"]({address}/blob/main/docs/how-to/gpu.md)" in text


def test_relative_links_only_are_changed(hook):
    text = "[a](b.md#c) ![d](e.png) [f](https://g/h.png) [i](#j) `x[0](y z)`"
    assert hook.absolute(text, "https://r") == (
        "[a](https://r/blob/main/b.md#c) ![d](https://r/raw/main/e.png) "
        "[f](https://g/h.png) [i](#j) `x[0](y z)`"
    )


@pytest.mark.parametrize("page", ["README.md", "docs/get-started.md"])
def test_the_tables_of_extras_are_right(page):
    if not (ROOT / page).exists():
        pytest.skip("docs/ is not in source distributions")
    named = set(re.findall(r"[`'.]\[(\w+)\]", (ROOT / page).read_text()))
    named -= {"cuda12", "tpu"}  # of jax
    assert named == set(EXTRAS)


def test_both_licences_are_stated():
    assert PROJECT["license"] == "Apache-2.0 AND CC-BY-SA-4.0"
    for file in PROJECT["license-files"]:
        assert (ROOT / file).is_file()
    credits_file = (ROOT / PROJECT["license-files"][-1]).read_text()
    card = (ROOT / "dgjax/pretrained/photo-patches/CARD.md").read_text()
    names = re.search(r"Photographs by (.*?) and Trevor", card, re.DOTALL)[1]
    for name in re.findall(r"[A-Z]\w+ [A-Z]\w+", names):
        assert name in credits_file


@pytest.mark.parametrize("extra", ["train", "evaluate", "hub", "torch"])
def test_hints_name_the_packages(extra, monkeypatch):
    lines = [f"{package}; extra == '{name}'" for name in EXTRAS for package in EXTRAS[name]]
    monkeypatch.setattr("dgjax.messages.requires", lambda name: ["jax>=0.8", *lines])
    packages = install_line(extra).removeprefix("pip install ").split()
    assert packages == [f"'{package}'" for package in EXTRAS[extra]]


def test_hints_without_an_installation(monkeypatch):
    monkeypatch.setattr("dgjax.messages.requires", lambda name: None)
    assert install_line("train") == "pip install '.[train]'"
