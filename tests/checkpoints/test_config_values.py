"""What a checkpoint's config.json says is checked, and later versions are named as the reason."""

import json
import re

import pytest

from dgjax.checkpoints import load


@pytest.fixture
def changed(tmp_path, small_model):
    folder = small_model(tmp_path / "m", (4,), spread=0.5)

    def call(**values):
        file = folder / "config.json"
        config = json.loads(file.read_text())
        for place, value in values.items():
            inside, *keys = config, *place.split("__")
            for key in keys[:-1]:
                inside = inside[key]
            inside[keys[-1]] = value
        file.write_text(json.dumps(config))
        return folder

    return call


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"version": "99.1", "unknown": 1},
            "key 'unknown' is unknown.*dgjax 99.1 wrote it.*upgrade",
        ),
        ({"version": "99.1", "format": "dgjax-checkpoint-9"}, "format.*dgjax 99.1 wrote it"),
        ({"data_range": [1.0, -1.0]}, "the lower one first"),
        ({"data_range": [float("nan"), 1.0]}, "data_range must be .*finite number"),
        ({"labels": "Bag"}, "labels must be a list, each a text, got 'Bag'"),
        ({"held_out": 1.0}, "held_out must lie in"),
        ({"model__network__depth": 10**7}, "depth must be at most 200, got 10,000,000"),
        ({"model__network__num_classes": 0}, "num_classes must be positive"),
        ({"model__shape": [10**5, 10**5]}, "more than 1,000,000,000 elements"),
        ({"model__parametrization__sigma_data": [0.5]}, "sigma_data must be a number"),
    ],
)
def test_the_fault_is_named(values, words, changed):
    with pytest.raises(ValueError, match=words):
        load(changed(**values))


def test_a_later_version_alone_is_no_fault(changed):
    _, meta = load(changed(version="99.1"))
    assert meta.version == "99.1"


def test_an_unknown_key_of_this_version_is_not_blamed_on_a_later_one(changed):
    with pytest.raises(ValueError, match="unknown") as found:
        load(changed(unknown=1))
    assert not re.search("upgrade", str(found.value))
