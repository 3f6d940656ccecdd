"""Read the structure of an EDM network from the names and shapes of its weights."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike

__all__ = ["Structure", "read_structure"]


class Structure(NamedTuple):
    """The structure of an EDM network.

    Attributes:
        shape: (H, W, C) of one image.
        network: the network of a `dgjax.checkpoints.ModelSpec`.
        renames: argument of `dgjax.importing.state_dict.load_state_dict`.
        constants: argument of the same.
    """

    shape: tuple[int, ...]
    network: dict[str, Any]
    renames: tuple[tuple[str, str], ...]
    constants: dict[str, ArrayLike]


def read_structure(weights: Mapping[str, Any], what: str) -> Structure:
    """Read the structure of a network from its weights.

    Weights that do not fit this structure are left for `load_state_dict` to find.

    Args:
        weights: arrays, or `StoredArray`s, by EDM's names without the leading "model.".
        what: name of the weights in error messages.

    Returns:
        The structure.

    Raises:
        ValueError: if the weights are not of an EDM network.
    """
    sizes = sorted({int(n) for n in _matches(r"enc\.(\d+)x\1_", weights)}, reverse=True)
    try:
        first = f"enc.{sizes[0]}x{sizes[0]}_"
        if sizes != [sizes[0] >> level for level in range(len(sizes))]:
            raise ValueError(
                f"{what} has levels of sizes {sizes}, and each must be half the one before"
            )
        width, channels = weights[f"{first}conv.weight"].shape[:2]
        widths = [weights[f"enc.{n}x{n}_block0.conv0.weight"].shape[0] for n in sizes]
        embedding, noise = weights["map_layer0.weight"].shape
        adm = "out_norm.weight" in weights
        base = noise if adm else width
        network: dict[str, Any] = {
            "kind": "dhariwal_unet" if adm else "song_unet",
            "num_classes": _input_size("map_label", weights),
            "augment_dim": _input_size("map_augment", weights),
            "model_channels": base,
            "channel_mult": [_multiple(w, base) for w in widths],
            "channel_mult_emb": _multiple(embedding, base),
            "num_blocks": len(set(_matches(rf"{re.escape(first)}block(\d+)\.conv0", weights))),
            "attn_resolutions": [
                n for n in sizes if _matches(rf"enc\.({n})x{n}_block0\.(?:attn\.)?qkv", weights)
            ],
        }
    except (IndexError, KeyError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else "enc.RxR_conv.weight"
        raise ValueError(
            f"{what} is neither SongUNet nor DhariwalUNet: it has no {missing}"
        ) from None
    constants: dict[str, ArrayLike] = {}
    half, fourier = noise // 2, False
    positional = np.float32(10_000.0 ** (-np.arange(half) / (half - (0 if adm else 1))))
    if "map_noise.freqs" in weights:  # PhysicsNeMo stores even those that EDM computes
        stored = np.asarray(weights["map_noise.freqs"])
        fourier = not (
            stored.shape == positional.shape and np.allclose(stored, positional, atol=1e-3)
        )
        if not fourier:
            constants[r"map_noise\.freqs"] = positional
    row = _resample_filter(weights)
    constants[r".*\.resample_filter"] = np.outer(row, row)[None, None].astype(np.float32)
    if not adm:
        network |= {
            "channel_mult_noise": _multiple(noise, base),
            "embedding_type": "fourier" if fourier else "positional",
            "encoder_type": _encoder_type(weights),
            "decoder_type": "skip" if _matches(r"dec\.(\d+)x\1_aux_up", weights) else "standard",
            "resample_filter": row.tolist(),
        }
    return Structure((sizes[0], sizes[0], channels), network, _renames(sizes), constants)


def _renames(sizes: list[int]) -> tuple[tuple[str, str], ...]:
    return (
        # PhysicsNeMo's names of the parts of attention.
        (r"\.attn\.norm\.", ".norm2."),
        (r"\.attn\.(qkv|proj)\.", r".\1."),
        (r"^out_(norm|conv)\.", rf"dec.{sizes[0]}x{sizes[0]}_aux_\1."),
        *((rf"^(enc|dec)\.{n}x{n}_", rf"trunk.\1.{level}.") for level, n in enumerate(sizes)),
        (r"\.block(\d+)\.", r".blocks.\1."),
    )


def _matches(pattern: str, weights: Mapping[str, Any]) -> list[str]:
    """Return the first group of the pattern's match at the start of each name that matches."""
    return [match[1] for name in weights if (match := re.match(pattern, name))]


def _input_size(name: str, weights: Mapping[str, Any]) -> int | None:
    weight = weights.get(f"{name}.weight")
    return None if weight is None else weight.shape[1]


def _multiple(size: int, base: int) -> int:
    if size % base:
        raise ValueError(f"{size} channels are not a multiple of the network's {base}")
    return size // base


def _encoder_type(weights: Mapping[str, Any]) -> str:
    for kind in ("residual", "skip"):
        if _matches(rf"enc\.(\d+)x\1_aux_{kind}", weights):
            return kind
    return "standard"


def _resample_filter(weights: Mapping[str, Any]) -> np.ndarray:
    """Return the resampling filter along one side, normalized; (1/2, 1/2) if none is stored."""
    for name, array in weights.items():
        if name.endswith(".resample_filter"):
            return np.asarray(array).astype(np.float64).sum((0, 1, 2))
    return np.array([0.5, 0.5])
