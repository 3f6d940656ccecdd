"""Read models of the Hugging Face hub: configs first, then only the weights that are needed."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dgjax.importing.weights import open_weights
from dgjax.importing.weights_files import choose_file, is_index
from dgjax.messages import install_line

__all__ = ["HubModel", "is_hub_name", "local_snapshot", "open_hub"]

# Kilobytes, and all that is needed to see whether a model can be read.
CONFIGS = ["model_index.json", "*config.json", "*.index.json", "*.index.*.json", "README.md"]
TOKENIZERS = ["tokenizer*/*.json", "tokenizer*/merges.txt"]  # a few megabytes
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LONGEST = 193  # characters: two names of 96, and the slash
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".json", ".npz")
CACHE = "models--"  # with it begin the folders of the hub's cache


class HubModel(NamedTuple):
    """A model on the hub, of which the configs are on disk.

    Attributes:
        folder: the local folder of the configs.
        files: names of all files of the model, as paths from the folder; most are not on disk.
        open_weights: downloads the weights of one of the folders, and opens them.
    """

    folder: Path
    files: tuple[str, ...]
    open_weights: Callable[[Path], Mapping[str, Any]]


def is_hub_name(source: str) -> bool:
    """Return whether a text has the form of a name on the hub, owner/name, and not of a path.

    The name of a file, and a path into a folder that is here, are no names on the hub.
    """
    if len(source) > LONGEST or NAME.fullmatch(source) is None or ".." in source:
        return False
    return not (source.lower().endswith(SUFFIXES) or os.path.exists(source.partition("/")[0]))


def open_hub(name: str) -> HubModel:
    """Download the configs of a model on the hub.

    Args:
        name: such as "google/ddpm-cifar10-32".

    Returns:
        The model, without its weights.

    Raises:
        ValueError: if huggingface_hub is not installed or the download fails.
    """
    try:
        import huggingface_hub as hub
    except ImportError:
        raise ValueError(
            f"there is no file or folder {name}; as a name on the Hugging Face hub it needs "
            f"{install_line('hub')}"
        ) from None

    def download(patterns: list[str], **options: Any) -> Path:
        try:
            return Path(hub.snapshot_download(name, allow_patterns=patterns, **options))
        except Exception as error:  # requests, httpx and the hub raise dozens of kinds
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"there is no file or folder {name}, and as a name on the Hugging Face hub it "
                f"cannot be downloaded: {first}"
            ) from error

    folder = download(CONFIGS)
    commit = {"revision": folder.name} if folder.parent.name == "snapshots" else {}
    if _names_tokenizer(folder / "model_index.json"):
        download(TOKENIZERS, **commit)
    where = "on the Hugging Face hub"
    try:
        files = hub.list_repo_files(name, **commit)
    except Exception:  # without a connection: what an earlier download left in the cache
        where = "in the cache of the Hugging Face hub, which cannot be reached,"
        files = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]

    def open_part(part: Path) -> Mapping[str, Any]:
        inside = "" if part == folder else f"{part.relative_to(folder).as_posix()}/"
        here = [f.removeprefix(inside) for f in files if f.startswith(inside)]
        chosen = choose_file(f for f in here if "/" not in f)
        if chosen is None:
            raise ValueError(f"{name} {where} has no weights in {inside or '.'}")
        wanted = [inside + chosen]
        if is_index(chosen):
            wanted += [inside + shard for shard in _shards(part / chosen)]
        return open_weights(download(wanted, **commit) / inside / chosen)

    return HubModel(folder, tuple(files), open_part)


def local_snapshot(path: Path) -> Path:
    """Return the newest files of a model in the hub's cache, or any other path unchanged.

    Args:
        path: a path; `models--owner--name` is the folder of a model in the cache.

    Raises:
        ValueError: if the cache holds several snapshots and does not say which is the newest.
    """
    snapshots = path / "snapshots"
    if not (path.name.startswith(CACHE) and snapshots.is_dir()):
        return path
    main = path / "refs" / "main"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    found = sorted(folder for folder in snapshots.iterdir() if folder.is_dir())
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        raise ValueError(
            f"{path} is a model in the hub's cache without refs/main: import one of the folders "
            f"in its snapshots ({names})"
        )
    return found[0]


def _names_tokenizer(index: Path) -> bool:
    """Return whether a pipeline has a tokenizer; a damaged index is reported by its reader."""
    try:
        parts = json.loads(index.read_text())
        return any(name.startswith("tokenizer") and any(part) for name, part in parts.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights: {error}") from error
