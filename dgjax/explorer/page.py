"""Arrays in, one self-contained page out: style, script, pictures and figures are all inside.

The browser is told by the page's own policy to load nothing from anywhere, and to run only the
one script whose hash stands there.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

import numpy as np

from dgjax.pictures.quantization import bits_per_dim, to_png

__all__ = ["Exploration", "Setting", "check_images", "render_page"]


class Setting(NamedTuple):
    """A way of sampling that the page offers beside q.

    Attributes:
        name: a word or two, for a button.
        words: what it does, in a plain sentence or two.
        noise: log-SNRs between which noise acts, which may be infinite; None if there is none.
    """

    name: str
    words: str
    noise: tuple[float, float] | None = None


class Exploration(NamedTuple):
    """Samples of L latents by S settings at Q values of the dial, and how they came about.

    Attributes:
        x: (S, L, Q, H, W, 1 or 3), pictures with values in `data_range`.
        log_density: (S, L, Q), of x at t_min or of its latent, in nats.
        standard_error: (S, L, Q), of `log_density`, in nats; not finite where it is not known.
        bound_share: (S, L, Q), share of the log-SNR range on which the guide was at its bound.
        course: (S, L, Q, steps + 1), log-density along each trajectory, in nats.
        logsnr: (steps + 1,), of the points of `course`, rising.
        q: (Q,), rising.
        settings: S of them.
        data_range: values shown as black and white.
        latent: whether the log-density is of latents, which have no bits per dimension.
    """

    x: np.ndarray
    log_density: np.ndarray
    standard_error: np.ndarray
    bound_share: np.ndarray
    course: np.ndarray
    logsnr: np.ndarray
    q: np.ndarray
    settings: Sequence[Setting]
    data_range: tuple[float, float] = (-1.0, 1.0)
    latent: bool = False


def check_images(shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless samples of `shape` can be shown."""
    if len(shape) != 3 or shape[-1] not in (1, 3):
        raise ValueError(
            f"the explorer shows images (H, W, 1 or 3), and this model's samples have shape {shape}"
        )


def render_page(found: Exploration, name: str, about: Mapping[str, str]) -> str:
    """The explorer as the text of an HTML file, which needs no other file and no network.

    Args:
        found: what is shown.
        name: of the model.
        about: how it was made, as terms and what is to be said of each; plain text.

    Raises:
        ValueError: if the samples are no images, or the arrays do not belong together.
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
    check_images(found.x.shape[3:])
    samples = (len(found.settings), *found.x.shape[1:2], len(found.q))
    wanted = {
        "x": (*samples, *found.x.shape[3:]),
        "log_density": samples,
        "standard_error": samples,
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
    """What the script reads; figures with digits enough to be rounded again."""
    size = int(np.prod(found.x.shape[3:]))
    bits = np.asarray(bits_per_dim(found.log_density, size, found.data_range))
    if found.latent:
        bits = np.full_like(bits, np.nan)

    def sample(at: tuple[int, ...]) -> dict[str, Any]:
        png = _png(found.x[at], found.data_range)
        return {
            "png": base64.b64encode(png).decode(),
            "bytes": len(png),
            "nats": _number(found.log_density[at], 4),
            "error": _number(found.standard_error[at], 4),
            "bits": _number(bits[at], 6),
            "bound": _number(found.bound_share[at], 3),
            "course": [_number(value, 1) for value in found.course[at]],
        }

    settings, latents, dials = found.x.shape[:3]
    return {
        "q": [_number(q, 4) for q in found.q],
        "logsnr": [_number(value, 3) for value in found.logsnr],
        "settings": [
            {"name": name, "words": words, "noise": noise and [_number(end, 3) for end in noise]}
            for name, words, noise in found.settings
        ],
        "samples": [
            [[sample((s, i, j)) for j in range(dials)] for i in range(latents)]
            for s in range(settings)
        ],
    }


def _png(x: np.ndarray, data_range: tuple[float, float]) -> bytes:
    """What is not finite is shown as black."""
    low = data_range[0]
    return to_png(np.nan_to_num(x, nan=low, posinf=low, neginf=low), data_range)


def _number(value: Any, digits: int) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None


def _json(data: Any) -> str:
    """JSON that no text in it can end the element early."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _own(name: str) -> str:
    return (files("dgjax.explorer") / name).read_text("utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
