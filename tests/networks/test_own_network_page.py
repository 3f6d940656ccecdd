"""Every block of the page on networks of one's own runs, and its models have a log-density."""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgjax

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-network.md"
if not PAGE.is_file():
    pytest.skip("docs/ is not in source distributions", allow_module_level=True)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
LIBRARIES = ["torch", "flax.linen", "haiku", "equinox"]


def library(block):
    return next((name for name in LIBRARIES if f"import {name}" in block), None)


@pytest.mark.slow
def test_the_blocks_of_this_library(capsys):
    names = {}
    for block in BLOCKS:
        if library(block) is None:
            exec(block, names)
    printed = np.array(capsys.readouterr().out.split(), float).reshape(-1, 2)
    assert len(printed) == 3
    np.testing.assert_allclose(*printed.T, atol=0.02)
    shows_mistakes(names)


def shows_mistakes(names):
    """The check of the page fails for what it says that it finds."""
    flow, check, x = (names[name] for name in ("flow", "check", "x"))
    grid, own = dgjax.grid_logsnr(flow, 64), names["velocity_from_noise"]
    mistakes = {
        "time": lambda x, t, cond: own(x, t, cond),
        "sign": lambda x, t, cond: own(x, 1 - t, cond),
        "time alone": lambda x, t, cond: -own(x, t, cond),
        "scale": lambda x, t, cond: -own(x, 1 - t, cond) * 1.1,
        "input": lambda x, t, cond: -own(x, 1000 * (1 - t), cond),
    }
    for name, network in mistakes.items():
        wrong = dgjax.field(
            network, flow.path, dgjax.VelocityPrediction(), t_min=flow.t_min, t_max=flow.t_max
        )
        found, exact = check(wrong, grid, x)
        assert not abs(found - exact) < 0.2, name


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_block_of_another_library(name):
    pytest.importorskip(name)
    (block,) = [block for block in BLOCKS if library(block) == name]
    names = {}
    exec(BLOCKS[0], names)
    exec(block, names)
    model, x = names["model"], jnp.array([0.3, -0.2, 0.5, 0.1])
    if name == "torch":
        assert np.isfinite(names["drawn"].log_density)
        model = dgjax.condition(model, jnp.zeros(4))
    else:
        assert sum(a.size for a in jax.tree.leaves(model.network)) >= 5 * 16 + 16 + 16 * 4 + 4
    run = jax.jit(lambda model: dgjax.score(model, 1.0, x))
    assert np.isfinite(run(model)).all()
    assert importlib.import_module(name)
