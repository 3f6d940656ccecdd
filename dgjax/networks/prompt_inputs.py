"""The inputs of a text-to-image transformer beside the image: time, texts and guidance."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dgjax.networks.time_features import Positional, TimestepEmbedding
from dgjax.typing import Cond, Scalar

__all__ = ["GUIDANCE", "POOLED", "PROMPT", "PooledConditioning", "check_prompt"]

# diffusers' names of the parts of a condition.
PROMPT, POOLED, GUIDANCE = "encoder_hidden_states", "pooled_projections", "guidance"
FEATURES = 256  # sinusoids of the time


def check_prompt(cond: Cond, size: int, pooled: int, guided: bool) -> Mapping[str, Any]:
    """Return a condition on a prompt after a check of its names and shapes.

    Args:
        cond: the condition.
        size: length of the embedding of a token.
        pooled: length of the pooled text.
        guided: whether the network takes a weight of guidance.

    Raises:
        ValueError: if a part is missing, left over or of another shape.
    """
    names = [PROMPT, POOLED, *([GUIDANCE] if guided else [])]
    if not isinstance(cond, Mapping):
        raise ValueError(
            "this network was trained with a prompt for every image: pass as cond a dictionary "
            f"with {', '.join(names)}"
        )
    if unknown := sorted(cond.keys() - set(names)):
        raise ValueError(f"cond has {unknown[0]!r}, which this network does not take")
    if missing := [name for name in names if name not in cond]:
        raise ValueError(f"cond has no {missing[0]!r}, which this network needs")
    shape = jnp.shape(cond[PROMPT])
    if len(shape) != 2 or shape[1] != size:
        raise ValueError(f"{PROMPT} has shape {shape}, and this network takes (tokens, {size})")
    if jnp.shape(cond[POOLED]) != (pooled,):
        raise ValueError(
            f"{POOLED} has shape {jnp.shape(cond[POOLED])}, and this network takes ({pooled},)"
        )
    if guided and jnp.shape(cond[GUIDANCE]) != ():
        raise ValueError(f"{GUIDANCE} has shape {jnp.shape(cond[GUIDANCE])}, and is one number")
    return cond


class PooledConditioning(nnx.Module):
    """Embed the time step, the pooled text and perhaps the weight of guidance as one vector.

    Sinusoids are computed in float32, whatever the dtype of the text.

    Args:
        pooled: length of the pooled text.
        size: length of the vector.
        guided: whether a network distilled from guided samples takes the weight of guidance.
        rngs: draws the initial weights.
    """

    def __init__(self, pooled: int, size: int, guided: bool = False, *, rngs: nnx.Rngs):
        self.time_proj = Positional(FEATURES, 0.0, cosines_first=True)
        self.timestep_embedder = TimestepEmbedding(FEATURES, size, rngs=rngs)
        self.guidance_embedder = TimestepEmbedding(FEATURES, size, rngs=rngs) if guided else None
        self.text_embedder = TimestepEmbedding(pooled, size, rngs=rngs)

    def __call__(
        self, t: Scalar, text: Float[Array, " p"], guidance: Scalar | None = None
    ) -> Float[Array, " d"]:
        """Return the vector.

        Args:
            t: the time step.
            text: the pooled text.
            guidance: 1000 times the weight of guidance.
        """
        vector = self.timestep_embedder(self._features(t, text)) + self.text_embedder(text)
        if self.guidance_embedder is None or guidance is None:
            return vector
        return vector + self.guidance_embedder(self._features(guidance, text))

    def _features(self, number: Scalar, like: Array) -> Array:
        wide = jnp.promote_types(like.dtype, jnp.float32)
        return self.time_proj(jnp.asarray(number, wide)).astype(like.dtype)
