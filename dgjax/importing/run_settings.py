"""Read the settings of a training run, from a small file beside the weights or from theirs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from dgjax.checkpoints.configuration import unknown_name
from dgjax.importing.model_folder import read_json
from dgjax.importing.weights import training_run

__all__ = ["Settings", "choice", "find_settings", "integer", "sides", "switch"]

# Names of such files after that of the weights with another ending.
NAMES = ("config.json", "args.json", "config.yaml", "config.yml", "args.yaml")
# They do not change the model: settings of training, of its data, of sampling and of precision.
IGNORED = {
    *("attention_resolutions", "batch_size", "checkpoint", "dataset", "dropout", "ema_decay"),
    *("ema_rate", "epochs", "lr", "seed", "steps", "timestep_respacing", "use_checkpoint"),
    *("use_ema", "use_fp16", "use_kl", "weight_decay", "rescale_learned_sigmas", "channel_mult"),
}


class Settings(NamedTuple):
    """Settings of a training run.

    Attributes:
        values: values by name, with underscores in the names.
        place: where they are from, for messages: a file, or where one is expected.
    """

    values: dict[str, Any]
    place: str


def find_settings(path: Path, known: Iterable[str]) -> Settings:
    """Find the settings of the training run that made weights.

    The file is called like that of the weights, with the ending .json or .yaml, or config or args;
    in args, as training programs write them, unknown settings are passed over. Without such a file
    the arguments that the file of weights holds are taken.

    Args:
        path: a file of weights, or its folder.
        known: names of the settings that are read.

    Returns:
        The settings; values that stand for none are left out.

    Raises:
        ValueError: if the file is damaged, or it is no args file and has an unknown setting.
    """
    known = set(known)
    folder = path if path.is_dir() else path.parent
    own = [] if path.is_dir() else [path.with_suffix(end) for end in (".json", ".yaml", ".yml")]
    for file in (*own, *(folder / name for name in NAMES)):
        if file.is_file():
            given = _read(file)
            if file.stem != "args" and (other := sorted(given.keys() - known - IGNORED)):
                raise unknown_name(f"{file}: the setting", other[0], sorted(known))
            return Settings(_chosen(given, known), str(file))
    _, arguments = training_run(path)
    place = folder / "config.json" if path.is_dir() else path.with_suffix(".json")
    return Settings(_chosen(_plain(arguments), known), str(place))


def choice(settings: Settings, key: str, choices: Mapping[str, Any], default: str = "") -> str:
    """Return a setting that is one of some names.

    Raises:
        ValueError: if it is another, or is missing and there is no default.
    """
    value = settings.values.get(key, default)
    if value == "":
        raise ValueError(f'add "{key}" to {settings.place}: one of {", ".join(choices)}')
    if value not in choices:
        raise unknown_name(f"{key} in {settings.place}", str(value), choices)
    return str(value)


def integer(settings: Settings, key: str, default: int) -> int:
    """Return a setting that is a positive whole number.

    Raises:
        ValueError: if it is something else.
    """
    value = settings.values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} in {settings.place} must be a positive number, got {value!r}")
    return value


def switch(settings: Settings, key: str) -> bool | None:
    """Return a setting that is true or false, or None if it is not stated.

    Raises:
        ValueError: if it is something else.
    """
    value = settings.values.get(key)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key} in {settings.place} must be true or false, got {value!r}")
    return value


def sides(settings: Settings, shape: tuple[int, ...] | None) -> tuple[int, int]:
    """Return height and width of the images: those given, or `image_size` of the settings.

    Raises:
        ValueError: if neither states them.
    """
    found = settings.values.get("image_size") if shape is None else shape
    if found is None:
        raise ValueError(
            "weights do not tell the size of the images: give it as shape, or add "
            f'"image_size" to {settings.place}'
        )
    pair = (found, found) if isinstance(found, int) else tuple(found)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise ValueError(f"image_size in {settings.place} must be whole numbers, got {found!r}")
    return pair


def _read(file: Path) -> dict[str, Any]:
    if file.suffix == ".json":
        return _plain(read_json(file))
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no table of names and values")
    return _plain(content)


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _chosen(values: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    # OpenAI's programs write -1 and "" where a setting is not used.
    unset = (None, -1, "")
    return {name: v for name, v in values.items() if name in known and v not in unset}
