"""Say what a path holds that no importer reads, and what to do with it."""

import json
from collections.abc import Iterable
from pathlib import Path

from dgjax.importing.pickles import Refusal, convert_torch, is_pickle, refuse_pickle
from dgjax.importing.weights import open_weights
from dgjax.importing.weights_files import TORCH_ENDINGS, is_index, names_lora

__all__ = ["explain", "lora_notes", "only_weights"]

OWN_CODE = (
    "make the network yourself and load these weights into it, then pass FILE.py:FUNCTION as the "
    "model (docs/how-to/own-network.md)"
)
# Endings of other files: what they are, and what to do.
ENDINGS = {
    ".msgpack": ("weights of Flax without their network", OWN_CODE),
    ".npz": ("NumPy arrays without their network", OWN_CODE),
    ".npy": ("a NumPy array without its network", OWN_CODE),
    ".eqx": ("weights of Equinox without their network", OWN_CODE),
    ".h5": ("weights of Keras", OWN_CODE),
    ".onnx": ("a program of ONNX", "import the PyTorch weights it was made from"),
    ".gguf": ("quantized weights", "import the weights in full precision"),
    ".zip": ("an archive", "unpack it and import the folder"),
    ".tar": ("an archive", "unpack it and import the folder"),
    ".gz": ("an archive", "unpack it and import the folder"),
}
WEIGHTS = (".safetensors", ".msgpack", ".pkl", *TORCH_ENDINGS)
# Files of checkpoints of orbax, Flax and TensorFlow.
CHECKPOINTS = {"_CHECKPOINT_METADATA", "_METADATA", "checkpoint"}
# First parts of the names in files of whole programs, and what to do with these.
STABLE_DIFFUSION = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")


def explain(path: Path, files: Iterable[str] = ()) -> ValueError:
    """Return the error for a path that no importer recognises: what it is, then what to do.

    Args:
        path: an existing file or folder.
        files: names of files that belong to the folder and are not on disk.
    """
    if path.is_dir():
        return _folder(path, files)
    if _is_checkpoint(path.parent):
        return _folder(path.parent, files)
    if is_pickle(path):
        return refuse_pickle(path)
    if path.suffix in ENDINGS:
        what, advice = ENDINGS[path.suffix]
        return ValueError(f"{path} is {what}, which is not read: {advice}")
    if path.suffix == ".safetensors" or path.suffix in TORCH_ENDINGS or is_index(path.name):
        return _weights(path)
    return ValueError(
        f"{path} is no file of weights that is known here: give a model's folder, or a file that "
        f"ends in .safetensors or {', '.join(TORCH_ENDINGS)}"
    )


def only_weights(folder: Path) -> Path | None:
    """Return the file of weights in a folder with one such file and no config, or None."""
    if not folder.is_dir() or (folder / "config.json").is_file():
        return None
    found = [f for f in folder.iterdir() if f.is_file() and f.name.endswith(WEIGHTS)]
    return found[0] if len(found) == 1 else None


def lora_notes(files: Iterable[str]) -> tuple[str, ...]:
    """Return a note that names the LoRA files among `files`, or nothing."""
    found = sorted({Path(name).name for name in files if names_lora(Path(name).name)})
    if not found:
        return ()
    return (f"not applied: {', '.join(found)}, a LoRA, which changes the weights",)


def _weights(file: Path) -> ValueError:
    try:
        names = list(open_weights(file))
    except ValueError as error:
        if "not read for safety" in str(error):
            return Refusal(
                f"{error}; if you trust it, convert it with the code below", convert_torch(file)
            )
        return error
    if any(map(names_lora, names)):
        return ValueError(
            f"{file} is a LoRA, a change to the weights of a model: merge it into its model there "
            "(fuse_lora, then save_pretrained), and import the result"
        )
    if any(name.startswith(STABLE_DIFFUSION) for name in names):
        return ValueError(
            f"{file} is a checkpoint of latent diffusion in one file: convert it with from_single_"
            "file and save_pretrained of diffusers, and import the folder"
        )
    return ValueError(
        f"{file} holds {len(names)} weights ({', '.join(names[:3])}, ...) of a network that is not "
        "known here, and no config.json of one is beside it: dgjax.torch_network takes any PyTorch "
        "network with its weights (docs/how-to/own-network.md)"
    )


def _folder(folder: Path, files: Iterable[str]) -> ValueError:
    names = sorted({*files, *(f.name for f in folder.iterdir())})
    config = _config(folder)
    if _is_checkpoint(folder):
        return ValueError(f"{folder} is a checkpoint of dgjax already: pass it as the model")
    if "architectures" in config or "model_type" in config:
        kind = (config.get("architectures") or [config.get("model_type")])[0]
        return ValueError(
            f"{folder} is a model of transformers ({kind}), not of diffusion: import a diffusion "
            "or flow model"
        )
    if CHECKPOINTS & set(names):
        return ValueError(f"{folder} is a checkpoint of a JAX or TensorFlow program: {OWN_CODE}")
    models = [f.name for f in sorted(folder.iterdir()) if f.is_dir() and _is_model(f)]
    if models:
        return ValueError(
            f"{folder} is a folder of {len(models)} models: import one of {', '.join(models[:5])}"
        )
    weights = [name for name in names if name.endswith(WEIGHTS)]
    if not weights:
        return ValueError(
            f"{folder} holds no model that is known here: give a folder with model_index.json or "
            "config.json, or a file of weights"
        )
    return ValueError(
        f"{folder} has the weights {', '.join(weights[:5])} and no config.json of a model that is "
        "known here: import one of these files"
    )


def _is_model(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()


def _is_checkpoint(folder: Path) -> bool:
    return str(_config(folder).get("format", "")).startswith("dgjax-checkpoint")


def _config(folder: Path) -> dict:
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
