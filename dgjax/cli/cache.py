"""Cache of compiled programs, so that a command need not compile what an earlier one compiled."""

import os

import jax
import platformdirs

__all__ = ["enable_compilation_cache"]

LIMIT = 2**30  # bytes; the least recently used programs are removed first


def enable_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, unless JAX was given another place.

    If the folder cannot be written to, nothing is cached. JAX's own variables still apply:
    `JAX_COMPILATION_CACHE_DIR` sets the place, `JAX_ENABLE_COMPILATION_CACHE=0` turns caching off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = platformdirs.user_cache_path("dgjax") / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_max_size", LIMIT)
        jax.config.update("jax_compilation_cache_dir", str(folder))
