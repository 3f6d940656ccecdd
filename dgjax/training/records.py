"""What a run writes down as it goes: `metrics.jsonl`, TensorBoard's events, pictures.

Lines and events after the step that a run goes on from belong to steps that will be done again,
and are taken out.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from dgjax.files import replace_file
from dgjax.pictures.png import to_image
from dgjax.pictures.quantization import to_uint8
from dgjax.training.closing import finishing

__all__ = ["Recorder", "recorder"]


@dataclass(frozen=True)
class Recorder:
    """Writes to the folder of one run; made by `recorder`."""

    run_dir: Path
    log: TextIO
    events: Any

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of `metrics.jsonl`, and a point of each curve.

        Raises:
            ValueError: if they cannot be written.
        """
        line = {"step": step, **values, "time": round(time.time(), 3)}
        with _explained(self.run_dir):
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()
            for name, value in values.items():
                self.events.add_scalar(name, value, step)

    def picture(self, step: int, x: np.ndarray, data_range: tuple[float, float]) -> None:
        """Images (n, h, w, c) in the model's coordinates as one grid, `samples/STEP.png`.

        Raises:
            ValueError: if it cannot be written.
        """
        grid = to_image(to_uint8(tiled(x), data_range))
        folder, shown = self.run_dir / "samples", np.asarray(grid.convert("RGB"))
        with _explained(self.run_dir):
            folder.mkdir(exist_ok=True)
            grid.save(folder / f"{step}.png")
            self.events.add_image("samples", shown, step, dataformats="HWC")


def tiled(x: np.ndarray) -> np.ndarray:
    """Images (n, h, w, c) as one of about as many rows as columns; what is left over is blank."""
    n, height, width, channels = x.shape
    across = math.ceil(math.sqrt(n))
    down = math.ceil(n / across)
    blank = np.full((down * across - n, height, width, channels), x.min(), x.dtype)
    cells = np.concatenate([x, blank]).reshape(down, across, height, width, channels)
    return cells.transpose(0, 2, 1, 3, 4).reshape(down * height, across * width, channels)


def _cut(file: Path, start: int) -> None:
    """Take out of `file` what comes after step `start`, without a moment when the rest is gone."""
    text = file.read_text() if file.exists() else ""
    lines = [line for line in text.splitlines() if line.endswith("}")]
    kept = "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= start)
    if kept != text:
        replace_file(file, lambda stream: stream.write(kept.encode()))


@contextmanager
def _explained(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write the records of {run_dir} ({error}); make room there, or make it "
            "writable, and run again"
        ) from error


@contextmanager
def recorder(run_dir: Path, start: int) -> Iterator[Recorder]:
    """Open the records of the run in `run_dir`, which goes on after step `start`.

    Raises:
        ValueError: if tensorboardX is not installed or the files cannot be written. An error
            that ends the block comes through as it is.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError('training needs tensorboardX: `pip install "dgjax[train]"`') from error
    file = run_dir / "metrics.jsonl"
    with _explained(run_dir):
        _cut(file, start)
        log = file.open("a")
    with finishing(_explained(run_dir)(log.close)):
        with _explained(run_dir):
            events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)
        with finishing(_explained(run_dir)(events.close)):
            yield Recorder(run_dir, log, events)
