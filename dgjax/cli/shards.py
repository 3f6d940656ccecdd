"""Shards of `dgjax sample`: any number of samples, with one shard in memory at a time.

`shards/00000.npz` and the following files hold the arrays of samples.npz for a fixed number of
latents each. `shards/options.json` records the options with which they were made. A shard is
written completely or not at all, and depends on the options and its number alone, so a run that
was stopped at any moment continues with the missing shards. --batch and the number of devices may
change meanwhile: they change samples by rounding errors only.
"""

import json
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgjax.cli.report import MEASURED, measure, measured_values
from dgjax.devices.progress import Show, progress, say
from dgjax.evaluation.moments import Moments
from dgjax.files import as_json, replace_file, write_json

__all__ = ["Shards", "measure_shards", "read_shard", "record_options", "write_missing"]

OPTIONS = "options.json"


class Shards(NamedTuple):
    """Names and sizes of the shards in one folder.

    Attributes:
        folder: the folder.
        num: number of latents in all shards.
        size: number of latents in one shard; the last may have fewer.
        dials: number of values of q, or of targets, per latent.
        shape: shape of one sample.
    """

    folder: Path
    num: int
    size: int
    dials: int
    shape: tuple[int, ...]

    @property
    def files(self) -> int:
        """Number of shards."""
        return -(-self.num // self.size)

    def file(self, i: int) -> Path:
        """Return the file of shard i."""
        return self.folder / f"{i:05d}.npz"

    def span(self, i: int) -> tuple[int, int]:
        """Return the first latent of shard i, and the one after its last."""
        return i * self.size, min((i + 1) * self.size, self.num)


def record_options(shards: Shards, options: dict[str, Any]) -> None:
    """Record the options in the folder, or compare them with those recorded there.

    Args:
        shards: the shards.
        options: everything on which the samples depend.

    Raises:
        ValueError: if other options are recorded, or the folder cannot be used.
    """
    file, now = shards.folder / OPTIONS, json.loads(as_json(options))
    try:
        shards.folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            if any(shards.folder.glob("*.npz")):
                raise ValueError(
                    f"{shards.folder} holds npz files and no {OPTIONS} that says what they are: "
                    "choose another --out"
                )
            write_json(file, options)
        then = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"cannot write to {shards.folder}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file} is damaged ({error}): remove it with its shards, or choose another --out"
        ) from error
    # The sha256 of its weights identifies a model, wherever its folder is.
    names = (name for name in {**then, **now} if name not in ("model", "guidance_model"))
    for name in names:
        if then.get(name) != now.get(name):
            what = "model (by its sha256)" if name == "sha256" else name
            raise ValueError(
                f"{shards.folder} holds samples made with other options: {what} was "
                f"{then.get(name)} and is {now.get(name)}; restore it, or choose another --out"
            )


def write_missing(shards: Shards, draw: Callable[[int, int, Show], dict[str, Any]]) -> None:
    """Write the shards that are missing or damaged.

    Args:
        shards: the shards.
        draw: `draw(start, stop, show)` returns the arrays of latents `start` to `stop`.

    Raises:
        ValueError: if the folder cannot be written to. Shards written before stay.
    """
    missing = [i for i in range(shards.files) if not _is_complete(shards, i)]
    left = sum(stop - start for start, stop in map(shards.span, missing))
    done = shards.num - left
    if done:
        say(f"{done} of {shards.num} latents are there already")
    with progress("sampling", shards.num * shards.dials, done * shards.dials) as show:
        for i in missing:
            arrays = draw(*shards.span(i), show)
            replace_file(shards.file(i), partial(np.savez_compressed, **arrays))


def read_shard(shards: Shards, i: int) -> dict[str, np.ndarray]:
    """Return all arrays of shard i."""
    # NumPy does not close a damaged file if it has opened it itself.
    with shards.file(i).open("rb") as stream, np.load(stream) as arrays:
        return dict(arrays)


def measure_shards(shards: Shards) -> Moments:
    """Compute the moments of `measure` over all shards, with one in memory at a time."""

    def one(i):
        with np.load(shards.file(i)) as arrays:  # reads only the arrays that are used
            return measure(arrays)

    return reduce(Moments.join, map(one, range(shards.files)))


def _is_complete(shards: Shards, i: int) -> bool:
    if not shards.file(i).exists():
        return False
    start, stop = shards.span(i)
    shape = (shards.dials, stop - start)
    try:
        arrays = read_shard(shards, i)  # the whole file, so that its checksums are compared
        found = measured_values(arrays).shape
        if found == (len(MEASURED), *shape) and arrays["x"].shape == (*shape, *shards.shape):
            return True
    except Exception:  # NumPy and zipfile raise a handful of kinds on damaged files
        pass
    say(f"{shards.file(i)} is damaged and made again", warning=True)
    return False
