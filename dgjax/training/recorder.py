"""Curves and pictures of a run: `metrics.jsonl`, TensorBoard events and `samples/STEP.png`.

A run may be killed after its last checkpoint and continue from that checkpoint. Lines and events of
later steps are then removed, because those steps are taken again.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from dgjax.files import replace_file
from dgjax.messages import install_line
from dgjax.pictures.png import to_image
from dgjax.pictures.quantization import to_uint8
from dgjax.training.cleanup import on_exit

__all__ = ["Log", "Recorder", "open_recorder"]

# A logger of the user's: `log(step, values)` with numbers and uint8 pictures (H, W, 3) by name.
Log = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True)
class Recorder:
    """Writes the curves and pictures of one run; made by `open_recorder`.

    Attributes:
        run_dir: the run folder.
        log: the open `metrics.jsonl`.
        events: the TensorBoard writer.
        also: further logger, or None.
    """

    run_dir: Path
    log: TextIO
    events: Any
    also: Log | None = None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Append one line to `metrics.jsonl`, and one point to each TensorBoard curve.

        Args:
            step: number of steps taken.
            values: named numbers.

        Raises:
            ValueError: if they cannot be written.
        """
        line = {"step": step, **values, "time": round(time.time(), 3)}
        with _write_errors_explained(self.run_dir):
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()
            for name, value in values.items():
                self.events.add_scalar(name, value, step)
        if self.also is not None:
            self.also(step, dict(values))

    def picture(self, step: int, x: np.ndarray, data_range: tuple[float, float]) -> None:
        """Write images as one grid to `samples/STEP.png` and to TensorBoard.

        Args:
            step: number of steps taken.
            x: images in the model's coordinates, (n, h, w, c).
            data_range: values of black and of white.

        Raises:
            ValueError: if the picture cannot be written.
        """
        grid = to_image(to_uint8(_tile(x), data_range))
        folder, shown = self.run_dir / "samples", np.asarray(grid.convert("RGB"))
        with _write_errors_explained(self.run_dir):
            folder.mkdir(exist_ok=True)
            grid.save(folder / f"{step}.png")
            self.events.add_image("samples", shown, step, dataformats="HWC")
        if self.also is not None:
            self.also(step, {"samples": shown})


def _tile(x: np.ndarray) -> np.ndarray:
    """Arrange images (n, h, w, c) in one nearly square grid; unused cells are blank."""
    n, height, width, channels = x.shape
    across = math.ceil(math.sqrt(n))
    down = math.ceil(n / across)
    blank = np.full((down * across - n, height, width, channels), x.min(), x.dtype)
    cells = np.concatenate([x, blank]).reshape(down, across, height, width, channels)
    return cells.transpose(0, 2, 1, 3, 4).reshape(down * height, across * width, channels)


def _remove_later_lines(file: Path, start: int) -> None:
    """Remove the lines after step `start`, and a half-written last line, atomically."""
    text = file.read_text() if file.exists() else ""
    lines = [line for line in text.splitlines() if line.endswith("}")]
    kept = "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= start)
    if kept != text:
        replace_file(file, lambda stream: stream.write(kept.encode()))


@contextmanager
def _write_errors_explained(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write the records of {run_dir} ({error}); make room there, or make it "
            "writable, and run again"
        ) from error


@contextmanager
def open_recorder(run_dir: Path, start: int, log: Log | None = None) -> Iterator[Recorder]:
    """Open the records of a run, and close them at the end of the block.

    An error that ends the block is raised unchanged.

    Args:
        run_dir: the run folder.
        start: step from which the run continues; records of later steps are removed.
        log: also called with every number and picture.

    Yields:
        The recorder.

    Raises:
        ValueError: if tensorboardX is not installed or the files cannot be written.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(f"training needs tensorboardX: `{install_line('train')}`") from error
    file = run_dir / "metrics.jsonl"
    explained = _write_errors_explained
    with explained(run_dir):
        _remove_later_lines(file, start)
        lines = file.open("a")
    with on_exit(explained(run_dir)(lines.close)):
        with explained(run_dir):
            events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)
        with on_exit(explained(run_dir)(events.close)):
            yield Recorder(run_dir, lines, events, log)
