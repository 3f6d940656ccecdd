"""Models that come with the package."""

from importlib.resources import as_file, files
from typing import Any

import jax.numpy as jnp

from dgjax.checkpoints.checkpoint import load
from dgjax.checkpoints.configuration import unknown_name
from dgjax.checkpoints.meta import Meta
from dgjax.model.field import Field

__all__ = ["load_pretrained", "pretrained_models"]


def pretrained_models() -> list[str]:
    """Return the names of the shipped models, sorted."""
    folder = files("dgjax") / "pretrained"
    return sorted(m.name for m in folder.iterdir() if (m / "config.json").is_file())


def load_pretrained(name: str, *, dtype: Any = jnp.float32) -> tuple[Field, Meta]:
    """Load a shipped model by its name.

    Args:
        name: its name.
        dtype: of the weights in memory, as of `dgjax.checkpoints.load`.

    Returns:
        The model, and the facts about it.

    Raises:
        ValueError: if there is no such model; the message lists the models there are.
    """
    names = pretrained_models()
    if name not in names:
        raise unknown_name("model", name, names)
    with as_file(files("dgjax") / "pretrained" / name) as folder:
        return load(folder, dtype=dtype)
