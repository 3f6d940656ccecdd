"""Make conditions of networks from the results of text encoders, in the manner of each pipeline."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from dgjax.networks.encoded_text import EncodedText
from dgjax.typing import Cond

__all__ = [
    "CONDITIONS",
    "DISTILLED_GUIDANCE",
    "MakeCondition",
    "flux",
    "stable_diffusion",
    "stable_diffusion_3",
    "stable_diffusion_xl",
]

# The weight of guidance that diffusers' FluxPipeline takes unless told otherwise.
DISTILLED_GUIDANCE = 3.5

MakeCondition = Callable[[Sequence[EncodedText]], Cond]


def stable_diffusion() -> MakeCondition:
    """Make the condition of Stable Diffusion 1 and 2: the vectors of the last layer."""
    return lambda encoded: {"encoder_hidden_states": encoded[0].last}


def stable_diffusion_xl(size: tuple[int, ...]) -> MakeCondition:
    """Make the condition of Stable Diffusion XL (arXiv 2307.01952, sections 2.1 and 2.2).

    The vectors are those before the last layer, of all encoders side by side. The pooled text is
    that of the last encoder. The network is told that the picture was not resized or cropped.

    Args:
        size: height and width of the picture in pixels.
    """
    height, width = size
    sizes = (height, width, 0, 0, height, width)

    def make(encoded: Sequence[EncodedText]) -> Cond:
        return {
            "encoder_hidden_states": jnp.concatenate([e.penultimate for e in encoded], axis=-1),
            "added_cond_kwargs": {
                "text_embeds": encoded[-1].pooled,
                "time_ids": jnp.asarray(sizes, jnp.float32),
            },
        }

    return make


def stable_diffusion_3(size: int, tokens: int) -> MakeCondition:
    """Make the condition of Stable Diffusion 3 (arXiv 2403.03206, section 4).

    The vectors of both encoders of CLIP before the last layer stand side by side, filled up with
    zeros. The vectors of T5 follow as further tokens, or zeros where the model has no T5. The
    pooled texts of CLIP stand side by side.

    Args:
        size: length of the vectors that the network takes.
        tokens: number of zero vectors in place of those of T5.
    """

    def make(encoded: Sequence[EncodedText]) -> Cond:
        clip, t5 = encoded[:2], encoded[2:]
        vectors = jnp.concatenate([e.penultimate for e in clip], axis=-1)
        vectors = jnp.pad(vectors, ((0, 0), (0, size - vectors.shape[-1])))
        further = [e.last for e in t5] or [jnp.zeros((tokens, size), vectors.dtype)]
        return {
            "encoder_hidden_states": jnp.concatenate([vectors, *further]),
            "pooled_projections": jnp.concatenate([e.pooled for e in clip]),
        }

    return make


def flux(guidance: float | None = None) -> MakeCondition:
    """Make the condition of Flux: the pooled text of CLIP and the vectors of T5.

    Args:
        guidance: the weight of guidance that a network distilled from guided samples takes as an
            input; None for other networks.
    """

    def make(encoded: Sequence[EncodedText]) -> Cond:
        clip, t5 = encoded
        cond = {"encoder_hidden_states": t5.last, "pooled_projections": clip.pooled}
        return cond if guidance is None else cond | {"guidance": jnp.float32(guidance)}

    return make


CONDITIONS: dict[str, Callable[..., MakeCondition]] = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_xl": stable_diffusion_xl,
    "stable_diffusion_3": stable_diffusion_3,
    "flux": flux,
}
