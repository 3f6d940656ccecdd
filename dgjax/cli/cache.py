"""Compiled programs that one command leaves to the next."""

import os

import jax
import platformdirs

__all__ = ["keep_compiled"]

LIMIT = 2**30  # bytes; what was used longest ago goes first


def keep_compiled() -> None:
    """Keep what XLA compiles in the user's cache folder, unless JAX was told another place.

    A folder that cannot be written to is done without. `JAX_COMPILATION_CACHE_DIR` is JAX's own
    variable for the place, and `JAX_ENABLE_COMPILATION_CACHE=0` switches all of it off.
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
