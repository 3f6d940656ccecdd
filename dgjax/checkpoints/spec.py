"""A model written down as plain numbers and names, as configs and checkpoints hold it.

`network`, `path`, `parametrization` and `autoencoder` are each a `kind` and that constructor's
arguments; the four tables below are all the names there are.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Protocol, get_args, get_origin

from flax import nnx

from dgjax.model import discrete_time, parametrization, paths
from dgjax.model.field import Field, field
from dgjax.model.parametrization import Network
from dgjax.networks import (
    MLP,
    AutoencoderKL,
    DhariwalUNet,
    DiT,
    SongUNet,
    UNet,
    UNet2D,
    identity_autoencoder,
)
from dgjax.typing import Key, Sample

__all__ = [
    "Autoencoder",
    "ModelSpec",
    "build",
    "build_autoencoder",
    "build_network",
    "check_autoencoder",
    "check_fields",
    "check_names",
    "check_types",
    "construct",
    "unknown_name",
]

NETWORKS: dict[str, Callable[..., Any]] = {
    "mlp": MLP,
    "unet": UNet,
    "unet2d": UNet2D,
    "dit": DiT,
    "song_unet": SongUNet,
    "dhariwal_unet": DhariwalUNet,
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
    "velocity": parametrization.velocity,
    "preconditioned": parametrization.preconditioned,
}
AUTOENCODERS: dict[str, Callable[..., Any]] = {
    "pixels": identity_autoencoder,
    "autoencoder_kl": AutoencoderKL,
}


class Autoencoder(Protocol):
    """Between a model's samples and pictures, one at a time."""

    image_shape: tuple[int, ...]

    def encode(self, image: Sample, *, key: Key | None = None) -> Sample: ...

    def decode(self, x: Sample) -> Sample: ...


@dataclass(frozen=True)
class ModelSpec:
    """Everything that rebuilds a `Field`, except the weights.

    Attributes:
        shape: of one sample.
        network, path, parametrization: `{"kind": name, ...arguments}`; names are in the tables
            of this module.
        t_min, t_max: the model's own range, as times on its path.
    """

    shape: tuple[int, ...]
    network: Mapping[str, Any]
    path: Mapping[str, Any]
    parametrization: Mapping[str, Any]
    t_min: float
    t_max: float

    def __post_init__(self):
        if not (self.shape and all(isinstance(n, int) and n > 0 for n in self.shape)):
            raise ValueError(f"model: shape must be positive whole numbers, got {self.shape}")
        for name in ("t_min", "t_max"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"model: {name} must be a number, got {getattr(self, name)!r}")
        _resolve("model.network", NETWORKS, self.network, ("shape", "rngs"))
        _resolve("model.path", PATHS, self.path, ())
        _resolve("model.parametrization", PARAMETRIZATIONS, self.parametrization, ())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
        """From parsed JSON or TOML.

        Raises:
            ValueError: naming the key that is unknown or missing, or the value that is wrong.
        """
        check_names("model", values, [f.name for f in fields(cls)], required=True)
        shape = values["shape"]
        if not isinstance(shape, list | tuple):
            raise ValueError(f"model: shape must be a list, got {shape!r}")
        return cls(**{**values, "shape": tuple(shape)})

    def to_dict(self) -> dict[str, Any]:
        """As plain lists, numbers and names for JSON."""
        return {**asdict(self), "shape": list(self.shape)}


def build(spec: ModelSpec, network: Network | None = None, *, seed: int = 0) -> Field:
    """The field that `spec` describes, with `network`, or with fresh weights from `seed`.

    Raises:
        ValueError: if a name or an argument is unknown, or a constructor refuses its arguments.
    """
    return field(
        build_network(spec, seed) if network is None else network,
        construct("model.path", PATHS, spec.path),
        construct("model.parametrization", PARAMETRIZATIONS, spec.parametrization),
        t_min=spec.t_min,
        t_max=spec.t_max,
    )


