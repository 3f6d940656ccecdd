"""The configuration of a training run, read from TOML."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import optax

from dgjax.checkpoints.spec import ModelSpec
from dgjax.configuration import check_names, check_types, construct
from dgjax.data.config import Data
from dgjax.training import ema
from dgjax.training.adaptation import Adaptation, Adaptive, Fixed
from dgjax.training.levels import LEVELS
from dgjax.training.loss import WEIGHTINGS, EDMWeighting, Weighting
from dgjax.training.tables import Execution, Optimiser, Records

__all__ = [
    "CONFIGS",
    "TrainConfig",
    "load_config",
    "make_levels",
    "make_optimiser",
    "make_weighting",
    "shipped_configs",
]

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    A resumed run must have the configuration that it was started with, except for `execution`,
    `records` and `data.licence`.

    Attributes:
        model: the model without its weights.
        data: what to train on. Its labels are used where the network has num_classes.
        steps, batch: number of steps, and of samples in each, on all devices together.
        levels: `{"kind": "lognormal" or "uniform_logsnr", ...}`, the noise levels.
        adaptive: arguments of `Adaptive`, `{}` for its defaults, to draw noise levels where the
            loss is large; as `levels` say unless given.
        loss: `{"kind": "edm", "likelihood" or "sigmoid", ...}`, what each noise level counts.
        optimiser: the optimiser.
        ema_widths: of the weights' moving averages, relative to the length of training. The first
            is the one that is exported unless another is asked for. Of two, 0.05 and 0.1, any width
            from 0.03 to 0.2 can be made after training, its profile to within about 1 %.
        ema_snapshots: how many times in a run, evenly, the averages are kept for that. Each takes
            2 bytes for every weight and width.
        label_dropout: share of samples that are trained on without their label, in [0, 1).
        seed: of weights, order of the data, noise levels, noise and dropped labels.
        execution: how the steps are worked out.
        records: what is kept of the run and shown of it.
    """

    model: ModelSpec
    data: Data
    steps: int
    batch: int = 64
    levels: Mapping[str, Any] = field(default_factory=lambda: {"kind": "lognormal"})
    adaptive: Mapping[str, Any] | None = None
    loss: Mapping[str, Any] = field(default_factory=lambda: {"kind": "edm"})
    optimiser: Optimiser = field(default_factory=Optimiser)
    ema_widths: tuple[float, ...] = (0.05, 0.1)
    ema_snapshots: int = 32
    label_dropout: float = 0.0
    seed: int = 0
    execution: Execution = field(default_factory=Execution)
    records: Records = field(default_factory=Records)

    def __post_init__(self):
        check_types("config", vars(self), {f.name: f.type for f in fields(self)})
        for name in ("steps", "batch", "ema_snapshots"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be a positive whole number, got {getattr(self, name)}"
                )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2^32), got {self.seed}")
        make_levels(self)
        make_weighting(self)
        widths = self.ema_widths
        if not widths or len({*widths}) < len(widths):
            raise ValueError(f"ema_widths must be a list of different numbers, got {widths!r}")
        for width in widths:
            ema.exponent(width)
        if self.model.network.get("num_augmentations") not in (None, 1):
            raise ValueError(
                "num_augmentations must be 1, for mirrored images: there is no other augmentation"
            )
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout must lie in [0, 1), got {self.label_dropout}")
        if self.label_dropout and self.model.network.get("num_classes") is None:
            raise ValueError(
                "label_dropout needs a network that takes labels: set num_classes, or leave it out"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """From parsed TOML or JSON.

        Raises:
            ValueError: naming the key that is unknown or missing, or the value that is wrong.
        """
        values = dict(values)
        _check_table("config", cls, values)
        values["model"] = ModelSpec.from_dict(values["model"])
        if isinstance(values.get("ema_widths"), list):
            values["ema_widths"] = tuple(values["ema_widths"])
        for name, kind in TABLES.items():
            if name in values:
                _check_table(name, kind, values[name])
                values[name] = kind(**values[name])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """As plain tables, lists, numbers and names."""
        return {**asdict(self), "model": self.model.to_dict()}


TABLES = {"data": Data, "optimiser": Optimiser, "execution": Execution, "records": Records}


def _check_table(where: str, kind: type, values: Any) -> None:
    check_names(where, values, [f.name for f in fields(kind)])
    for f in fields(kind):
        optional = f.default is not MISSING or f.default_factory is not MISSING
        if f.name not in values and not optional:
            raise ValueError(f"{where}: {f.name} missing")


def shipped_configs() -> list[str]:
    """Names that `load_config` takes."""
    return sorted(file.stem for file in CONFIGS.glob("*.toml"))


def load_config(file: str | os.PathLike) -> TrainConfig:
    """The configuration in a TOML file, or that of `shipped_configs` by its name.

    A file that is named like one of these is meant if it is written as a path, `./NAME`.

    Raises:
        ValueError: if the file is missing or no TOML, or a key or a value in it is wrong.
    """
    names = shipped_configs()
    path = CONFIGS / f"{file}.toml" if isinstance(file, str) and file in names else Path(file)
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(
            f"cannot read the config {file} ({error}); shipped are {', '.join(names)}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    try:
        return TrainConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def make_levels(config: TrainConfig) -> Adaptation:
    """The noise levels that the configuration describes; errors as of `TrainConfig.from_dict`."""
    levels = construct("levels", LEVELS, config.levels)
    if config.adaptive is None:
        return Fixed(levels)
    if not isinstance(config.adaptive, Mapping):
        raise ValueError(f"adaptive must be a table, {{}} for defaults; got {config.adaptive!r}")
    values = {"kind": "adaptive", **config.adaptive}
    return construct("adaptive", {"adaptive": Adaptive}, values, levels=levels)


def make_weighting(config: TrainConfig) -> Weighting:
    """The weighting that the configuration describes; errors as of `TrainConfig.from_dict`."""
    if config.loss == {"kind": "edm"}:
        return EDMWeighting(config.data.sigma_data)
    return construct("loss", WEIGHTINGS, config.loss)


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """The optax optimiser that the configuration describes."""
    o = config.optimiser
    warmup = min(o.warmup, config.steps - 1)
    if o.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, o.learning_rate, warmup, config.steps)
    else:
        rate = optax.warmup_constant_schedule(0.0, o.learning_rate, warmup)
    return optax.chain(optax.clip_by_global_norm(o.clip), optax.adam(rate, b2=o.beta2))
