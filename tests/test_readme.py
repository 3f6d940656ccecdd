"""The Python of README.md and CONTRIBUTING.md, executed as a reader would."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def execute(page):
    """Run all Python of `page` as one program; return its blocks and what it defines."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {"__name__": page.removesuffix(".md").lower()}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return blocks, names


@pytest.mark.slow
def test_the_examples_run_and_say_what_the_readme_says(float32):
    blocks, names = execute("README.md")
    assert len(blocks) == 3
    falling = np.asarray(names["smooth_to_rough"].log_density)
    assert (np.diff(falling) < 0).all()
    np.testing.assert_allclose(names["found"].log_density, -2 * np.log(2 * np.pi), atol=0.02)
    assert abs(float(names["shot"].sampled.log_density) + 8) < 0.04
    assert bool(names["steered"].info.target_met) == (
        abs(float(names["steered"].log_density) + 8) < 0.04
    )


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "CONTRIBUTING.md").exists(), reason="not in source distributions")
def test_what_contributing_adds_agrees_with_its_oracles():
    """Each example compares with its own oracle."""
    blocks, names = execute("CONTRIBUTING.md")
    assert len(blocks) == 11
    for name in ("OrnsteinUhlenbeck", "Attraction", "Kutta3", "Affine", "read_settings"):
        assert name in names
