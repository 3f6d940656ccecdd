"""The page on guides of one's own: its inpainting keeps what is known and tracks an exact value."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-guides.md"
if not PAGE.is_file():
    pytest.skip("docs/ is not in source distributions", allow_module_level=True)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.slow
def test_inpainting(tmp_path, monkeypatch, float32):
    # Dataclasses look their module up by its name.
    names = {"__name__": "own_guides"}
    for block in BLOCKS:
        exec(block, names)
    found, model = names["found"], names["model"]
    np.testing.assert_allclose(found.x[:, 0], 1.1, atol=4 * float(model.t_min))
    np.testing.assert_allclose(found.log_density, names["exact"], atol=0.05)
    assert np.std(found.x[:, 1:], axis=0).min() > 0.1  # the others are drawn
    # Without the guide the first element is not 1.1, and the log-density is another.
    free = names["dgjax"].sample(
        model,
        names["dgjax"].prior_sample(model, names["key"], (3,)),
        names["grid"],
        key=names["key"],
        divergence=names["dgjax"].Exact(),
    )
    assert abs(free.x[0] - 1.1) > 0.1
