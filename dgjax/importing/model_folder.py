"""Shared parts of the importers: their result, JSON configs, the licence of a model card."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from dgjax.checkpoints.autoencoder_spec import Autoencoder
from dgjax.checkpoints.meta import Meta
from dgjax.checkpoints.prompts import PromptEncoder
from dgjax.model.field import Field

__all__ = ["Imported", "card_licence", "read_json"]


LARGEST_CARD = 2**20  # characters of a model card that are read


class Imported(NamedTuple):
    """An imported model.

    Attributes:
        model: the model, with NumPy weights in the precision of their files.
        autoencoder: the autoencoder of a model of latents, or None for a model of pixels.
        meta: what a checkpoint records of the model.
        architecture: the source's name of the network's class.
        scheduler: the source's name of the scheduler or preconditioning.
        notes: lines on how the model differs from its source.
        prompts: tokenizers and text encoders of a model of prompts, or None.
    """

    model: Field
    autoencoder: Autoencoder | None
    meta: Meta
    architecture: str
    scheduler: str
    notes: tuple[str, ...]
    prompts: PromptEncoder | None = None


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Args:
        file: the file.

    Returns:
        The object, as a dictionary.

    Raises:
        ValueError: if the file is missing, damaged or holds something else.
    """
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no {file.name} in {file.parent}") from None
    except (OSError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{file} cannot be read as JSON: {first}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no JSON object of names and values")
    return content


def card_licence(folder: Path) -> str | None:
    """Read the licence that a model card states.

    Args:
        folder: the model's folder, with the card in README.md.

    Returns:
        `license` in the front matter of the card, or None if there is none.
    """
    try:
        with (folder / "README.md").open(errors="replace") as stream:
            card = stream.read(LARGEST_CARD)
    except OSError:
        return None
    first, *lines = card.splitlines() or [""]
    if first.strip() != "---":
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if line.startswith("---"):
            break
        if key == "license" and value.strip():
            return value.strip().strip("\"'")
    return None
