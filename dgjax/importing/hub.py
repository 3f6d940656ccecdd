"""Download model folders from the Hugging Face hub to its cache."""

from pathlib import Path

from dgjax.importing.weights import TORCH_ENDINGS

__all__ = ["fetch"]

TEXTS = ["*.json", "README.md"]
# Further copies of the same weights in half precision, and weights without averaging (EMA).
VARIANTS = ["*.fp16.*", "*.non_ema.*"]


def fetch(source: str) -> Path:
    """Return the folder of a model, downloaded from the Hugging Face hub unless it is local.

    Only configs, the model card and weights are downloaded: safetensors, or PyTorch's files for a
    model without safetensors.

    Args:
        source: a local folder, or a name on the hub such as "google/ddpm-cifar10-32".

    Returns:
        The local folder.

    Raises:
        ValueError: if there is no such local folder, and huggingface_hub is not installed or the
            download fails.
    """
    if Path(source).exists():
        return Path(source)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(
            f"there is no folder {source}; to download a model of this name from the Hugging Face "
            "hub: pip install 'dgjax[hub]'"
        ) from None

    def download(endings: list[str]) -> Path:
        patterns = TEXTS + [f"*{ending}" for ending in endings]
        try:
            return Path(
                snapshot_download(source, allow_patterns=patterns, ignore_patterns=VARIANTS)
            )
        except Exception as error:  # requests, httpx and the hub raise dozens of kinds
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"there is no folder {source}, and it cannot be downloaded from the Hugging Face "
                f"hub: {first}"
            ) from error

    folder = download([".safetensors"])
    if any(folder.rglob("*.safetensors")):
        return folder
    return download(list(TORCH_ENDINGS))
