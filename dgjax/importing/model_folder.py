"""What all folders of models have in common: JSON, a model card, and what becomes of them."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from dgjax.checkpoints.checkpoint import Meta
from dgjax.checkpoints.spec import Autoencoder
from dgjax.model.field import Field

__all__ = ["Imported", "card_licence", "read_json"]


class Imported(NamedTuple):
    """A model with NumPy weights, what is known of it, and what it was made from.

    `autoencoder` is that of a model of latents, and None for one of pixels.
    """

    model: Field
    autoencoder: Autoencoder | None
    meta: Meta
    architecture: str
    scheduler: str
    notes: tuple[str, ...]


def read_json(file: Path) -> dict[str, Any]:
    """The table in a JSON file; a ValueError if it is missing or none."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no {file.name} in {file.parent}") from None
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{file} cannot be read as JSON: {first}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} is no table of names and values")
    return content


def card_licence(folder: Path) -> str | None:
    """The licence in the front matter of the model card, if it states one."""
    try:
        card = (folder / "README.md").read_text(errors="replace")
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    stated = re.search(r"^license:\s*(\S.*?)\s*$", front[1], re.MULTILINE) if front else None
    return stated[1].strip("\"'") if stated else None
