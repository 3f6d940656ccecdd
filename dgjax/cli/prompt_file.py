"""The option `--prompts`: a file of prompts, each with a folder of its own."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

from dgjax.checkpoints.conditions import Condition, Negative, encode_prompts
from dgjax.checkpoints.opened import Model
from dgjax.cli.options import note_unread
from dgjax.devices.progress import progress

__all__ = ["PROMPTS", "encode_all", "prompt_folders", "read_prompts"]

SHOWN = 40  # characters of a prompt in the name of its folder
PROMPTS = Annotated[
    Path | None,
    typer.Option(
        help="Text file with one prompt a line, instead of --prompt. Each has a folder in --out, "
        "with the same latents. To continue a stopped run, run the same command again: what is "
        "drawn already is kept.",
        show_default="none",
    ),
]


def read_prompts(file: Path) -> list[str]:
    """Read the prompts in a file, one a line, without empty lines.

    Args:
        file: the option --prompts.

    Raises:
        ValueError: if it cannot be read as UTF-8 text, or has no prompts.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ValueError(f"the prompts in {file} cannot be read: {reason}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{file} has no prompts: write one a line")
    return prompts


def prompt_folders(prompts: Sequence[str]) -> list[str]:
    """Return a name for the folder of each prompt: its number from 0 and its first words.

    Args:
        prompts: the prompts.
    """

    def words(prompt: str) -> str:
        plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
        return "-".join(re.findall("[a-z0-9]+", plain))[:SHOWN].strip("-")

    return [f"{i:05d}-{words(prompt)}".rstrip("-") for i, prompt in enumerate(prompts)]


def encode_all(
    chosen: Model,
    prompts: Sequence[str],
    *,
    negative: Negative | None = None,
    distilled: float | None = None,
) -> list[Condition]:
    """Encode all prompts before the first sample is drawn, and keep them in the host's memory.

    Args:
        chosen: the model.
        prompts: the texts.
        negative: as of `encode_prompts`.
        distilled: as of `encode_prompts`.

    Raises:
        ValueError: as of `encode_prompts`, with the number of the prompt.
    """
    found: list[Condition] = []
    encoded = encode_prompts(chosen, prompts, negative=negative, distilled=distilled)
    with progress("encoding prompts", len(prompts)) as show:
        try:
            for one in encoded:
                cond = jax.tree.map(np.asarray, one.cond)
                note_unread(one)
                found.append(one._replace(cond=cond))
                show(1)
        except ValueError as error:
            raise ValueError(f"prompt {len(found) + 1} of {len(prompts)}: {error}") from error
    return found
