"""Speed of imported networks: Flax compiled by XLA against PyTorch, eager and compiled.

Each network of diffusers gets random weights, is saved and imported, and then runs on the same
images and cores, or the same accelerator, on all sides, in turn in one process. Figures are medians
over the rounds of the time of a batch, and ratios of PyTorch's to ours: above 1 Flax is the faster.
Peak memory is that of a process for each side alone, above what it has before there is a network;
on an accelerator it is what is taken there. On a CPU the precision of products changes nothing.

    python experiments/import_speed.py
    python experiments/import_speed.py --batches 16 64 256 --precision tf32    on a GPU
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BATCHES, ROUNDS, TIME = (1, 4, 16), 5, 431
SIDES = ("flax", "eager", "compile")
NAMES = {"flax": "dgjax", "eager": "PyTorch", "compile": "torch.compile"}
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32"}  # of products, and JAX's name
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared by all sides
SCHEDULER = {"_class_name": "DDIMScheduler", "clip_sample": False}
# "small" is for trying this script out; the others are as published (CIFAR-10's DDPM, DiT-S/2).
NETWORKS = {
    "small": (
        "UNet2DModel",
        {
            "sample_size": 16,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
    ),
    "ddpm": (
        "UNet2DModel",
        {
            "sample_size": 32,
            "block_out_channels": (128, 256, 256, 256),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
        },
    ),
    "dit": (
        "DiTTransformer2DModel",
        {
            "sample_size": 32,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 12,
            "num_attention_heads": 6,
            "attention_head_dim": 64,
            "num_embeds_ada_norm": 1000,
        },
    ),
}
OUT = Path(__file__).parent / "figures" / "import_speed.md"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["ddpm", "dit"])
    parser.add_argument("--sides", nargs="+", choices=SIDES[1:], default=SIDES[1:])
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of products")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)  # side, folder and batch
    return parser.parse_args()


def write(name, folder):
    """Write the named network with random weights in the format of diffusers."""
    import diffusers
    import torch

    kind, config = NETWORKS[name]
    torch.manual_seed(0)
    network = getattr(diffusers, kind)(**config)
    with torch.no_grad():  # what starts as zero would be all that is compared
        for weights in network.parameters():
            weights.add_(0.02 * torch.randn_like(weights))
    network.save_pretrained(folder)
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER))


def images(folder, batch):
    """Make a batch with channels first, and labels if the network takes them."""
    config = json.loads((folder / "config.json").read_text())
    size, labels = config["sample_size"], config.get("num_embeds_ada_norm")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, config["in_channels"], size, size)).astype(np.float32)
    return x, None if labels is None else rng.integers(labels, size=batch)


def device():
    """Return PyTorch's name of the device on which JAX runs."""
    import jax

    found = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if found is None:
        sys.exit(f"PyTorch is not compared on a {jax.default_backend()}: set JAX_PLATFORMS=cpu")
    return found


def set_precision(name):
    """Set the same precision of products in JAX and PyTorch."""
    import jax
    import torch

    jax.config.update("jax_default_matmul_precision", PRECISIONS[name])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"


def runner(side, folder, batch):
    """Make a function without arguments that computes a batch and returns it, channels first."""
    x, labels = images(folder, batch)
    if side == "flax":
        return flax_runner(folder, x, labels)
    import diffusers
    import torch

    kind = json.loads((folder / "config.json").read_text())["_class_name"]
    network = getattr(diffusers, kind).from_pretrained(folder, low_cpu_mem_usage=False).eval()
    network = network.to(device())
    call = torch.compile(network) if side == "compile" else network
    given = [torch.from_numpy(x), torch.full((batch,), TIME)]
    if labels is not None:
        given.append(torch.from_numpy(labels))
    given = [a.to(device()) for a in given]

    def run():
        with torch.inference_mode():
            out = call(*given).sample
        return out.cpu().numpy()[:, : x.shape[1]]

    return run


