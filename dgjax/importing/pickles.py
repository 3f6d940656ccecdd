"""Refuse pickles, which run code when they are read, and say how to convert them."""

import pickletools
from itertools import islice
from pathlib import Path

__all__ = ["Refusal", "convert_torch", "is_pickle", "refuse_pickle"]

ENDINGS = (".pkl", ".pickle")
# Operations with the name of a module, and how many are read to see which library wrote a pickle.
NAMING, OPERATIONS = ("GLOBAL", "INST", "SHORT_BINUNICODE", "BINUNICODE"), 2000

# Code for the user to run. The first is for NVIDIA's networks: EDM and its successors.
NETWORK = """\
import json, pickle; from safetensors.torch import save_file
data = pickle.load(open({file!r}, "rb")); net, encoder = data["ema"], data.get("encoder")
weights = {{k: v.contiguous() for k, v in net.state_dict().items()}}; config = dict(net.init_kwargs)
save_file(weights, {weights!r}); config.pop("class_name", None); names = lambda n: type(n).__name__
if encoder: config["encoder"] = {{"class_name": names(encoder), **encoder.init_kwargs}}
json.dump({{**config, "precond": names(net)}}, open({config!r}, "w"))"""
TABLE = """\
import pickle, torch; from safetensors.torch import save_file
found = pickle.load(open({file!r}, "rb")); table = getattr(found, "state_dict", lambda: found)()
save_file({{k: torch.as_tensor(v).contiguous() for k, v in table.items()}}, {weights!r})"""
TORCH = """\
import torch; from safetensors.torch import save_file
found = torch.load({file!r}, "cpu", weights_only=False)
table = found.state_dict() if hasattr(found, "state_dict") else found.get("ema", found)
save_file({{k: v.contiguous() for k, v in table.items()}}, {weights!r})"""


class Refusal(ValueError):
    """A source is not read, and code that the user can run converts it.

    Attributes:
        code: the code, which is also below the first line of the message.
    """

    def __init__(self, message: str, code: str):
        super().__init__(f"{message}\n{code}")
        self.code = code


def is_pickle(path: Path) -> bool:
    """Return whether a path is a pickle, judged by its name."""
    return path.suffix in ENDINGS and path.is_file()


def refuse_pickle(file: Path) -> Refusal:
    """Return the error for a pickle: what it is, why it is not read, and code that converts it.

    The pickle is not loaded. The names of the modules that it would import say what it holds.
    """
    if "torch_utils" in _modules(file):
        what, code, made = "a pickle of a network of EDM's kind", NETWORK, file.parent
        weights = made / "model.safetensors"
    else:
        what, code = "a pickle", TABLE
        made = weights = file.with_suffix(".safetensors")
    code = code.format(
        file=str(file), weights=str(weights), config=str(file.with_name("config.json"))
    )
    return Refusal(
        f"{file} is {what}, and reading it runs code of its author: if you trust it, run the code "
        f"below once where its library is installed, and import {made}",
        code,
    )


def convert_torch(file: Path) -> str:
    """Return code that converts a file of PyTorch that holds more than weights."""
    return TORCH.format(file=str(file), weights=str(file.with_suffix(".safetensors")))


def _modules(file: Path) -> set[str]:
    """Return the packages that a pickle names, as far as its first operations tell."""
    names = []
    try:
        with file.open("rb") as opened:
            for operation, argument, _ in islice(pickletools.genops(opened), OPERATIONS):
                if operation.name in NAMING:
                    names.append(str(argument))
    except (OSError, ValueError):
        pass  # damaged, or no pickle in spite of its name: it names no more
    return {name.split(".")[0] for name in names}
