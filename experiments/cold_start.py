"""Cold start: time of the first `dgjax sample` on a machine, and of the second.

Each row is a process of its own. *Network alone* compiles one evaluation of the shipped network,
with the one product that a log-density takes, on as many samples as the command has in a call.

    python experiments/cold_start.py
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH = 8
NETWORK = f"""
import time
import jax
import dgjax
model, meta = dgjax.load_pretrained("fashion-mnist")
x = jax.numpy.zeros(({BATCH}, *meta.shape))

@jax.jit
def evaluate(model, x):
    denoise = lambda x: dgjax.denoise(model, model.t_max, x)
    return jax.vmap(lambda x: jax.jvp(denoise, (x,), (x,)))(x)

began = time.perf_counter()
evaluate.lower(model, x).compile()
print(time.perf_counter() - began)
"""
SAMPLE = """
import sys
from dgjax.cli import main
sys.argv = ["dgjax", "sample", "--out", {!r}]
main()
"""
IMPORT = "import dgjax; [getattr(dgjax, name) for name in dgjax.__all__]"


def process(program, cache):
    """Run `program` in Python and return (seconds, its output)."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - began, done.stdout


def main():
    with tempfile.TemporaryDirectory() as folder:
        first, second, out = (str(Path(folder) / name) for name in ("one", "two", "out"))
        sample = SAMPLE.format(out)
        process(IMPORT, first)  # so that files are in memory for all rows
        rows = [
            ("network alone: compilation", float(process(NETWORK, first)[1])),
            ("`import dgjax` and every name of it", process(IMPORT, first)[0]),
            ("`dgjax sample`, nothing compiled before", process(sample, second)[0]),
            ("`dgjax sample` again", process(sample, second)[0]),
        ]
    lines = ["| | seconds |", "|---|---|", *(f"| {name} | {took:.1f} |" for name, took in rows)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
