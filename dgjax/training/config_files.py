"""Configurations of training runs in TOML files, the shipped ones among them."""

import os
import tomllib
from pathlib import Path

from dgjax.training.config import TrainConfig

__all__ = ["CONFIGS", "load_config", "read_config_text", "shipped_configs"]

CONFIGS = Path(__file__).parent / "configs"


def shipped_configs() -> list[str]:
    """Return the names of the configurations that come with dgjax, for `load_config`."""
    return sorted(file.stem for file in CONFIGS.glob("*.toml"))


def load_config(file: str | os.PathLike) -> TrainConfig:
    """Read the configuration in a TOML file, or one that comes with dgjax by its name.

    Args:
        file: path of a TOML file, or one of `shipped_configs()`. A file that has the same name as a
            shipped configuration must be written as a path, `./NAME`.

    Raises:
        ValueError: if the file is missing or not TOML, or a key or a value in it is wrong.
    """
    text = read_config_text(file)
    path = _config_path(file)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    try:
        return TrainConfig.from_dict(values)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_config_text(file: str | os.PathLike) -> str:
    """Return the text of a TOML file, or of a configuration that comes with dgjax.

    Args:
        file: as of `load_config`.

    Raises:
        ValueError: if the file cannot be read, or is no text.
    """
    try:
        return _config_path(file).read_text()
    except OSError as error:
        raise ValueError(
            f"cannot read the config {file} ({error}); shipped are {', '.join(shipped_configs())}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is not TOML: {error}") from error


def _config_path(file: str | os.PathLike) -> Path:
    shipped = isinstance(file, str) and file in shipped_configs()
    return CONFIGS / f"{file}.toml" if shipped else Path(file)
