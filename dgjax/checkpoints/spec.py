"""Specify a model in plain numbers and names, as configurations and checkpoints hold it.

Each of `network`, `path` and `parametrization` is `{"kind": name, ...arguments}`:
the name of a constructor and its arguments. The tables below list all names.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import prod
from typing import Any

from flax import nnx

from dgjax.checkpoints.configuration import (
    check_kind,
    check_names,
    check_sizes,
    check_types,
    construct,
    is_number,
)
from dgjax.model import discrete_time, energy, parametrization, paths
from dgjax.model.field import Field
from dgjax.model.field import field as make_field
from dgjax.model.parametrization import Network
from dgjax.networks import (
    MLP,
    CLIPText,
    DhariwalUNet,
    DiT,
    EDM2UNet,
    EnergyMLP,
    EnergyUNet,
    FluxTransformer,
    SD3Transformer,
    SongUNet,
    T5Text,
    UNet,
    UNet2D,
    UNet2DCondition,
)
from dgjax.typing import short_fields

__all__ = [
    "NETWORKS",
    "PARAMETRIZATIONS",
    "PATHS",
    "TEXT_ENCODERS",
    "ModelSpec",
    "build",
    "build_network",
]

NETWORKS: dict[str, Callable[..., Any]] = {
    "mlp": MLP,
    "unet": UNet,
    "energy_mlp": EnergyMLP,
    "energy_unet": EnergyUNet,
    "unet2d": UNet2D,
    "unet2d_condition": UNet2DCondition,
    "sd3_transformer": SD3Transformer,
    "flux_transformer": FluxTransformer,
    "dit": DiT,
    "song_unet": SongUNet,
    "dhariwal_unet": DhariwalUNet,
    "edm2_unet": EDM2UNet,
}
PATHS: dict[str, Callable[..., Any]] = {
    "vp": paths.vp,
    "sub_vp": paths.sub_vp,
    "cosine": paths.cosine,
    "ve": paths.ve,
    "edm": paths.edm,
    "rectified_flow": paths.rectified_flow,
    "discrete_time": discrete_time.discrete_time,
}
PARAMETRIZATIONS: dict[str, Callable[..., Any]] = {
    "noise": parametrization.NoisePrediction,
    "denoised": parametrization.DenoisedPrediction,
    "score": parametrization.ScorePrediction,
    "v": parametrization.VPrediction,
    "velocity": parametrization.velocity_prediction,
    "preconditioned": parametrization.preconditioned,
    "ve_preconditioned": parametrization.VEPreconditioned,
    "energy": energy.energy_prediction,
}
ENERGY_NETWORKS = ("energy_mlp", "energy_unet")
TEXT_ENCODERS: dict[str, Callable[..., Any]] = {"clip_text": CLIPText, "t5_text": T5Text}
MOST_ELEMENTS = 10**9  # of one sample
# Arguments of `affine_time`.
CLOCK = ("rate", "offset")


@dataclass(frozen=True, repr=False)
class ModelSpec:
    """Everything that rebuilds a `Field`, except the weights.

    Attributes:
        shape: shape of one sample.
        network: `{"kind": name, ...arguments}`, a kind of `NETWORKS`.
        path: the same for a kind of `PATHS`.
        parametrization: the same for a kind of `PARAMETRIZATIONS`.
        t_min: the time of the smallest noise level of the model, on its path.
        t_max: the time of the largest noise level.
        clock: `{"rate": number, "offset": number}`, the arguments of
            `dgjax.model.parametrization.affine_time`: the network has the time
            s = offset + rate t, with t the time of `path`. Empty if both times are one.

    Raises:
        ValueError: if a value is wrong, or a kind or the name of an argument is unknown.
    """

    shape: tuple[int, ...]
    network: Mapping[str, Any]
    path: Mapping[str, Any]
    parametrization: Mapping[str, Any]
    t_min: float
    t_max: float
    clock: Mapping[str, float] = field(default_factory=dict)

    __repr__ = short_fields

    def __post_init__(self):
        if not (self.shape and all(isinstance(n, int) and n > 0 for n in self.shape)):
            raise ValueError(f"model: shape must be positive whole numbers, got {self.shape}")
        if prod(self.shape) > MOST_ELEMENTS:
            raise ValueError(
                f"model: samples of shape {self.shape} have more than {MOST_ELEMENTS:,} elements"
            )
        for name in ("t_min", "t_max"):
            if not is_number(getattr(self, name)):
                raise ValueError(f"model: {name} must be a number, got {getattr(self, name)!r}")
        check_kind("model.network", NETWORKS, self.network, ("shape", "rngs"))
        check_sizes("model.network", self.network)
        check_kind("model.path", PATHS, self.path, ())
        check_kind("model.parametrization", PARAMETRIZATIONS, self.parametrization, ())
        _check_energy(self.network["kind"], self.parametrization["kind"])
        spread = self.parametrization.get("sigma_data", 1.0)
        if not is_number(spread):
            raise ValueError(f"model.parametrization: sigma_data must be a number, got {spread!r}")
        if self.clock != {}:
            check_names("model.clock", self.clock, CLOCK, required=True)
            check_types("model.clock", self.clock, dict.fromkeys(CLOCK, float))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """Make a specification from parsed JSON or TOML; the inverse of `to_dict`.

        Raises:
            ValueError: naming the key that is unknown or missing, or the value that is wrong.
        """
        names = [f.name for f in fields(cls)]
        given = {"clock": {}, **values} if isinstance(values, Mapping) else values
        check_names("model", given, names, required=True)
        shape = values["shape"]
        if not isinstance(shape, list | tuple):
            raise ValueError(f"model: shape must be a list, got {shape!r}")
        return cls(**{**values, "shape": tuple(shape)})

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as plain lists, numbers and names for JSON."""
        values = {**asdict(self), "shape": list(self.shape)}
        if not self.clock:
            del values["clock"]
        return values


def _check_energy(network: str, predicted: str) -> None:
    """Raise a ValueError unless an energy network has the parametrization for it, or neither is."""
    if network in ENERGY_NETWORKS and predicted != "energy":
        raise ValueError(
            f"model.network: {network} returns an energy, and model.parametrization has the kind "
            f'{predicted}: set it to {{ kind = "energy" }}, or take another network'
        )
    if predicted == "energy" and network not in ENERGY_NETWORKS:
        raise ValueError(
            f"model.parametrization: energy is for networks that return one, and model.network has "
            f"the kind {network}: set it to {' or '.join(ENERGY_NETWORKS)}, or take another "
            "parametrization"
        )


def build(spec: ModelSpec, network: Network | None = None, *, seed: int = 0) -> Field:
    """Build the `Field` that a specification describes.

    Args:
        spec: the specification.
        network: the network with its weights; a network with fresh weights if None.
        seed: of fresh weights.

    Raises:
        ValueError: if a constructor refuses its arguments.
    """
    predicted = construct("model.parametrization", PARAMETRIZATIONS, spec.parametrization)
    return make_field(
        build_network(spec, seed) if network is None else network,
        construct("model.path", PATHS, spec.path),
        parametrization.affine_time(predicted, **spec.clock) if spec.clock else predicted,
        t_min=spec.t_min,
        t_max=spec.t_max,
        shape=spec.shape,
    )


def build_network(spec: ModelSpec, seed: int = 0) -> Network:
    """Build the network of a specification with fresh weights.

    Raises:
        ValueError: if the constructor refuses its arguments.
    """
    rngs = nnx.Rngs(seed)
    return construct("model.network", NETWORKS, spec.network, shape=spec.shape, rngs=rngs)
