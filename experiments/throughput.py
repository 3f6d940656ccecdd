"""Training: do data, records or checkpoints slow the training step down?

The rate of `fit`, from the times that it notes in `metrics.jsonl`, against that of its own jitted
step on one batch that lies on the devices already. Both in one process, in turn, each compiled and
warmed up before it is timed. `fit` writes its curves and one checkpoint meanwhile, which in a real
run is due every 250 steps. Snapshots of the averages, due as rarely, and held-out losses and
pictures, asked for by the thousand steps, are left out.

    python experiments/throughput.py
"""

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from dgjax.data.named_datasets import load_data
from dgjax.devices.sharding import device_mesh
from dgjax.training import fit, load_config
from dgjax.training.components import (
    create_state,
    jit_train_step,
    make_augment,
    model_shapes,
    state_shapes,
)
from dgjax.training.data_parallel import global_batch, host_rows, state_shardings
from dgjax.training.pipeline import training_batches

CONFIG, STEPS, ROUNDS, WARM = "fashion-mnist", 60, 3, 10
OUT = Path(__file__).parent / "figures" / "throughput.md"


def bare(config):
    """Make a function that times STEPS steps on one batch, in images per second."""
    mesh = device_mesh()
    data = load_data(config.data, config.model.shape)
    where = state_shardings(state_shapes(config), mesh, config.execution.parameters)
    state, step = (
        create_state(config, where),
        jit_train_step(config, model_shapes(config), mesh, where),
    )
    rows = host_rows(config.batch, mesh)
    feed = training_batches(
        data, make_augment(config), batch=config.batch, seed=0, start=0, rows=rows
    )
    batch, key = global_batch(next(feed), mesh), jax.random.key(0)

    def run(count):
        nonlocal state
        for i in range(count):
            state, metrics = step(state, batch, jax.random.fold_in(key, i))
        jax.block_until_ready(metrics)

    run(WARM)

    def rate():
        began = time.perf_counter()
        run(STEPS)
        return STEPS * config.batch / (time.perf_counter() - began)

    return rate


def whole(config):
    """Return images per second of a run, between its first and last record after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        fit(config, folder)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").open()]
    first, last = (next(n for n in lines if n["step"] == s) for s in (WARM, WARM + STEPS))
    return STEPS * config.batch / (last["time"] - first["time"])


def main():
    config = load_config(CONFIG)
    records = replace(config.records, log_every=10, save_every=50, validate_every=0)
    config = replace(config, steps=WARM + STEPS, ema_snapshots=1, records=records)
    rate = bare(config)
    found = []
    for _ in range(ROUNDS):
        found.append((rate(), whole(config), rate()))
    rows = [
        f"| {(before + after) / 2:.1f} | {run:.1f} | {2 * run / (before + after):.3f} |"
        for before, run, after in found
    ]
    ratios = [2 * run / (before + after) for before, run, after in found]
    lines = [
        "| bare step, images/s | `fit`, images/s | ratio |",
        "|---|---|---|",
        *rows,
        f"| | median | {np.median(ratios):.3f} |",
    ]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
