"""The documentation names what there is: every public name, links that lead somewhere, code."""

import ast
import importlib
import inspect
import os
import re
from pathlib import Path

import pytest
from test_layers import FLOORS

import dgjax

DOCS = Path(__file__).parent.parent / "docs"
if not DOCS.is_dir():
    pytest.skip("docs/ is not in source distributions", allow_module_level=True)
PAGES = sorted(p for p in DOCS.rglob("*.md") if not p.is_symlink())
LINKED = sorted(p for p in DOCS.rglob("*.md") if p.is_symlink())
REFERENCE = sorted((DOCS / "api").glob("*.md"))
ALSO = [
    "dgjax.checkpoints",
    "dgjax.evaluation.frechet",
    "dgjax.networks",
    "dgjax.devices",
]
ALSO += ["dgjax.importing", "dgjax.training"]


def name_of(page):
    return page.relative_to(DOCS).as_posix()


def documented():
    """Dotted names after `:::` on the pages of the reference."""
    pages = (page.read_text() for page in REFERENCE)
    return {name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}


def exported(dotted):
    """Names in `__all__` of a module; none if `dotted` is no module."""
    try:
        return getattr(importlib.import_module(dotted), "__all__", ())
    except ModuleNotFoundError:
        return ()


def targets(text):
    """Relative files that Markdown links and pictures lead to."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            yield target.partition("#")[0]


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def find(dotted):
    """What `dgjax.a.b` is.

    Raises:
        AttributeError: if there is no such thing.
    """
    names, found = dotted.split("."), importlib.import_module("dgjax")
    for i, name in enumerate(names[1:], 1):
        try:
            found = getattr(found, name)
        except AttributeError:
            try:
                found = importlib.import_module(".".join(names[: i + 1]))
            except ModuleNotFoundError:
                raise AttributeError(f"there is no {dotted}") from None
    return found


def check_code(code):
    """Raise unless all of dgjax that `code` names exists and takes the keywords it is given."""
    tree, known = ast.parse(code), {"dgjax": "dgjax"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("dgjax"):
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call)
        written = ast.unparse(node.func if called else node)
        if not re.fullmatch(r"\w+(\.\w+)*", written) or written.split(".")[0] not in known:
            continue
        first, *rest = written.split(".")
        found = find(".".join([known[first], *rest]))
        if called:
            parameters = inspect.signature(found).parameters.values()
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                keywords = {k.arg for k in node.keywords if k.arg} - {p.name for p in parameters}
                assert not keywords, f"{written} does not take {keywords}"


def test_every_public_name_has_its_place_in_the_reference():
    there = documented()
    assert set(ALSO) <= there
    for name in dgjax.__all__:
        # A constant is found by the module that lists it: its own is that of its class.
        module = inspect.getmodule(getattr(dgjax, name)).__name__
        listed = any(name in exported(page) for page in there)
        assert listed or f"{module}.{name}" in there, f"put {name} on a page of docs/api"


def test_the_reference_names_what_exists():
    there = documented()
    assert len(there) > 20
    for name in there:
        find(name)


def is_there(place):
    """Whether there is a file. Archives lack the links of docs/ to folders, but not the folders."""
    return place.exists() or (DOCS.parent / os.path.relpath(place, DOCS)).exists()


@pytest.mark.parametrize("page", [*PAGES, *LINKED], ids=name_of)
def test_links_lead_to_files(page):
    """Pages that are links to files of the repository are read in both places."""
    assert page.exists(), "a broken symbolic link"
    for target in targets(page.read_text()):
        on_site = page.parent / target.removeprefix("docs/")  # as docs/hooks.py has it
        assert is_there(on_site), f"{target} is not there"
        assert is_there(page.resolve().parent / target), f"{target} is not in the repository"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text())], ids=name_of)
def test_code_names_what_exists(page):
    """Each page's blocks make one program."""
    check_code("".join(blocks(page.read_text())))
    for name in re.findall(r"`(dgjax\.[\w.]+)", page.read_text()):
        find(name)


def test_contributing_has_every_package_on_its_floor():
    text = (DOCS / "CONTRIBUTING.md").read_text()
    floors = {}
    for row in re.findall(r"^\| (`.*) \|$", text, re.MULTILINE):
        names, *_, floor = re.split(r" *\| *", row)
        if floor.isdigit():
            floors |= dict.fromkeys(re.findall(r"`(\w+)`", names), int(floor))
    assert floors == {name: number for number, names in enumerate(FLOORS, 1) for name in names}


def test_version_and_date_are_the_same_everywhere():
    """In `_version`, the newest dated section of the changelog, and CITATION.cff."""
    root = DOCS.parent
    heading = r"^## \[?(\d[\w.]*)\]? - (\d{4}-\d\d-\d\d)$"
    version, date = re.search(heading, (root / "CHANGELOG.md").read_text(), re.MULTILINE).groups()
    citation = (root / "CITATION.cff").read_text().splitlines()
    assert version == dgjax.__version__
    assert f"version: {version}" in citation
    assert f"date-released: {date}" in citation


def test_terms_are_defined_once():
    terms = re.findall(r"^### (.+)$", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert len(terms) > 30
    assert len({term.lower() for term in terms}) == len(terms)


def test_the_checks_can_fail():
    assert len(PAGES) > 15
    assert len(LINKED) == 8
    assert not is_there(DOCS / "missing.md")
    check_code("import dgjax\ndgjax.sample(m, x, g, key=k)\nfrom dgjax.training import fit\nfit(c)")
    for wrong in (
        "dgjax.smaple",
        "dgjax.devices.nothing",
        "from dgjax.training import fitt",
    ):
        with pytest.raises(AttributeError):
            check_code(wrong + "\nfitt" if "fitt" in wrong else wrong)
    with pytest.raises(AssertionError, match="does not take"):
        check_code("dgjax.sample(m, x, g, steps=3)")
    assert list(targets("[a](b.md#c) ![d](e.png) [f](https://g) [h](#i)")) == ["b.md", "e.png"]
