"""Render arrays of samples as one self-contained HTML page.

Style, script, images and numbers are all inside the page. Its content security policy tells the
browser to load nothing from anywhere and to run only the one script with the given hash.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dgjax.pictures.png import encode_png
from dgjax.pictures.quantization import bits_per_dim
from dgjax.sampling.results import stated_error

__all__ = ["Exploration", "Setting", "check_images", "render_page"]


class Setting(NamedTuple):
    """One way of sampling that the page offers as a button.

    Attributes:
        name: one or two words, for the button.
        words: one or two sentences that say what the setting does.
        noise: log-SNRs between which noise is added, possibly infinite; None without noise.
    """

    name: str
    words: str
    noise: tuple[float, float] | None = None


class Exploration(NamedTuple):
    """Samples from L latents, with S settings, at Q values of q.

    Attributes:
        levels: (S, L, Q, H, W, 1 or 3) uint8 levels of the pictures.
        log_density: (S, L, Q) log-density at t_min of each sample, or of its latent, in nats.
        standard_error: (S, L, Q) error of `log_density` from the probes in nats; NaN or infinite
            if unknown.
        solver_error: (S, L, Q) error of `log_density` from the solver in nats; NaN or infinite if
            unknown. The page shows the sum of both errors, as `dgjax.sampling.results.stated_error`
            has it, and says where the solver's is unknown.
        bound_share: (S, L, Q) share of the log-SNR range on which the guide was at its bound.
        course: (S, L, Q, steps + 1) log-density along each trajectory, in nats.
        logsnr: (steps + 1,) log-SNR at the points of `course`, rising.
        q: (Q,) values of q, rising.
        settings: the S settings.
        data_range: values of levels 0 and 255.
        latent: whether the log-density is that of latents, which have no bits per dimension.
    """

    levels: np.ndarray
    log_density: np.ndarray
    standard_error: np.ndarray
    solver_error: np.ndarray
    bound_share: np.ndarray
    course: np.ndarray
    logsnr: np.ndarray
    q: np.ndarray
    settings: Sequence[Setting]
    data_range: tuple[float, float] = (-1.0, 1.0)
    latent: bool = False


def check_images(shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless `shape` is (H, W, 1) or (H, W, 3)."""
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(
            f"the explorer shows images (H, W, 1 or 3), and this model's samples have shape {shape}"
        )


def render_page(found: Exploration, name: str, about: Mapping[str, str]) -> str:
    """Render the explorer as an HTML file that needs no other file and no network.

    Args:
        found: the samples to show.
        name: name of the model.
        about: how the samples were made: terms and their descriptions, as plain text.

    Returns:
        The text of the file.

    Raises:
        ValueError: if the samples are not uint8 images, or the shapes of the arrays do not match.
    """
    _check(found)
    style, script = _own("style.css"), _own("explorer.js")
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(style)}; script-src {_hash(script)}"
    )
    terms = (f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in about.items())
    return Template(_own("page.html")).substitute(
        policy=policy,
        name=html.escape(name),
        style=style,
        script=script,
        about="\n".join(terms),
        data=_json(_data(found)),
    )


def _check(found: Exploration) -> None:
    check_images(found.levels.shape[3:])
    if found.levels.dtype != np.uint8:
        raise ValueError(f"levels must be uint8, got {found.levels.dtype}: use to_uint8 first")
    samples = (len(found.settings), *found.levels.shape[1:2], len(found.q))
    wanted = {
        "levels": (*samples, *found.levels.shape[3:]),
        "log_density": samples,
        "standard_error": samples,
        "solver_error": samples,
        "bound_share": samples,
        "course": (*samples, len(found.logsnr)),
    }
    for field, shape in wanted.items():
        given = getattr(found, field).shape
        if given != shape:
            raise ValueError(
                f"{field} has shape {given}, expected {shape} for {samples[0]} settings, "
                f"{samples[1]} latents and {samples[2]} values of q"
            )


def _data(found: Exploration) -> dict[str, Any]:
    """Collect the data that the script reads, with more digits than it shows."""
    size = int(np.prod(found.levels.shape[3:]))
    bits = np.asarray(bits_per_dim(found.log_density, size, found.data_range))
    if found.latent:
        bits = np.full_like(bits, np.nan)

    known = np.isfinite(found.solver_error)
    solver = np.where(known, found.solver_error, np.inf)  # infinite ones are left out of the sum
    error = np.asarray(stated_error(jnp.asarray(found.standard_error), jnp.asarray(solver)))

    def sample(at: tuple[int, ...]) -> dict[str, Any]:
        png = encode_png(found.levels[at])
        return {
            "png": base64.b64encode(png).decode(),
            "bytes": len(png),
            "nats": _number(found.log_density[at], 4),
            "error": _number(error[at], 4),
            "solver": bool(known[at]),
            "bits": _number(bits[at], 6),
            "bound": _number(found.bound_share[at], 3),
            "course": [_number(value, 1) for value in found.course[at]],
        }

    settings, latents, values = found.levels.shape[:3]
    return {
        "q": [_number(q, 4) for q in found.q],
        "logsnr": [_number(value, 3) for value in found.logsnr],
        "settings": [
            {"name": name, "words": words, "noise": noise and [_number(end, 3) for end in noise]}
            for name, words, noise in found.settings
        ],
        "samples": [
            [[sample((s, i, j)) for j in range(values)] for i in range(latents)]
            for s in range(settings)
        ],
    }


def _number(value: Any, digits: int) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None


def _json(data: Any) -> str:
    """Make JSON that cannot end its HTML element early, whatever text is in it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _own(name: str) -> str:
    return (files("dgjax.explorer") / name).read_text("utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