def flax_runner(folder, x, labels):
    import jax
    import jax.numpy as jnp

    from dgjax.importing.diffusers import import_diffusers

    found = import_diffusers(folder, scheduler=folder / "scheduler_config.json")
    network = jax.tree.map(jnp.asarray, found.model.network)
    over = (0, None, None if labels is None else 0)
    batched = jax.jit(lambda network, *given: jax.vmap(network, over)(*given))
    given = (jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.float32(TIME), labels)

    def run():
        return np.asarray(batched(network, *given)).transpose(0, 3, 1, 2)

    return run


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compared(folder, batch, sides, rounds):
    """Return median seconds of each side, and the largest difference over the largest value."""
    runs = {side: runner(side, folder, batch) for side in sides}
    outs = {side: run() for side, run in runs.items()}  # compiles, too
    for run in runs.values():
        run()
    times = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in runs.items():
            times[side].append(seconds(run))
    right = outs[sides[1]]
    far = np.abs(outs["flax"] - right).max() / np.abs(right).max()
    return {side: np.median(found) for side, found in times.items()}, far


def peak_of(side, folder, batch, precision):
    """Return the peak memory, in MiB, of one side in a process of its own."""
    command = [sys.executable, __file__, "--precision", precision]
    command += ["--peak", side, str(folder), str(batch)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(found.stdout.split()[-1])


def peak(side):
    """Return the peak memory so far in MiB; `getrusage` would include the parent process."""
    import jax
    import torch

    if device() == "cuda":
        taken = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
        return (taken if side == "flax" else torch.cuda.max_memory_allocated()) / 1024**2
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def print_peak(side, folder, batch):
    import jax
    import torch

    # Both libraries, and of what reads a network only what this side takes.
    jax.block_until_ready(jax.numpy.zeros(1))
    torch.zeros(1)
    if side == "flax":
        from dgjax.importing.diffusers import import_diffusers  # noqa: F401
    else:
        from diffusers import DiTTransformer2DModel, UNet2DModel  # noqa: F401
    before = peak(side)
    run = runner(side, Path(folder), int(batch))
    run()
    run()
    print(peak(side) - before)


def main():
    args = arguments()
    # Before either library counts the cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    set_precision(args.precision)
    if args.peak:
        return print_peak(*args.peak)
    import jax
    import torch

    from dgjax.importing.diffusers import ARCHITECTURES

    torch.set_num_threads(args.cores)
    compiler = shutil.which("c++") or shutil.which("g++")
    sides = ["flax", *(s for s in args.sides if compiler or s != "compile")]
    head = ["network", "batch", *(f"{NAMES[s]} (ms)" for s in sides)]
    head += [f"{NAMES[s]} / dgjax" for s in sides[1:]]
    head += [f"peak of {NAMES[s]} (MiB)" for s in sides] + ["greatest difference"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in args.networks:
        if NETWORKS[name][0] not in ARCHITECTURES:
            print(f"no {NETWORKS[name][0]} here")
            continue
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made) / name
            # Of its own, since what an interrupted compilation leaves there fails the next one.
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(made) / "compiled")
            write(name, folder)
            for batch in args.batches:
                times, far = compared(folder, batch, sides, args.rounds)
                peaks = {side: peak_of(side, folder, batch, args.precision) for side in sides}
                cells = [name, str(batch), *(f"{1000 * times[s]:.1f}" for s in sides)]
                cells += [f"{times[s] / times['flax']:.2f}" for s in sides[1:]]
                cells += [f"{peaks[s]:.0f}" for s in sides] + [f"{far:.1e}"]
                lines.append(f"| {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    kind, releases = (
        jax.devices()[0].device_kind,
        f"jax {jax.__version__}, PyTorch {torch.__version__}",
    )
    where = f"{args.cores} cores" if device() == "cpu" else f"{kind}, {args.precision}"
    notes = [f"{where}, {releases}, medians of {args.rounds} rounds."]
    if not compiler:
        notes.append("No C++ compiler here, which torch.compile takes.")
    text = "\n".join([*lines, "", *notes]) + "\n"
    print(text)
    OUT.write_text(text)


if __name__ == "__main__":
    main()
