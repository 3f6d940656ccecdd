"""`dgjax likelihood`: compute log-density and bits per dimension of images and arrays."""

from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer

from dgjax.checkpoints.opened import condition_on_class, density_title
from dgjax.cli.options import (
    BATCH,
    CLASS,
    JSON,
    MODEL,
    PROBES_HELP,
    SEED,
    SOLVER,
    STEPS,
    choose_model,
    make_solver,
    table,
)
from dgjax.devices.batches import map_batches
from dgjax.files import as_json
from dgjax.pictures.quantization import bits_per_dim, dequantize
from dgjax.pictures.sample_files import LazySamples, encode_levels, read_samples
from dgjax.sampling.likelihood import likelihood
from dgjax.sampling.solvers import default_divergence
from dgjax.sampling.time_grids import grid_logsnr

__all__ = ["command"]


def command(
    files: Annotated[
        list[Path], typer.Argument(help="Images of the model's size, or npz files with an array x.")
    ],
    model: MODEL = "fashion-mnist",
    class_: CLASS = None,
    batch: BATCH = 8,
    steps: STEPS = 32,
    solver: SOLVER = "multistep",
    probes: Annotated[int, typer.Option(min=2, help=PROBES_HELP)] = 5,
    seed: SEED = 0,
    json: JSON = False,
) -> None:
    """Compute log-density (nats) and bits per dimension of data, by the probability-flow ODE.

    A latent model encodes pictures to the mean of their latent first; the log-density is that of
    the latent, without bits per dimension. With --class it is the conditional log p(x | class).
    """
    chosen, method = condition_on_class(choose_model(model), class_), make_solver(solver)
    read = read_samples(files, chosen)
    latent = chosen.meta.latent
    if latent:
        read = [encode_levels(file, chosen) for file in read]
    keys = jax.random.split(jax.random.key(seed), 2)
    grid = grid_logsnr(chosen.field, steps)
    divergence = default_divergence(probes, method, chosen.size)

    @jax.jit
    def run(field, keys, batch):
        def one(x, quantized, i):
            noise_key, key = jax.random.fold_in(keys[0], i), jax.random.fold_in(keys[1], i)
            if not latent:
                dequantized = dequantize(noise_key, x.astype(jnp.uint8), chosen.meta.data_range)
                x = jnp.where(quantized, dequantized, x)
            return likelihood(field, x, grid, key=key, divergence=divergence, solver=method)

        found = jax.vmap(one)(*batch)
        return found.log_density, found.info.standard_error, found.info.solver_error

    names = [name for file in read for name in file.names]
    quantized = np.concatenate([np.full(len(file.names), file.quantized) for file in read])
    items = (LazySamples(read, chosen.meta.shape), quantized, np.arange(len(names)))
    log_density, error, solver_error = map_batches(
        "likelihood", run, items, batch, chosen.field, keys
    )
    rows: list[dict[str, Any]] = [
        {
            "file": name,
            "data": ("encoded" if latent else "dequantized") if levels else "as given",
            "log_density": float(value),
            "log_density_standard_error": float(spread),
            "log_density_solver_error": float(of_grid),
        }
        for name, levels, value, spread, of_grid in zip(
            names, quantized, log_density, error, solver_error, strict=True
        )
    ]
    columns = [
        ("log_density", "log-density, nats", ",.1f"),
        ("log_density_standard_error", "+- probes", ".1f"),
        ("log_density_solver_error", "+- solver", ".2g"),
    ]
    if not latent:
        for row, value, spread in zip(rows, log_density, error, strict=True):
            bits = bits_per_dim(value, chosen.size, chosen.meta.data_range)
            row["bits_per_dim"] = float(bits)
            row["bits_per_dim_standard_error"] = float(spread / (chosen.size * np.log(2)))
        columns += [
            ("bits_per_dim", "bits/dim", ".3f"),
            ("bits_per_dim_standard_error", "+- probes", ".3f"),
        ]
    summary = {**chosen.facts(), "steps": steps, "solver": solver, "probes": probes, "rows": rows}
    if json:
        print(as_json(summary))
        return
    table(
        f"{chosen.name}: {density_title(summary)}, of x as it is there",
        ["file", "data", *(header for _, header, _ in columns)],
        [
            [row["file"], row["data"], *(format(row[name], form) for name, _, form in columns)]
            for row in rows
        ],
    )
