"""Run as each of two hosts by test_scale.py: trains, then begins runs that one host cannot join.

Prints JSON of what each of these is refused with.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jax

from dgjax.cli import main
from dgjax.training import fit, load_config


def refusal(config, run_dir):
    try:
        fit(config, run_dir, progress=False)
    except ValueError as error:
        return str(error)


if __name__ == "__main__":
    file, run = map(Path, sys.argv[1:])
    sys.argv = ["dgjax", "train", str(file), "--out", str(run), "--distributed"]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
    host, config = jax.process_index(), load_config(file)
    without, behind = config, run
    if host == 1:
        without = replace(config, data=replace(config.data, path="nowhere.npz"))
        behind = run.with_name("behind")
        shutil.copytree(run / "checkpoints/4", behind / "checkpoints/4")
        for name in ("config.json", "data.json"):
            shutil.copy(run / name, behind)
    found = {
        "a folder each": refusal(config, run.with_name(f"own-{host}")),
        "no data": refusal(without, run.with_name("without")),
        "another step": refusal(config, behind),
    }
    print(json.dumps(found))
