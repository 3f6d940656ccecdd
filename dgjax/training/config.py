"""The configuration of a training run, and what is made from it."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

import optax

from dgjax.checkpoints.configuration import check_names, check_types, construct
from dgjax.checkpoints.spec import ModelSpec
from dgjax.data.data_config import DataConfig
from dgjax.training import ema
from dgjax.training.consistency import Consistency
from dgjax.training.importance_sampling import DirectSampling, ImportanceSampling, NoiseSampler
from dgjax.training.loss import WEIGHTINGS, EDMWeighting, Weighting
from dgjax.training.noise_distribution import NOISE_DISTRIBUTIONS
from dgjax.training.sections import Execution, Optimiser, Records
from dgjax.training.time_score import TimeScore

__all__ = [
    "SECTIONS",
    "TrainConfig",
    "make_consistency",
    "make_noise_sampler",
    "make_optimiser",
    "make_time_score",
    "make_weighting",
]

SECTIONS = {
    "data": DataConfig,
    "optimiser": Optimiser,
    "execution": Execution,
    "records": Records,
}
MOST = {"steps": 10**9, "batch": 10**6, "ema_snapshots": 10**4}
# Former names of keys, by section, as in configurations and run folders of earlier versions.
FORMER_KEYS = {
    "config": {"levels": "noise_distribution", "adaptive": "importance_sampling"},
    "records": {"watch_every": "validate_every", "watch_samples": "validation_samples"},
}


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run.

    A resumed run may have other values of `steps`, `batch`, `ema_snapshots`, `data.path` and
    `data.licence`, and of the sections `optimiser`, `execution` and `records`. All others must be
    those that it was started with.

    Attributes:
        model: the model without its weights.
        data: the training data. Labels are used where the network has num_classes.
        steps: number of steps.
        batch: number of samples in each step, on all devices together.
        noise_distribution: `{"kind": "lognormal" or "uniform_logsnr", ...}` with the arguments of
            `LogNormal` or `UniformLogSNR`: the distribution of training noise levels.
        importance_sampling: arguments of `ImportanceSampling`, `{}` for its defaults, to draw noise
            levels more often where the loss is large; None to draw from `noise_distribution`.
        loss: `{"kind": "edm", "likelihood" or "sigmoid", ...}`, the weighting of noise levels.
        time_score: arguments of `TimeScore`, `{}` for its defaults, to train an energy network by
            its derivative in the noise level, too; None for denoising alone.
        consistency: arguments of `Consistency`, `{}` for its defaults, for a penalty on the
            inconsistency of the score; None for none.
        optimiser: the optimiser.
        ema_widths: widths of the moving averages of the weights, relative to the length of
            training. The first is the one to export unless told. From 0.05 and 0.1, any width from
            0.03 to 0.2 can be reconstructed after training, with an error of about 1 %.
        ema_snapshots: number of snapshots of the averages, evenly over the run. Each takes 2 bytes
            per weight and width.
        label_dropout: probability that a sample is trained on without its label, in [0, 1).
        seed: of weights, order of the data, noise levels, noise and label dropout, in [0, 2^32).
        init_from: the weights to start from: a checkpoint, a run folder or the name of a shipped
            model; None for fresh weights.
        execution: how steps are computed.
        records: checkpoints, logs and validation.

    Raises:
        ValueError: if a value has the wrong type, is out of range, or does not fit the others.
    """

    model: ModelSpec
    data: DataConfig
    steps: int
    batch: int = 64
    noise_distribution: Mapping[str, Any] = field(default_factory=lambda: {"kind": "lognormal"})
    importance_sampling: Mapping[str, Any] | None = None
    loss: Mapping[str, Any] = field(default_factory=lambda: {"kind": "edm"})
    time_score: Mapping[str, Any] | None = None
    consistency: Mapping[str, Any] | None = None
    optimiser: Optimiser = field(default_factory=Optimiser)
    ema_widths: tuple[float, ...] = (0.05, 0.1)
    ema_snapshots: int = 32
    label_dropout: float = 0.0
    seed: int = 0
    init_from: str | None = None
    execution: Execution = field(default_factory=Execution)
    records: Records = field(default_factory=Records)

    def __post_init__(self):
        check_types("config", vars(self), {f.name: f.type for f in fields(self)})
        for name in ("steps", "batch", "ema_snapshots"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be a positive whole number, got {getattr(self, name)}"
                )
            if getattr(self, name) > MOST[name]:
                raise ValueError(f"{name} must be at most {MOST[name]:,}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2^32), got {self.seed}")
        make_noise_sampler(self)
        make_weighting(self)
        make_time_score(self)
        make_consistency(self)
        widths = self.ema_widths
        if not widths or len({*widths}) < len(widths):
            raise ValueError(f"ema_widths must be a list of different numbers, got {widths!r}")
        for width in widths:
            ema.exponent(width)
        if self.model.network.get("num_augmentations") not in (None, 1):
            raise ValueError(
                "num_augmentations must be 1: mirroring is the only augmentation that the network "
                "can be told of"
            )
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout must lie in [0, 1), got {self.label_dropout}")
        if self.label_dropout and self.model.network.get("num_classes") is None:
            raise ValueError(
                "label_dropout needs a network that takes labels: set num_classes, or remove "
                "label_dropout"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Make a configuration from parsed TOML or JSON.

        Former names of keys are read too: `levels`, `adaptive`, `records.watch_every` and
        `records.watch_samples`.

        Args:
            values: sections, lists, numbers and names.

        Raises:
            ValueError: if a key is unknown or missing or a value is wrong; the message names it.
        """
        values = _check_section("config", cls, values)
        given = {name: kind for name, kind in SECTIONS.items() if name in values}
        values |= {name: _check_section(name, kind, values[name]) for name, kind in given.items()}
        missing = _missing(cls, values)
        for name, kind in {"model": ModelSpec, **given}.items():
            if isinstance(values.get(name), Mapping):
                missing += [f"{name}.{key}" for key in _missing(kind, values[name])]
        if missing:
            raise ValueError(
                f"config: {', '.join(missing)} missing; `dgjax train digits --show` prints a whole "
                "configuration to copy, and `dgjax train reference --show` one that explains every "
                "key"
            )
        values["model"] = ModelSpec.from_dict(values["model"])
        values |= {name: kind(**_tuples(values[name])) for name, kind in given.items()}
        if isinstance(values.get("ema_widths"), list):
            values["ema_widths"] = tuple(values["ema_widths"])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as nested dictionaries, as `from_dict` takes it."""
        return {**asdict(self), "model": self.model.to_dict()}


def _check_section(where: str, kind: type, values: Any) -> dict[str, Any]:
    """Return the values of a section by their present keys; raise if a key is wrong."""
    if isinstance(values, Mapping):
        values = _by_present_keys(where, values)
    check_names(where, values, [f.name for f in fields(kind)])
    return values


def _missing(kind: type, values: Mapping[str, Any]) -> list[str]:
    """Return the keys without a default that are not there."""
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    return [name for name in needed if name not in values]


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with tuples in place of lists, which TOML and JSON have."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def _by_present_keys(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    renamed = dict(values)
    for former, present in FORMER_KEYS.get(where, {}).items():
        if former not in renamed:
            continue
        if present in renamed:
            raise ValueError(
                f"{where}: {former} is the former name of {present}, and both are given; remove "
                f"{former}"
            )
        renamed[present] = renamed.pop(former)
    return renamed


def make_noise_sampler(config: TrainConfig) -> NoiseSampler:
    """Return the sampler of noise levels.

    Args:
        config: of the run.

    Raises:
        ValueError: if `noise_distribution` or `importance_sampling` is wrong.
    """
    distribution = construct("noise_distribution", NOISE_DISTRIBUTIONS, config.noise_distribution)
    found = _make_optional(
        "importance_sampling",
        ImportanceSampling,
        config.importance_sampling,
        distribution=distribution,
    )
    return DirectSampling(distribution) if found is None else found


def make_time_score(config: TrainConfig) -> TimeScore | None:
    """Return the settings of time-score matching, or None for denoising alone.

    Args:
        config: of the run.

    Raises:
        ValueError: if `time_score` is wrong, or the model is no energy model.
    """
    found = _make_optional("time_score", TimeScore, config.time_score)
    if found is not None and config.model.parametrization["kind"] != "energy":
        raise ValueError(
            "time_score trains energy networks: set model.parametrization to the kind energy, and "
            "model.network to energy_mlp or energy_unet, or remove the section"
        )
    return found


def make_consistency(config: TrainConfig) -> Consistency | None:
    """Return the settings of the penalty on inconsistency, or None for none.

    Args:
        config: of the run.

    Raises:
        ValueError: if `consistency` is wrong.
    """
    return _make_optional("consistency", Consistency, config.consistency)


def _make_optional(where: str, kind: type, given: Any, **others: Any) -> Any:
    """Construct what an optional section describes; None without the section."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} must be a section, {{}} for defaults; got {given!r}")
    return construct(where, {where: kind}, {"kind": where, **given}, **others)


def make_weighting(config: TrainConfig) -> Weighting:
    """Return the weighting of the loss; the kind "edm" takes `data.sigma_data`.

    Args:
        config: of the run.

    Raises:
        ValueError: if `loss` is wrong.
    """
    if config.loss == {"kind": "edm"}:
        return EDMWeighting(config.data.sigma_data)
    return construct("loss", WEIGHTINGS, config.loss)


def make_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Return the optax optimiser, with clipping and learning-rate schedule.

    Args:
        config: of the run.
    """
    o = config.optimiser
    warmup = min(o.warmup, config.steps - 1)
    if o.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, o.learning_rate, warmup, config.steps)
    else:  # joined, since a linear schedule of 0 steps stays at 0 for ever
        increase = optax.linear_schedule(0.0, o.learning_rate, warmup)
        rate = optax.join_schedules([increase, optax.constant_schedule(o.learning_rate)], [warmup])
    return optax.chain(optax.clip_by_global_norm(o.clip), optax.adam(rate, b2=o.beta2))
