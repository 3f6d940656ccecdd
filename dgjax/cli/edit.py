"""`dgjax edit`: encode a picture to its latent and decode it at other log-densities."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from dgjax.checkpoints.opened import density_title
from dgjax.cli.auto_steps import AUTO, STEPS_OR_AUTO, TOLERANCE, find_steps, set_tolerance
from dgjax.cli.estimators import DIVERGENCE, choose_divergence
from dgjax.cli.options import (
    CLASS,
    COND,
    DISTILLED_GUIDANCE,
    DTYPE,
    HEIGHT,
    JSON,
    MODEL,
    OUT,
    PROBES,
    PROMPT,
    SEED,
    SOLVER,
    WIDTH,
    choose_conditioned,
    make_solver,
    table,
)
from dgjax.cli.stated_errors import error_cell, error_columns, error_entries, note_coarse
from dgjax.devices.batches import map_batches
from dgjax.devices.progress import say
from dgjax.files import as_json, output_folder, write_arrays, write_json
from dgjax.guidance.density import density_guidance
from dgjax.pictures.grid import image_grid, save_figure
from dgjax.pictures.image_files import fit_image, read_image
from dgjax.pictures.latents import from_levels, to_pictures
from dgjax.pictures.png import encode_png
from dgjax.pictures.quantization import to_uint8
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.sample import sample
from dgjax.sampling.time_grids import grid_logsnr

__all__ = ["command"]

QUANTILES = [0.3, 0.4, 0.5, 0.6, 0.7]


def command(
    image: Annotated[
        Path, typer.Argument(help="A picture; it is cropped and resized to the model's size.")
    ],
    model: MODEL = "avatars",
    q: Annotated[
        list[float] | None,
        typer.Option(
            help="Quantile in (0, 1), repeatable; 0.5 is the reconstruction.",
            show_default="0.3, 0.4, 0.5, 0.6, 0.7",
        ),
    ] = None,
    class_: CLASS = None,
    prompt: PROMPT = None,
    distilled_guidance: DISTILLED_GUIDANCE = None,
    cond: COND = None,
    height: HEIGHT = None,
    width: WIDTH = None,
    dtype: DTYPE = "float32",
    steps: STEPS_OR_AUTO = 32,
    tolerance: TOLERANCE = None,
    solver: SOLVER = "multistep",
    probes: PROBES = 5,
    divergence: DIVERGENCE = "probes",
    seed: SEED = 0,
    out: OUT = Path("dgjax-out"),
    json: JSON = False,
) -> None:
    """Encode a picture to its latent and decode it at other log-densities."""
    method = make_solver(solver)
    size = height, width
    chosen = choose_conditioned(
        model, class_, prompt, distilled_guidance, file=cond, size=size, dtype=dtype
    )
    tolerance = set_tolerance(steps, tolerance, chosen.size)
    dials = jnp.asarray(sorted(q or QUANTILES), jnp.float32)
    for dial in dials:  # raises now, before anything is computed
        density_guidance(dial)
    given = fit_image(read_image(image), chosen.image_shape)
    keys = jax.random.split(jax.random.key(seed), 3)
    clean = from_levels(chosen, given)
    # The model describes pictures with the noise of t_min, so this noise is added first.
    field = chosen.field
    noise = jax.random.normal(keys[0], clean.shape)
    x = field.path.alpha(field.t_min) * clean + field.path.sigma(field.t_min) * noise
    estimator = choose_divergence(divergence, probes, method, chosen)
    options = {"divergence": estimator, "solver": method}

    def encode_one(field, x, grid):
        return likelihood(field, x, grid, key=keys[1], **options)

    def decode_one(field, latent, grid, dial):
        guides = (density_guidance(dial),)
        return sample(field, latent, grid, key=keys[2], guides=guides, **options)

    if steps == AUTO:

        def there_and_back(field, x, grid, *, key):
            del key  # those of the edit serve here too
            code = encode_one(field, x, grid)
            found = jax.lax.map(partial(decode_one, field, code.latent, grid), dials)
            error = jnp.maximum(code.info.solver_error, jnp.max(found.info.solver_error))
            return code._replace(info=code.info._replace(solver_error=error))

        steps = find_steps(field, x[None], tolerance, key=keys[1], run=there_and_back)
    grid = grid_logsnr(field, steps)

    @jax.jit
    def encode(field, batch):
        return jax.vmap(lambda x: encode_one(field, x, grid))(batch)

    @jax.jit
    def decode(field, latent, batch):
        return jax.vmap(partial(decode_one, field, latent, grid))(batch)

    with output_folder(out):
        code = map_batches("encoding", encode, x[None], 1, field)
        found = map_batches(
            "decoding", decode, dials, len(dials), field, jnp.asarray(code.latent[0])
        )
        pictures = to_pictures(chosen, np.stack([np.asarray(x), *found.x]))
        levels = to_uint8(pictures, chosen.meta.data_range)
        sizes = [len(encode_png(picture)) for picture in levels]
        changes = np.sqrt(np.mean((pictures - pictures[0]) ** 2, axis=(1, 2, 3)))
        rows = [
            {
                "q": round(float(dial), 6),
                "log_density": float(value),
                **error_entries(*errors),
                "png_bytes": size,
                "rms_change": float(change),
            }
            for dial, value, size, change, *errors in zip(
                np.asarray(dials),
                found.log_density,
                sizes[1:],
                changes[1:],
                found.info.standard_error,
                found.info.solver_error,
                strict=True,
            )
        ]
        errors = code.info.standard_error[0], code.info.solver_error[0]
        summary = {
            **chosen.facts(),
            "image": image.name,
            "steps": steps,
            "log_density": float(code.log_density[0]),
            **error_entries(*errors),
            "png_bytes": sizes[0],
            "rows": rows,
        }
        arrays = {
            "x": found.x,
            "q": np.asarray(dials),
            "log_density": found.log_density,
            "original": np.asarray(x),
            "original_log_density": code.log_density[0],
            "latent": code.latent[0],
            "t_min": summary["t_min"],
        }
        if chosen.meta.latent:
            arrays["pixels"] = levels
    write_arrays(out / "edit.npz", arrays)
    write_json(out / "edit.json", summary)
    texts = [f"original\n{summary['log_density']:,.0f} nats"]
    texts += [f"q = {row['q']:g}\n{row['log_density']:,.0f} nats" for row in rows]
    figure = image_grid(
        levels[None],
        [image.name if len(image.name) < 22 else f"{image.name[:20]}…"],
        column_labels=texts,
        caption=f"{chosen.name}; {density_title(summary)}",
    )
    save_figure(out / "edit.png", figure, "edit.npz and edit.json are")
    note_coarse([summary, *rows], chosen.size, steps)
    if json:
        print(as_json(summary))
    else:
        names = [name for _, name in error_columns(divergence)]
        original = [
            "original",
            f"{summary['log_density']:,.1f}",
            *_error_cells(summary),
            str(summary["png_bytes"]),
            "",
        ]
        table(
            f"{image.name} by {chosen.name}: {density_title(summary)}",
            ["q", "log p, nats", *names, "PNG bytes", "RMS change"],
            [original]
            + [
                [
                    f"{row['q']:g}",
                    f"{row['log_density']:,.1f}",
                    *_error_cells(row),
                    str(row["png_bytes"]),
                    f"{row['rms_change']:.3f}",
                ]
                for row in rows
            ],
        )
    say(f"wrote edit.png, edit.npz and edit.json to {out}/")


def _error_cells(row: Mapping[str, Any]) -> list[str]:
    return [error_cell(row[key]) for key, _ in error_columns("probes")]
