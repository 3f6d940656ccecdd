"""Models that come with the package."""

from importlib.resources import as_file, files

from dgjax.checkpoints.checkpoint import Meta, load
from dgjax.checkpoints.spec import unknown_name
from dgjax.model.field import Field

__all__ = ["load_pretrained", "pretrained_models"]


def pretrained_models() -> list[str]:
    """Names that `load_pretrained` takes."""
    folder = files("dgjax") / "pretrained"
    return sorted(m.name for m in folder.iterdir() if (m / "config.json").is_file())


def load_pretrained(name: str) -> tuple[Field, Meta]:
    """A shipped model by its name, as `dgjax.checkpoints.checkpoint.load` returns it.

    Raises:
        ValueError: if there is no such model; it lists those there are.
    """
    names = pretrained_models()
    if name not in names:
        raise unknown_name("model", name, names)
    with as_file(files("dgjax") / "pretrained" / name) as folder:
        return load(folder)
