"""The README's Python, run as a reader would."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run_and_say_what_the_readme_says(float32):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 3
    names: dict = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    falling = np.asarray(names["smooth_to_rough"].log_density)
    assert (np.diff(falling) < 0).all()
    np.testing.assert_allclose(names["found"].log_density, -2 * np.log(2 * np.pi), atol=0.02)
    assert abs(float(names["shot"].sampled.log_density) + 8) < 0.04
    assert bool(names["steered"].info.target_met) == (
        abs(float(names["steered"].log_density) + 8) < 0.04
    )
