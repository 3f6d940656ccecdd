"""Peak memory of `dgjax import` and of loading its checkpoint, against the size of the weights.

A transformer for latents of random weights, in shards as large models are published. Each row is a
process of its own; what a process takes that only imports the libraries is subtracted. Files that
are mapped count while they are.

    python experiments/import_memory.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from dgjax.checkpoints.arrays import to_named
from dgjax.importing.diffusers_dit import read_dit
from dgjax.networks import DiT

MIB = 2**20
SHARD = 100 * MIB  # a file's size at most
CONFIG = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 12,
    "attention_head_dim": 64,
    "num_layers": 8,
    "sample_size": 32,
    "out_channels": 8,
}
# `getrusage` would count what this process had when it started the other.
PRELUDE = """
import re, sys
from pathlib import Path
import jax, numpy as np
from dgjax.checkpoints.checkpoint import load
from dgjax.cli import app
folder, out = {folder!r}, {out!r}
{program}
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""
PROGRAMS = {
    "libraries": "np.asarray(jax.numpy.zeros(3))",
    "dgjax import": "sys.argv[1:] = ['import', folder, out]; app(standalone_mode=False)",
    "load": "jax.block_until_ready(load(out))",
}


def write(folder):
    """Write the model in the format of diffusers and return the bytes of its weights."""
    shape, network, _ = read_dit(CONFIG)
    del network["kind"]
    like = nnx.eval_shape(lambda: DiT(shape, **network, rngs=nnx.Rngs(0)))
    rng, shards, places, total = np.random.default_rng(0), [{}], {}, 0
    for name, leaf in to_named(like).items():
        owner, _, last = name.rpartition(".")
        there = "weight" if last in ("kernel", "scale", "embedding") else last
        value = 0.02 * rng.standard_normal(leaf.shape, np.float32)
        if sum(a.nbytes for a in shards[-1].values()) + value.nbytes > SHARD:
            shards.append({})
        shards[-1][f"{owner}.{there}"] = np.ascontiguousarray(_as_source(last, value))
        total += value.nbytes
    for i, shard in enumerate(shards, 1):
        file = f"diffusion_pytorch_model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file)
        places |= dict.fromkeys(shard, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    scheduler = {"_class_name": "DDIMScheduler"}
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    return total


def _as_source(last, value):
    if last != "kernel":
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)


def peak(program, folder):
    """Return the peak memory, in MiB, of a process that runs `program`."""
    text = PRELUDE.format(folder=str(folder), out=str(folder / "out"), program=program)
    done = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1])


def main():
    with tempfile.TemporaryDirectory() as place:
        weights = write(Path(place)) / MIB
        found = {name: peak(program, Path(place)) for name, program in PROGRAMS.items()}
    base = found.pop("libraries")
    print(f"weights {weights:,.0f} MiB; libraries alone {base:,} MiB\n")
    print("| | peak, MiB | above the libraries, in sizes of the weights |")
    print("|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:,} | {(value - base) / weights:.2f} |")


if __name__ == "__main__":
    main()