def build_network(spec: ModelSpec, seed: int = 0) -> Network:
    """The network of `spec` with fresh weights from `seed`; errors as of `build`."""
    rngs = nnx.Rngs(seed)
    return construct("model.network", NETWORKS, spec.network, shape=spec.shape, rngs=rngs)


def check_autoencoder(values: Any) -> None:
    """Raise a ValueError unless `values` describe an autoencoder."""
    _resolve("autoencoder", AUTOENCODERS, values, ("shape", "rngs"))


def build_autoencoder(
    values: Mapping[str, Any], shape: tuple[int, ...], seed: int = 0
) -> Autoencoder:
    """The autoencoder that `values` describes, for samples of `shape`; errors as of `build`."""
    return construct("autoencoder", AUTOENCODERS, values, shape=shape, rngs=nnx.Rngs(seed))


def construct(
    where: str, table: Mapping[str, Callable[..., Any]], values: Mapping[str, Any], **given: Any
) -> Any:
    """Call `table[values["kind"]]` with the other values, lists turned into tuples.

    Raises:
        ValueError: if the kind or an argument is unknown, missing or refused; `where` says where.
    """
    maker, arguments = _resolve(where, table, values, given)
    try:
        return maker(**arguments, **given)
    except TypeError as error:
        kind = values["kind"]
        raise ValueError(f"{where}: {kind} does not take these values: {error}") from error


def _resolve(
    where: str,
    table: Mapping[str, Callable[..., Any]],
    values: Mapping[str, Any],
    given: Iterable[str],
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What `construct` calls and with what, but for what is `given`; errors as there."""
    if not isinstance(values, Mapping) or not isinstance(values.get("kind"), str):
        raise ValueError(f"{where} needs a kind: one of {', '.join(table)}")
    kind = values["kind"]
    if kind not in table:
        raise unknown_name(f"{where}: kind", kind, table)
    # A flax module's class has the signature of its metaclass, so ask its constructor.
    maker = table[kind].__init__ if inspect.isclass(table[kind]) else table[kind]
    kinds = {
        name: parameter.annotation
        for name, parameter in inspect.signature(maker).parameters.items()
        if name not in (*given, "self")
    }
    arguments = {k: _as_tuple(v) for k, v in values.items() if k != "kind"}
    check_names(where, arguments, kinds)
    check_types(f"{where}: {kind} does not take these values", arguments, kinds)
    return table[kind], arguments


def check_names(where: str, values: Any, names: Iterable[str], *, required: bool = False) -> None:
    """Raise a ValueError unless `values` is a table with keys among `names` (all, if required)."""
    names = list(names)
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a table of names and values, got {values!r}")
    for key in values:
        if key not in names:
            raise unknown_name(f"{where}: key", key, names)
    missing = [name for name in names if required and name not in values]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing")


def check_types(where: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise a ValueError unless each value is of its annotated kind: TOML's, of any depth.

    Whole numbers are numbers too, true and false are not. What is annotated otherwise (an array,
    a table) is left to who takes it.
    """
    for name, value in values.items():
        if not _fits(value, kinds[name]):
            raise ValueError(f"{where}: {name} must be {_named(kinds[name])}, got {value!r}")


def check_fields(where: str, section: Any) -> None:
    """Raise a ValueError unless each field of the dataclass `section` is of its annotated kind."""
    check_types(where, vars(section), {f.name: f.type for f in fields(section)})


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        one = get_args(kind)[0]
        return isinstance(value, tuple | list) and all(_fits(v, one) for v in value)
    if kind is float:
        return _is_number(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (bool, str, NoneType) else True


def _named(kind: Any) -> str:
    if isinstance(kind, UnionType):
        return " or ".join(_named(one) for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is tuple:
        return f"a list, each {_named(get_args(kind)[0])}"
    names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
    return names[kind]


def unknown_name(what: str, name: str, names: Iterable[str]) -> ValueError:
    """The error that says what there is instead of `name`, and which of it is nearest."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{what} {name!r} is unknown: there is {', '.join(names) or 'none'}{hint}")


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
