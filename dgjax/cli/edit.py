"""`dgjax edit`: encode a picture to its latent and decode it at other log-densities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from dgjax.checkpoints.opened import condition_on_class, density_title
from dgjax.cli.options import (
    CLASS,
    JSON,
    MODEL,
    OUT,
    PROBES,
    SEED,
    SOLVER,
    STEPS,
    choose_model,
    make_solver,
    table,
)
from dgjax.devices.batches import map_batches
from dgjax.devices.progress import console
from dgjax.files import as_json, output_folder, write_json
from dgjax.guidance.density import density_guidance
from dgjax.pictures.grid import image_grid
from dgjax.pictures.image_files import fit_image, read_image
from dgjax.pictures.latents import from_levels, to_pictures
from dgjax.pictures.png import encode_png
from dgjax.pictures.quantization import to_uint8
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.sample import sample
from dgjax.sampling.solvers import default_divergence
from dgjax.sampling.time_grids import grid_logsnr

__all__ = ["command"]

QUANTILES = [0.3, 0.4, 0.5, 0.6, 0.7]


def command(
    image: Annotated[
        Path, typer.Argument(help="A picture; it is cropped and resized to the model's size.")
    ],
    model: MODEL = "fashion-mnist",
    q: Annotated[
        list[float] | None,
        typer.Option(help="Quantile in (0, 1), repeatable; 0.5 is the reconstruction."),
    ] = None,
    class_: CLASS = None,
    steps: STEPS = 32,
    solver: SOLVER = "multistep",
    probes: PROBES = 5,
    seed: SEED = 0,
    out: OUT = Path("dgjax-out"),
    json: JSON = False,
) -> None:
    """Encode a picture to its latent and decode it at other log-densities."""
    chosen, method = condition_on_class(choose_model(model), class_), make_solver(solver)
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
    grid = grid_logsnr(field, steps)
    divergence = default_divergence(probes, method, chosen.size)

    @jax.jit
    def encode(field, batch):
        return jax.vmap(
            lambda x: likelihood(field, x, grid, key=keys[1], divergence=divergence, solver=method)
        )(batch)

    @jax.jit
    def decode(field, latent, batch):
        return jax.vmap(
            lambda dial: sample(
                field,
                latent,
                grid,
                key=keys[2],
                guides=(density_guidance(dial),),
                divergence=divergence,
                solver=method,
            )
        )(batch)

    with output_folder(out) as folder:
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
                "log_density_standard_error": float(spread),
                "log_density_solver_error": float(of_grid),
                "png_bytes": size,
                "rms_change": float(change),
            }
            for dial, value, spread, of_grid, size, change in zip(
                np.asarray(dials),
                found.log_density,
                found.info.standard_error,
                found.info.solver_error,
                sizes[1:],
                changes[1:],
                strict=True,
            )
        ]
        summary = {
            **chosen.facts(),
            "image": image.name,
            "log_density": float(code.log_density[0]),
            "log_density_standard_error": float(code.info.standard_error[0]),
            "log_density_solver_error": float(code.info.solver_error[0]),
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
        np.savez_compressed(folder / "edit.npz", **arrays)
        texts = [f"original\n{summary['log_density']:,.0f} nats"]
        texts += [f"q = {row['q']:g}\n{row['log_density']:,.0f} nats" for row in rows]
        image_grid(
            levels[None],
            [image.name if len(image.name) < 22 else f"{image.name[:20]}…"],
            column_labels=texts,
            caption=f"{chosen.name}; {density_title(summary)}",
        ).savefig(folder / "edit.png")
        write_json(folder / "edit.json", summary)
    if json:
        print(as_json(summary))
    else:
        original = [
            "original",
            f"{summary['log_density']:,.1f}",
            _error(summary),
            str(summary["png_bytes"]),
            "",
        ]
        table(
            f"{image.name} by {chosen.name}: {density_title(summary)}",
            ["q", "log-density, nats", "+-", "PNG bytes", "RMS change"],
            [original]
            + [
                [
                    f"{row['q']:g}",
                    f"{row['log_density']:,.1f}",
                    _error(row),
                    str(row["png_bytes"]),
                    f"{row['rms_change']:.3f}",
                ]
                for row in rows
            ],
        )
    console.print(f"wrote edit.png, edit.npz and edit.json to {out}/")


def _error(row: Mapping[str, Any]) -> str:
    """Write the stated error of a log-density: of the probes and of the solver together."""
    parts = row["log_density_standard_error"], row["log_density_solver_error"]
    return f"{np.hypot(*parts):,.1f}"
