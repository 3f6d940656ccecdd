"""Models that come with the package."""

from importlib.resources import as_file, files

from dgjax.checkpoint import Meta, load
from dgjax.fields import Field
from dgjax.spec import unknown_name

__all__ = ["load_pretrained", "pretrained_models"]


def pretrained_models() -> list[str]:
    """Names that `load_pretrained` takes."""
    folder = files("dgjax") / "models"
    return sorted(m.name for m in folder.iterdir() if (m / "config.json").is_file())


def load_pretrained(name: str) -> tuple[Field, Meta]:
    """A shipped model by its name, as `dgjax.checkpoint.load` returns it.

    Raises:
        ValueError: if there is no such model; it lists those there are.
    """
    names = pretrained_models()
    if name not in names:
        raise unknown_name("model", name, names)
    with as_file(files("dgjax") / "models" / name) as folder:
        return load(folder)
