"""Functions shared by the experiments on the papers' claims: start, batches, intervals, files."""

import argparse
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from dgjax.checkpoints.opened import Model, open_model
from dgjax.cli.options import choose_conditioned
from dgjax.data.named_datasets import DATASETS
from dgjax.devices.batches import map_batches
from dgjax.evaluation.intervals import Estimate
from dgjax.evaluation.reference_data import open_reference_data
from dgjax.files import replace_file
from dgjax.pictures.latents import from_pictures, to_levels
from dgjax.pictures.png import encode_png

FIGURES = Path(__file__).parent / "figures"
# Of Okabe and Ito, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LEAST = 8  # rows to an interval: fewer, drawn again, are too often all the same


class Preset(NamedTuple):
    """Size of an experiment: latents (or images) per group, solver steps, samples per call."""

    count: int
    steps: int
    batch: int


PRESETS = {
    "laptop": Preset(64, 32, 16),  # two cores
    "cifar10": Preset(1024, 64, 256),  # one accelerator
    "imagenet": Preset(1024, 64, 32),
}


class Setup(NamedTuple):
    """Model, size, seed and data of an experiment."""

    model: Model
    preset: Preset
    seed: int
    data: str | None
    keep: Path | None

    @property
    def title(self) -> str:
        """Return the name of the model for names of files: of a folder its last part."""
        return Path(self.model.name).name

    @property
    def sigmas(self) -> tuple[float, float]:
        """Return the smallest and the largest noise level sigma/alpha of the model."""
        facts = self.model.facts()
        return facts["t_min"], facts["t_max"]


