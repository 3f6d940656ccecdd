"""Read the structure of OpenAI's U-Net (guided-diffusion) from the names and shapes of weights.

`input_blocks` and `output_blocks` count the blocks of all levels in one row: on the way down n
residual blocks of each level and the layer that halves the resolution, on the way up n + 1 residual
blocks, the last of them with the layer that doubles it.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dgjax.importing.weights import StoredArray

__all__ = ["AdmStructure", "read_structure", "split_attention"]

# Names inside a residual block and an attention layer, with those of `dgjax.networks.UNet2D`.
PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "proj_out": "to_out.0",
    "op": "conv",
    "conv": "conv",
}
OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
DOWN = {"conv": "DownBlock2D", "resnet": "ResnetDownsampleBlock2D", "pool": "PoolDownBlock2D"}
UP = {"conv": "UpBlock2D", "resnet": "ResnetUpsampleBlock2D", "pool": "PoolUpBlock2D"}
BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(\w+)")


class AdmStructure(NamedTuple):
    """The structure of a network, as its weights show it.

    Attributes:
        network: arguments of `dgjax.networks.UNet2D`, all but those of the attention's heads.
        channels: channels of an image.
        outputs: channels of the output.
        labels: rows of the table of labels, or None if there is none.
        modules: new names of the modules by their names.
    """

    network: dict[str, Any]
    channels: int
    outputs: int
    labels: int | None
    modules: dict[str, str]


def read_structure(weights: Mapping[str, Any], what: str) -> AdmStructure:
    """Read the structure.

    Args:
        weights: arrays by OpenAI's names.
        what: name of the weights in error messages.

    Raises:
        ValueError: if the blocks do not make a U-Net of this kind.
    """
    blocks: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    for name in weights:
        if found := BLOCK.match(name):
            side, index, part, inside = found.groups()
            blocks[side, int(index)].setdefault(int(part), inside)
    total, last = (1 + max(i for s, i in blocks if s == side) for side in ("input", "output"))
    layers, resample = _layers(blocks, total)
    levels, rest = divmod(total, layers + 1)
    if rest or total != last or layers < 1:
        raise ValueError(f"{what} has {total} blocks down and {last} up: no U-Net of OpenAI's")
    down, up, modules, widths = [], [], dict(OUTSIDE), []
    for level in range(levels):
        start = 1 + level * (layers + 1)
        place = f"down_blocks.{level}"
        for i in range(layers):
            modules |= _block(f"input_blocks.{start + i}", place, i)
        modules[f"input_blocks.{start + layers}.0"] = f"{place}.downsamplers.0"
        attention = 1 in blocks["input", start]
        down.append("AttnDownBlock2D" if attention else DOWN[resample])
        try:
            widths.append(weights[f"input_blocks.{start}.0.out_layers.3.weight"].shape[0])
        except KeyError:
            raise ValueError(
                f"{what} has no residual block at input_blocks.{start}: no U-Net of OpenAI's"
            ) from None
        start, place = level * (layers + 1), f"up_blocks.{level}"
        for i in range(layers + 1):
            modules |= _block(f"output_blocks.{start + i}", place, i)
        end = blocks["output", start + layers]
        attention = 1 in blocks["output", start]
        up.append("AttnUpBlock2D" if attention else UP[resample])
        if level < levels - 1 and resample != "pool":
            modules[f"output_blocks.{start + layers}.{max(end)}"] = f"{place}.upsamplers.0"
    features = weights["time_embed.0.weight"].shape[1]
    rows = weights["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    network = {
        "kind": "unet2d",
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": layers,
        "outputs": (outputs := weights["out.2.weight"].shape[0]),
        "time_embedding_dim": weights["time_embed.2.weight"].shape[0],
        "time_features": features,
        "downsample_type": resample,
        "upsample_type": resample,
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "scale_shift": rows == 2 * widths[0],
    }
    table = weights.get("label_emb.weight")
    channels = weights["input_blocks.0.0.weight"].shape[1]
    labels = None if table is None else table.shape[0]
    return AdmStructure(network, channels, outputs, labels, modules)


def _layers(blocks: Mapping[tuple[str, int], Mapping[int, str]], total: int) -> tuple[int, str]:
    """Return the residual blocks of a level, and the layers that change the resolution."""
    for index in range(1, total):
        if ("input", index) not in blocks:  # a layer without weights
            return index - 1, "pool"
        if blocks["input", index].get(0) == "op":
            return index - 1, "conv"
    # A residual block that halves the resolution looks like any other, one that doubles it does
    # not: it is the second in its block.
    for index in range(total):
        parts = blocks.get(("output", index), {})
        if any(inside == "in_layers" for part, inside in parts.items() if part > 0):
            return index, "resnet"
    return total - 1, "conv"  # one level


def _block(name: str, place: str, index: int) -> dict[str, str]:
    return {f"{name}.0": f"{place}.resnets.{index}", f"{name}.1": f"{place}.attentions.{index}"}


def split_attention(
    weights: Mapping[str, Any], structure: AdmStructure, heads: Any, new_order: bool
) -> dict[str, Any]:
    """Rename weights, and split the layers that make queries, keys and values at once.

    Args:
        weights: arrays by OpenAI's names.
        structure: of the network.
        heads: maps the channels of an attention layer to its number of heads.
        new_order: whether all queries come first, then all keys and all values; or those of each
            head in turn, the older order.

    Returns:
        Arrays by the names of `dgjax.networks.UNet2D`. They are read when converted to NumPy.
    """
    found: dict[str, Any] = {}
    for name, array in weights.items():
        module, part, kind = _split(name, structure.modules)
        if part == "qkv":
            for i, letter in enumerate("qkv"):
                count = heads(array.shape[0] // 3)
                found[f"{module}.to_{letter}.{kind}"] = _third(array, i, count, new_order)
        elif part == "proj_out" and kind == "weight":
            found[f"{module}.to_out.0.weight"] = _matrix(array)
        else:
            inside = PARTS.get(part, part)
            found[".".join(filter(None, (module, inside, kind)))] = array
    return found


def _split(name: str, modules: Mapping[str, str]) -> tuple[str, str, str]:
    """Return the new name of a module, the old name of its part, and weight or bias."""
    path, _, kind = name.rpartition(".")
    words = path.split(".")
    for cut in range(len(words), 0, -1):
        if (module := modules.get(".".join(words[:cut]))) is not None:
            return module, ".".join(words[cut:]), kind
    return path, "", kind


def _third(array: Any, index: int, heads: int, new_order: bool) -> StoredArray:
    size = array.shape[0] // 3
    shape = (size,) if len(array.shape) == 1 else (size, array.shape[1])

    def read() -> np.ndarray:
        rows = np.asarray(array)
        if new_order:
            return rows.reshape(3, *shape)[index]
        return rows.reshape(heads, 3, size // heads, *shape[1:])[:, index].reshape(shape)

    return StoredArray(shape, array.dtype, read)


def _matrix(array: Any) -> StoredArray:
    shape = tuple(array.shape[:2])
    return StoredArray(shape, array.dtype, lambda: np.asarray(array).reshape(shape))
