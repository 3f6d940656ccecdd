"""The packages of dgjax stand on floors: each imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

import dgjax

# From the ground up. Modules of one package may import each other; packages on one floor may not.
FLOORS = [
    {"_version", "typing", "files", "messages"},
    {"model", "devices"},
    {"networks", "guidance"},
    {"sampling", "checkpoints"},
    {"pictures", "importing", "check"},
    {"data", "explorer"},
    {"evaluation"},
    {"training"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
DIFFRAX = {"sampling"}

ROOT = Path(dgjax.__file__).parent
FILES = sorted(f for f in ROOT.rglob("*.py") if f != ROOT / "__init__.py")


def layer(file):
    return file.relative_to(ROOT).with_suffix("").parts[0]


def imports(file):
    """Dotted names of all that `file` imports, in any form and anywhere in it."""
    package = ["dgjax", *file.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = [*start, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "dgjax":
            yield f"dgjax.{node.attr}"  # what is read after a bare `import dgjax`


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_imports_point_one_way(file):
    name = layer(file)
    assert name in FLOOR, f"put {name} on a floor above all that it imports"
    for target in imports(file):
        top, *rest = target.split(".")
        if top == "diffrax":
            assert name in DIFFRAX, f"{name} imports diffrax"
        if top != "dgjax" or not rest or rest[0] in ("__version__", name):
            continue
        assert rest[0] in FLOOR, f"import {target} from the module that makes it"
        assert FLOOR[rest[0]] < FLOOR[name], f"{name} imports {rest[0]}, which is not below it"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_classes_are_registered_by_typing(file):
    """JAX's own registration makes structures of different classes compare equal."""
    assert "jax.tree_util.register_dataclass" not in set(imports(file))
    assert layer(file) == "typing" or "tree_util.register_dataclass" not in file.read_text()


def test_the_walk_sees_imports_in_every_form(tmp_path, monkeypatch):
    """The test above would pass if it found nothing."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "training").mkdir()
    file = tmp_path / "training" / "step.py"
    file.write_text(
        "import dgjax.cli, diffrax as d\n"
        "from dgjax.model import paths as p\n"
        "from dgjax.model.field import Field\n"
        "from . import ema\n"
        "from .loss import denoising_loss\n"
        "from .. import guidance\n"
        "def f():\n    from ..sampling import sample\n    return dgjax.prior_sample\n"
    )
    assert sorted(imports(file)) == sorted(
        [
            "dgjax.cli",
            "diffrax",
            "dgjax.model.paths",
            "dgjax.model.field.Field",
            "dgjax.training.ema",
            "dgjax.training.loss.denoising_loss",
            "dgjax.guidance",
            "dgjax.sampling.sample",
            "dgjax.prior_sample",
        ]
    )
    assert layer(file) == "training"