def start(doc: str, *options: argparse.ArgumentParser) -> Setup:
    """Read the command line; a wrong option ends with one line and exit status 2.

    `options` are parsers of an experiment's own options, without help.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0], parents=options)
    parser.add_argument("--model", help="shipped model or checkpoint folder (fashion-mnist)")
    parser.add_argument("--class", dest="class_", help="condition on this class")
    parser.add_argument("--prompt", help="condition on this text, for a model of prompts")
    parser.add_argument("--height", type=int, help="of the pictures, where weights allow another")
    parser.add_argument("--width", type=int)
    parser.add_argument("--dtype", default="float32", help="of the weights in memory")
    parser.add_argument("--preset", choices=PRESETS, default="laptop")
    parser.add_argument("--count", type=int, help="latents or images of a group (8 or more)")
    parser.add_argument("--steps", type=int, help="of the solver, for the preset's")
    parser.add_argument("--batch", type=int, help="samples in one compiled call, for the preset's")
    parser.add_argument("--data", help="data set, npz file or folder, for that of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder of parts: done ones are not done again")
    asked = parser.parse_args()
    if asked.preset != "laptop" and asked.model is None:
        parser.error(f"preset {asked.preset} needs a model of that size: give --model FOLDER")
    preset = PRESETS[asked.preset]
    for name, least in (("count", LEAST), ("steps", 2), ("batch", 1)):
        if (value := getattr(asked, name)) is not None:
            if value < least:
                parser.error(f"--{name} must be at least {least}, got {value}")
            preset = preset._replace(**{name: value})
    try:
        name, size = asked.model or "fashion-mnist", (asked.height, asked.width)
        if asked.class_ is None and asked.prompt is None:
            model = open_model(name, height=size[0], width=size[1], dtype=asked.dtype)
        else:
            condition = asked.class_, asked.prompt
            model = choose_conditioned(name, *condition, size=size, dtype=asked.dtype)
    except ValueError as error:
        parser.error(str(error))
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=COLOURS)
    plt.rcParams["axes.grid"], plt.rcParams["grid.alpha"] = True, 0.3
    return Setup(model, preset, asked.seed, asked.data, asked.keep)


def start_unconditional(doc: str, *options: argparse.ArgumentParser) -> Setup:
    """`start` for experiments that choose classes themselves, and so take none."""
    setup = start(doc, *options)
    if setup.model.label is not None or setup.model.prompt is not None:
        raise SystemExit(
            "error: this experiment chooses the classes: leave --class and --prompt out"
        )
    return setup


def images(setup: Setup, num: int, part: str = "held-out") -> np.ndarray:
    """Return (n, *shape) real images in the model's coordinates: `num`, or all if fewer.

    With --class they are of that class. Those of a latent model are encoded.
    """
    label = setup.model.label
    try:
        if setup.model.prompt is not None:
            raise ValueError("there are no real images of a prompt: leave --prompt out")
        labels = "none" if label is None else "data"
        data = open_reference_data(setup.model, setup.data, part, None, labels, 1, setup.seed)
        rows = data.order if label is None else data.order[data.labels[data.order] == label]
        found = data.dataset.batch(rows[:num])
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    return from_pictures(setup.model, found)


def has_images(setup: Setup) -> bool:
    """Return whether there are real images: of --data, or a set by the name in the model."""
    known = setup.data is not None or setup.model.meta.dataset in set(DATASETS) - {"npz", "folder"}
    return known and setup.model.prompt is None


def levels(setup: Setup, x: np.ndarray) -> np.ndarray:
    """Return samples (..., *shape) as uint8 pictures (..., H, W, C); latents are decoded."""
    return to_levels(setup.model, x)


def sizes(setup: Setup, x: np.ndarray) -> np.ndarray:
    """Return the sizes (n,) in bytes of samples (n, *shape) as PNG files."""
    return np.array([len(encode_png(picture)) for picture in levels(setup, x)])


def each(what: str, one: Callable[..., Any], setup: Setup, *items: Any) -> Any:
    """Map `one(field, *item)` over items, in compiled batches on all local devices."""

    @jax.jit
    def run(field, batch):
        return jax.vmap(lambda *item: one(field, *item))(*batch)

    return map_batches(what, run, items, setup.preset.batch, setup.model.field)


def kept(setup: Setup, name: str, make: Callable[[], Iterable[Any]]) -> list[np.ndarray]:
    """Return the arrays that `make` returns, from the folder of `--keep` if it has them.

    `name` says all that they depend on, besides the model, its condition, the data and the seed.
    """
    if setup.keep is None:
        return [np.asarray(a) for a in make()]
    known = repr((setup.model.facts(), setup.data, setup.seed))
    digest = hashlib.sha256(known.encode()).hexdigest()[:12]
    file = setup.keep / f"{setup.title}-{digest}-{name}.npz"
    if not file.exists():
        arrays = list(make())
        replace_file(file, lambda stream: np.savez(stream, *arrays))
    with np.load(file) as found:
        return [found[f"arr_{i}"] for i in range(len(found.files))]


def keys(setup: Setup, num: int, stream: int = 0) -> jax.Array:
    """Return (num,) keys that are different for each `stream`."""
    return jax.random.split(jax.random.fold_in(jax.random.key(setup.seed), stream), num)


def bootstrap(statistic: Callable[..., Any], *samples: Any, seed: int = 0) -> Estimate:
    """Return `statistic(*samples, axis=...)` with its 95 % bootstrap interval (BCa).

    Rows of all samples are drawn together.

    Raises:
        ValueError: if there are fewer than 8 rows, or one is not finite.
    """
    arrays = [np.asarray(a, np.float64) for a in samples]
    if len(arrays[0]) < LEAST:
        raise ValueError(f"an interval needs {LEAST} values, got {len(arrays[0])}: raise --count")
    if not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("values must be finite; some are NaN or infinite: take more steps")
    value = float(statistic(*arrays, axis=-1))
    if all(np.ptp(a) == 0 for a in arrays):
        return Estimate(value, value, value)
    found = stats.bootstrap(
        arrays, statistic, paired=True, vectorized=True, n_resamples=4999, rng=seed
    ).confidence_interval
    return Estimate(value, float(found.low), float(found.high))


def correlation(x: Any, y: Any, *, seed: int = 0) -> Estimate:
    """Return Pearson's correlation with the interval of `bootstrap`."""

    def pearson(x, y, axis):
        return stats.pearsonr(x, y, axis=axis).statistic

    return bootstrap(pearson, x, y, seed=seed)


def deviation(values: Any, *, seed: int = 0) -> Estimate:
    """Return the standard deviation with the interval of `bootstrap`."""
    return bootstrap(lambda a, axis: np.std(a, axis=axis, ddof=1), values, seed=seed)


def mean_error(values: Any, digits: int = 1) -> str:
    """Write the mean ± its standard error over the values."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():,.{digits}f} ± {error:.{digits}f}"


def probe_error(errors: Any) -> str:
    """Write the root mean square of standard errors, in nats."""
    return f"{np.sqrt(np.mean(np.square(np.asarray(errors, np.float64)))):.1f}"


def between(estimate: Estimate, digits: int = 2) -> str:
    """Write an estimate with its interval."""
    value, low, high = (f"{number:.{digits}f}" for number in estimate)
    return f"{value} [{low}, {high}]"


def report(name: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a Markdown table and write it to figures/NAME.md."""
    header = list(header)
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    print("\n".join(lines), flush=True)
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / f"{name}.md").write_text("\n".join(lines) + "\n")


def save(figure: Any, name: str) -> None:
    """Write a figure to figures/NAME.png."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=130)
