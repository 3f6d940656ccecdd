"""Find the structure of a network of score_sde, and name its weights as `dgjax.networks` does.

score_sde numbers the modules of its NCSN++ in the order of their calls: PyTorch all of them in one
row, Flax those of each class. DDPM++ is the same class with other settings.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from dgjax.importing.score_sde_files import Modules
from dgjax.importing.weights import StoredArray

__all__ = ["Structure", "name_weights", "read_structure"]

# By kind of module: its class in Flax, and parameters that tell it from others.
CLASSES = {
    "fourier": "GaussianFourierProjection",
    "linear": "Dense",
    "conv": "Conv",
    "block": "ResnetBlockBigGANpp",
    "attention": "AttnBlockpp",
    "skip": "Combine",
    "residual": "Downsample",
    "norm": "GroupNorm",
}
BLOCK = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}
OTHERS = "dgjax.torch_network takes such a network as it is"


class Structure(NamedTuple):
    """The structure of a network.

    Attributes:
        widths: channels of the levels.
        base: channels of the first convolution.
        embedding: length of the embedding of the noise level.
        blocks: residual blocks of a level on the way down.
        fourier: whether the noise level enters by random Fourier features.
        encoder: what is added on the way down: "standard" (nothing), "skip" or "residual".
        decoder: "standard", or "skip" if all levels add to the output.
        channels: channels of an image.
    """

    widths: tuple[int, ...]
    base: int
    embedding: int
    blocks: int
    fourier: bool
    encoder: str
    decoder: str
    channels: int


def read_structure(modules: Modules, what: str) -> Structure:
    """Read the structure of a network from its modules.

    Args:
        modules: the modules.
        what: name of the network in error messages.

    Returns:
        The structure.

    Raises:
        ValueError: if it is a network that is not read; the message says which, and what to do.
    """
    kinds = {name: _kind(name, module, modules.torch) for name, module in modules.arrays.items()}
    unknown = sorted(set(kinds.values()) - CLASSES.keys())
    if unknown:
        raise ValueError(f"{what} has {unknown[0]}, which is not read: {OTHERS}")
    names = sorted(kinds, key=lambda name: int(name.rsplit("_", 1)[-1]))
    of_kind = {kind: [n for n in names if kinds[n] == kind] for kind in CLASSES}
    blocks = [modules.arrays[name] for name in of_kind["block"]]
    sizes = [block["Conv_0.weight"].shape[:2] for block in blocks]
    # Blocks that change the resolution have as many channels as before, and a shortcut.
    resampling = [
        i
        for i, (block, (outputs, inputs)) in enumerate(zip(blocks, sizes, strict=True))
        if outputs == inputs and "Conv_2.weight" in block
    ]
    levels = len(resampling) // 2 + 1
    first, rest = (resampling[0], 0) if resampling else divmod(len(blocks) - 3, 2)
    if rest or first < 1 or len(blocks) != levels * (2 * first + 3):
        raise ValueError(
            f"{what} has {len(blocks)} residual blocks, {len(resampling)} of them with another "
            f"resolution, which make no NCSN++: {OTHERS}"
        )
    if len(of_kind["residual"]) >= levels:
        raise ValueError(f"{what} has residual outputs (progressive = residual): {OTHERS}")
    stem = modules.arrays[of_kind["conv"][0]]["weight"]
    dense = modules.arrays[of_kind["linear"][0]]["weight"] if of_kind["linear"] else None
    if dense is None:
        raise ValueError(f"{what} takes no noise level (conditional = False): {OTHERS}")
    return Structure(
        widths=tuple(sizes[level * (first + 1)][0] for level in range(levels)),
        base=stem.shape[0],
        embedding=dense.shape[0],
        blocks=first,
        fourier=bool(of_kind["fourier"]),
        encoder=next((kind for kind in ("skip", "residual") if of_kind[kind]), "standard"),
        decoder="skip" if len(of_kind["norm"]) > 1 else "standard",
        channels=stem.shape[1],
    )


def name_weights(
    modules: Modules, structure: Structure, attention: list[bool], what: str
) -> dict[str, Any]:
    """Name the weights as `dgjax.networks.SongUNet` does, in PyTorch's layout.

    Args:
        modules: the modules.
        structure: their structure.
        attention: for each level, whether its blocks have attention.
        what: name of the network in error messages.

    Returns:
        The arrays by name.

    Raises:
        ValueError: if the modules are not those of this structure.
    """
    found: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    for place, (kind, name) in enumerate(_calls(structure, attention)):
        module = str(place) if modules.torch else f"{CLASSES[kind]}_{counts[kind]}"
        counts[kind] += 1
        stored = modules.arrays.get(module)
        if stored is None or _kind(module, stored, modules.torch) != kind:
            raise ValueError(
                f"{what} has no {CLASSES[kind]} where one is expected (module {module}): check "
                "image_size and attn_resolutions in its settings"
            )
        found |= dict(_named(kind, name, stored))
    if place + 1 != len(modules.arrays):
        raise ValueError(
            f"{what} has {len(modules.arrays)} modules where {place + 1} are expected: check "
            "image_size and attn_resolutions in its settings"
        )
    return found


def _kind(name: str, module: Mapping[str, Any], torch: bool) -> str:
    """Return the kind of a module, a key of `CLASSES`, or words for one that is not read."""
    if "NIN_3.W" in module:
        return "attention"
    if "Conv_1.weight" in module:
        if "NIN_0.W" in module:
            return "residual blocks of DDPM (resblock_type = ddpm)"
        return "block"
    if "Conv2d_0.weight" in module:
        return "residual" if torch or name.startswith("Downsample") else "a residual output"
    if "Conv_0.weight" in module:
        if module["Conv_0.weight"].shape[2:] == (1, 1):
            return "skip"
        return "convolutions between its levels (fir = False, or resblock_type = ddpm)"
    if "W" in module:
        return "fourier"
    axes = len(module["weight"].shape) if "weight" in module else 0
    return {1: "norm", 2: "linear", 4: "conv"}.get(axes, f"a module of another network ({name})")


def _calls(structure: Structure, attention: list[bool]) -> Iterator[tuple[str, str]]:
    """Yield the kind of each module and its name here, in the order of the calls."""
    last = len(structure.widths) - 1
    if structure.fourier:
        yield "fourier", "map_noise"
    yield from (("linear", "map_layer0"), ("linear", "map_layer1"))
    yield "conv", "trunk.enc.0.conv"
    for level in range(last + 1):
        place = f"trunk.enc.{level}"
        if level:
            yield "block", f"{place}.down"
            if structure.encoder != "standard":
                yield structure.encoder, f"{place}.aux_{structure.encoder}"
        for i in range(structure.blocks):
            yield "block", f"{place}.blocks.{i}"
            if attention[level]:
                yield "attention", f"{place}.blocks.{i}"
    for level in reversed(range(last + 1)):
        place = f"trunk.dec.{level}"
        if level == last:
            yield from (("block", f"{place}.in0"), ("attention", f"{place}.in0"))
            yield "block", f"{place}.in1"
        else:
            yield "block", f"{place}.up"
        for i in range(structure.blocks + 1):
            yield "block", f"{place}.blocks.{i}"
        if attention[level]:
            yield "attention", f"{place}.blocks.{structure.blocks}"
        if structure.decoder == "skip" or level == 0:
            yield from (("norm", f"{place}.aux_norm"), ("conv", f"{place}.aux_conv"))


def _named(kind: str, name: str, stored: Mapping[str, StoredArray]) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of one module under their names here."""
    if kind == "fourier":
        yield f"{name}.freqs", stored["W"]
    elif kind == "attention":
        for end in ("weight", "bias"):
            yield f"{name}.norm2.{end}", stored[f"GroupNorm_0.{end}"]
        yield f"{name}.qkv.weight", _joined([stored[f"NIN_{i}.W"] for i in range(3)])
        yield f"{name}.qkv.bias", _joined([stored[f"NIN_{i}.b"] for i in range(3)])
        yield f"{name}.proj.weight", _joined([stored["NIN_3.W"]])
        yield f"{name}.proj.bias", stored["NIN_3.b"]
    else:
        for parameter, array in stored.items():
            owner, _, end = parameter.rpartition(".")
            part = f".{BLOCK[owner]}" if kind == "block" and owner in BLOCK else ""
            yield f"{name}{part}.{end}", array


def _joined(arrays: list[StoredArray]) -> StoredArray:
    """Return matrices (inputs, outputs) as one 1x1 convolution, or vectors as one.

    The outputs of all that belong to one channel are neighbours.
    """
    *inputs, outputs = arrays[0].shape
    shape = (len(arrays) * outputs, *inputs, *([1, 1] if inputs else []))

    def read() -> np.ndarray:
        return np.stack([np.asarray(array).T for array in arrays], 1).reshape(shape)

    return StoredArray(shape, arrays[0].dtype, read)
