"""Model folders of the Hugging Face hub, fetched to its cache."""

from pathlib import Path

from dgjax.importing.weights import TORCH

__all__ = ["fetch"]

TEXTS = ["*.json", "README.md"]
VARIANTS = ["*.fp16.*", "*.non_ema.*"]  # copies of the same weights, or worse ones


def fetch(name: str) -> Path:
    """The folder of `name`, such as "google/ddpm-cifar10-32"; only what is read is fetched.

    Raises:
        ValueError: if huggingface_hub is not installed, or there is no such model or no network.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"there is no folder {name}; to take it from the hub: pip install 'dgjax[hub]'"
        ) from None

    def download(endings: list[str]) -> Path:
        patterns = TEXTS + [f"*{ending}" for ending in endings]
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=VARIANTS))
        except Exception as error:  # requests, httpx and the hub raise dozens of kinds
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"there is no folder {name}, nor is it on the hub: {first}") from error

    folder = download([".safetensors"])
    if any(folder.rglob("*.safetensors")):
        return folder
    return download(list(TORCH))
