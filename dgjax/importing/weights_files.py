"""Choose the file of weights among the names of a folder, on disk or on the hub."""

import re
from collections.abc import Iterable

__all__ = ["TORCH_ENDINGS", "choose_file", "is_index", "names_lora"]

# File names, without ending, under which libraries save weights.
STANDARD_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
# Endings of PyTorch's files.
TORCH_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
FORMATS = ((".safetensors",), TORCH_ENDINGS)
# Copies of the same weights, from the best on; "" is the one in full precision.
VARIANTS = ("", "fp32", "bf16", "fp16")
SHARD = re.compile(r"-\d+-of-\d+(?=\.)")
INDEX = re.compile(r"\.index(\.\w+)?\.json$")
LORA = re.compile(r"(?<![a-z])lora(?![a-z])|^adapter_model\.", re.IGNORECASE)
NO_WEIGHTS = re.compile(r"(optimizer|scheduler|scaler|training_args|random_states.*)\.\w+")


def is_index(name: str) -> bool:
    """Return whether a file lists the parts of weights that were cut into several files."""
    return INDEX.search(name) is not None


def names_lora(name: str) -> bool:
    """Return whether the name of a file or an array says that it is of a LoRA.

    A LoRA is a change to other weights, of low rank.
    """
    return LORA.search(name) is not None


def choose_file(names: Iterable[str]) -> str | None:
    """Choose the weights of a network.

    Full precision is preferred to half, safetensors to PyTorch's files, standard names to others,
    and the index of a file in parts to a whole file. LoRA files are passed over.

    Args:
        names: names of all files in a folder.

    Returns:
        The name of a file of weights or of an index of its parts; None if there is none.

    Raises:
        ValueError: if there are several candidates, or parts without their index.
    """
    names = sorted(name for name in names if not (names_lora(name) or NO_WEIGHTS.fullmatch(name)))
    found = [name for name in names if _ending(name) and not SHARD.search(name)]
    for variant in VARIANTS:
        for endings in FORMATS:
            for standard in STANDARD_NAMES:
                for ending in endings:
                    for name in _spellings(standard, ending, variant):
                        if name in found:
                            return name
    for endings in FORMATS:
        same = [name for name in found if _ending(name) in endings]
        if len(same) == 1:
            return same[0]
        if same:
            raise ValueError(f"there are several files of weights: keep one of {', '.join(same)}")
    if parts := [name for name in names if _ending(name)]:
        raise ValueError(f"{parts[0]} is a part of weights, and the index of the parts is missing")
    return None


def _ending(name: str) -> str | None:
    """Return the ending of a file of weights, or of the weights that an index lists."""
    whole = INDEX.sub("", name)
    return next((e for group in FORMATS for e in group if whole.endswith(e)), None)


def _spellings(stem: str, ending: str, variant: str) -> list[str]:
    """Return the names under which a variant is saved in parts or whole."""
    if not variant:
        return [f"{stem}{ending}.index.json", f"{stem}{ending}"]
    return [
        f"{stem}{ending}.index.{variant}.json",
        f"{stem}.{variant}{ending}.index.json",
        f"{stem}.{variant}{ending}",
    ]
