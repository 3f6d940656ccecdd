"""Figures show the levels that they are given, in the right rows and columns."""

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter

from dgjax.pictures.grid import image_grid
from dgjax.pictures.line_grid import line_grid


def pictures(rows, columns, channels=1):
    return np.random.default_rng(0).integers(0, 256, (rows, columns, 4, 5, channels), np.uint8)


def place(axes):
    """Row from the top, column from the left."""
    box = axes.get_position()
    return -round(box.y0, 3), round(box.x0, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_sample_stands_in_its_row_and_column(channels):
    levels = pictures(3, 2, channels)
    figure = image_grid(levels, ["a", "b", "c"])
    axes = sorted(figure.axes, key=place)
    shown = [np.asarray(a.images[0].get_array()).reshape(4, 5, channels) for a in axes]
    np.testing.assert_array_equal(np.stack(shown).reshape(levels.shape), levels)
    # Grey values are not stretched to each picture's own range.
    assert all(a.images[0].get_clim() == (0, 255) for a in axes)


def test_labels_stand_beside_their_rows_and_above_their_columns():
    figure = image_grid(
        pictures(3, 2),
        ["a", "b", "c"],
        column_labels=["left", "right"],
        title="top",
        caption="foot",
    )
    at = {t.get_text(): np.array(t.get_position()) for t in figure.texts}
    boxes = [a.get_position() for a in sorted(figure.axes, key=place)]
    for i, name in enumerate("abc"):
        box = boxes[2 * i]
        assert box.y0 < at[name][1] < box.y1
        assert at[name][0] < box.x0
    for i, name in enumerate(("left", "right")):
        assert boxes[i].x0 < at[name][0] < boxes[i].x1
        assert at[name][1] > boxes[i].y1
    assert at["top"][1] > at["left"][1]
    assert at["foot"][1] < boxes[-1].y0


def test_no_picture_lies_on_another_or_off_the_page():
    boxes = [a.get_position() for a in image_grid(pictures(4, 9), list("abcd")).axes]
    assert len(boxes) == 36
    for i, a in enumerate(boxes):
        assert 0 <= a.x0 < a.x1 <= 1
        assert 0 <= a.y0 < a.y1 <= 1
        assert not any(a.overlaps(b) for b in boxes[:i])


@pytest.mark.parametrize(
    ("x", "rows"),
    [
        (pictures(2, 2), ["a"]),
        (pictures(2, 2, 2), ["a", "b"]),
        (pictures(2, 2)[0], ["a", "b"]),
    ],
)
def test_other_shapes_are_refused(x, rows):
    with pytest.raises(ValueError, match="expected images"):
        image_grid(x, rows)


def test_samples_that_are_not_quantized_are_refused():
    with pytest.raises(ValueError, match="must be uint8, got float64"):
        image_grid(pictures(1, 1) / 255, ["a"])


@pytest.mark.parametrize(
    "figure", [image_grid(pictures(1, 2), ["a"]), line_grid(np.ones((1, 2, 8, 1)), ["a"])]
)
def test_a_notebook_shows_it_before_pyplot_has_drawn(figure):
    data, _ = DisplayFormatter().format(figure)
    assert data["image/png"].startswith(b"\x89PNG")
