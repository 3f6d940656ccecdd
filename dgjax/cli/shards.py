"""Samples streamed to disk in shards, so that any number of them needs the memory of one shard.

`shards/00000.npz`, ... hold what samples.npz would of so many latents each, `shards/options.json`
what they were asked for. A shard is in its place whole or not at all, and depends on the options
and its number alone: a run that was stopped, at any moment, goes on with those that are missing.
--batch and the number of devices may change meanwhile: they move samples by rounding errors only.
"""

import json
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgjax.cli.report import MEASURED, Moments, measure
from dgjax.devices.progress import Show, console, progress
from dgjax.files import as_json, replace_file, write_json

__all__ = ["Shards", "claim", "fill", "moments", "read"]

OPTIONS = "options.json"


class Shards(NamedTuple):
    """Shards of `size` latents in `folder`, `num` in all, at so many dials, samples of `shape`."""

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
        return self.folder / f"{i:05d}.npz"

    def span(self, i: int) -> tuple[int, int]:
        """The first latent of shard i and that after its last."""
        return i * self.size, min((i + 1) * self.size, self.num)


def claim(shards: Shards, options: dict[str, Any]) -> None:
    """Note the options in the folder, or compare them with those noted there.

    Raises:
        ValueError: if they are others, or the folder cannot be used.
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
    # A model is known by its weights, wherever they are.
    names = (name for name in {**then, **now} if name != "model")
    for name in names:
        if then.get(name) != now.get(name):
            what = "model (by its sha256)" if name == "sha256" else name
            raise ValueError(
                f"{shards.folder} holds samples made with other options: {what} was "
                f"{then.get(name)} and is {now.get(name)}; restore it, or choose another --out"
            )


def fill(shards: Shards, draw: Callable[[int, int, Show], dict[str, Any]]) -> None:
    """Write the shards that are missing or damaged: `draw(start, stop, show)` gives the arrays.

    Raises:
        ValueError: if the folder cannot be written to; what is there by then stays.
    """
    missing = [i for i in range(shards.files) if not _whole(shards, i)]
    left = sum(stop - start for start, stop in map(shards.span, missing))
    done = shards.num - left
    if done:
        console.print(f"{done} of {shards.num} latents are there already")
    with progress("sampling", shards.num * shards.dials, done * shards.dials) as show:
        for i in missing:
            arrays = draw(*shards.span(i), show)
            replace_file(shards.file(i), partial(np.savez_compressed, **arrays))


def read(shards: Shards, i: int) -> dict[str, np.ndarray]:
    """All arrays of shard i."""
    # NumPy leaves a damaged file open that it has opened itself.
    with shards.file(i).open("rb") as stream, np.load(stream) as arrays:
        return dict(arrays)


def moments(shards: Shards) -> Moments:
    """Means and spreads over all shards, of which one at a time is in memory."""

    def one(i):
        with np.load(shards.file(i)) as arrays:  # reads what is asked for alone
            return measure({name: arrays[name] for name in MEASURED})

    return reduce(Moments.join, map(one, range(shards.files)))


def _whole(shards: Shards, i: int) -> bool:
    if not shards.file(i).exists():
        return False
    start, stop = shards.span(i)
    shape = (shards.dials, stop - start)
    try:
        arrays = read(shards, i)  # to the end, for its checksums
        shapes = {arrays[name].shape for name in MEASURED}
        if shapes == {shape} and arrays["x"].shape == (*shape, *shards.shape):
            return True
    except Exception:  # NumPy and zipfile raise a handful of kinds on damaged files
        pass
    console.print(f"{shards.file(i)} is damaged and made again", style="yellow", markup=False)
    return False
