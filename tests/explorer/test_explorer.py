"""The explorer without a browser: what the page holds, that it is whole, and the command."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dgjax.explorer import Exploration, Setting, check_images, render_page
from dgjax.pictures.png import encode_png
from dgjax.pictures.quantization import bits_per_dim, to_uint8


def exploration(shape=(6, 5, 3), latents=2, dials=4, steps=7):
    """Arrays of noise: the page is to show whatever there is."""
    rng = np.random.default_rng(0)
    settings = [
        Setting("None", "Nothing random."),
        Setting("Early", "At first.", (-np.inf, 0.5)),
        Setting("Late", "At last.", (0.5, np.inf)),
    ]
    samples = (len(settings), latents, dials)
    course = np.cumsum(rng.normal(50, 400, (*samples, steps + 1)), -1)
    return Exploration(
        levels=to_uint8(rng.uniform(-1.2, 1.2, (*samples, *shape))),
        log_density=course[..., -1],
        standard_error=rng.uniform(0.1, 9, samples),
        solver_error=np.where(
            np.arange(3)[:, None, None] < 2, rng.uniform(0.02, 9, samples), np.inf
        ),
        bound_share=rng.uniform(0, 1, samples),
        course=course,
        logsnr=np.linspace(-8.7, 7.8, steps + 1),
        q=np.linspace(0.2, 0.8, dials),
        settings=settings,
    )


class Reader(HTMLParser):
    """Elements with their attributes, and by id or tag the text right after their start."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.named = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.named = dict(attrs).get("id", tag)

    def handle_endtag(self, tag):
        self.named = None

    def handle_data(self, data):
        if self.named is not None:
            self.texts[self.named] = data

    def data(self):
        return json.loads(self.texts["data"])


def test_the_page_holds_the_arrays():
    found = exploration()
    data = Reader(render_page(found, "noise", {})).data()
    np.testing.assert_allclose(data["q"], found.q, atol=1e-4)
    np.testing.assert_allclose(data["logsnr"], found.logsnr, atol=1e-3)
    assert [s["name"] for s in data["settings"]] == ["None", "Early", "Late"]
    assert [s["noise"] for s in data["settings"]] == [None, [None, 0.5], [0.5, None]]
    assert np.array(data["samples"]).shape == found.log_density.shape
    bits = np.asarray(bits_per_dim(found.log_density, 90, (-1.0, 1.0)))
    for at in np.ndindex(found.log_density.shape):
        sample = data["samples"][at[0]][at[1]][at[2]]
        png = base64.b64decode(sample["png"], validate=True)
        np.testing.assert_array_equal(Image.open(io.BytesIO(png)), found.levels[at])
        assert sample["bytes"] == len(png) == len(encode_png(found.levels[at]))
        assert sample["nats"] == pytest.approx(found.log_density[at], abs=1e-4)
        solver = found.solver_error[at]
        assert sample["solver"] == np.isfinite(solver) == (at[0] < 2)
        stated = found.standard_error[at] + (solver if sample["solver"] else 0)
        assert sample["error"] == pytest.approx(stated, abs=1e-4)
        assert sample["bits"] == pytest.approx(bits[at], abs=1e-6)
        assert sample["bound"] == pytest.approx(found.bound_share[at], abs=1e-3)
        np.testing.assert_allclose(sample["course"], found.course[at], atol=0.06)


def test_what_is_not_finite_is_null():
    found = exploration(shape=(6, 5, 1))
    found.log_density[0, 0, 0], found.course[0, 0, 0, -1] = np.nan, np.nan
    found.standard_error[0, 1, 0] = np.inf
    found.solver_error[0, 1, 1] = np.nan
    data = Reader(render_page(found, "noise", {})).data()
    lost, kept = data["samples"][0][0][0], data["samples"][0][1][0]
    assert (lost["nats"], lost["bits"], lost["course"][-1], kept["error"]) == (None,) * 4
    assert kept["nats"] is not None
    other = data["samples"][0][1][1]
    assert not other["solver"]
    assert other["error"] == pytest.approx(found.standard_error[0, 1, 1], abs=1e-4)


def test_the_page_needs_no_other_file():
    text = render_page(exploration(), "noise", {})
    reader = Reader(text)
    named = [v for _, a in reader.elements for k, v in a.items() if k in ("src", "href", "srcset")]
    assert named == ["data:,"]
    assert not re.search(r"url\(|@import", reader.texts["style"])
    # The one address is the name of SVG, which nobody fetches.
    assert re.findall(r"\w+://[^\"']+", text) == ["http://www.w3.org/2000/svg"]


def test_the_policy_allows_its_own_script_and_style_only():
    reader = Reader(render_page(exploration(), "noise", {}))
    (policy,) = (a["content"] for t, a in reader.elements if t == "meta" and "http-equiv" in a)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("script", "style"):
        digest = hashlib.sha256(reader.texts[kind].encode()).digest()
        assert rules[f"{kind}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"


def test_names_are_text_and_no_markup():
    evil = "</script><script>alert(1)</script>&<!--"
    found = exploration()._replace(settings=[Setting(evil, evil)] * 3)
    text = render_page(found, evil, {evil: evil})
    reader = Reader(text)
    tags = [tag for tag, _ in reader.elements]
    assert (tags.count("script"), text.count("</script>"), text.count("<!--")) == (2, 2, 0)
    assert reader.data()["settings"][0] == {"name": evil, "words": evil, "noise": None}
    assert reader.texts["title"].endswith(evil)


def test_arrays_that_do_not_belong_together_are_refused():
    found = exploration()
    for wrong, message in [
        ({"levels": found.levels[..., :2]}, r"shows images .* shape \(6, 5, 2\)"),
        ({"levels": found.levels.astype(float)}, "levels must be uint8, got float64"),
        ({"q": found.q[:-1]}, r"levels has shape .* 3 values of q"),
        ({"log_density": found.log_density[:2]}, "log_density has shape"),
        ({"solver_error": found.solver_error[:, 1:]}, "solver_error has shape"),
        ({"course": found.course[..., 1:]}, "course has shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            render_page(found._replace(**wrong), "noise", {})
    with pytest.raises(ValueError, match="images"):
        check_images((16,))


SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_model):
    place = tmp_path_factory.mktemp("model") / "labelled"
    return small_model(place, SHAPE, spread=0.7, weights=0.2, num_classes=3)


@pytest.mark.slow
def test_explore_shows_what_sample_draws(folder, tmp_path, run):
    common = ["--model", folder, "--num", 2, "--q", 0.7, "--q", 0.3, "--steps", 6, "--class", 1]
    common += ["--seed", 3]
    file = tmp_path / "new" / "page.html"
    status, _, said = run("explore", *common, "--noise", 0.8, "--split", -1, "--out", file)
    assert status == 0
    assert "wrote" in said
    assert [p.name for p in file.parent.iterdir()] == ["page.html"]
    text = file.read_text("utf-8")
    for words in (folder.name, "class 1", "t_min = 0.02", "6 steps", "seed 3", "log p(x | 1)"):
        assert words in text
    data = Reader(text).data()
    assert data["q"] == [0.3, 0.7]
    none, early, late = data["samples"]
    options = ["--noise", 0.8, "--noise-window", -99, -1]
    assert run("sample", *common, *options, "--out", tmp_path / "drawn")[0] == 0
    with np.load(tmp_path / "drawn" / "samples.npz") as arrays:
        drawn = dict(arrays)
    for i, j in np.ndindex(2, 2):
        shown = early[i][j]
        levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["png"]))), int)
        assert np.abs(levels - to_uint8(drawn["x"][j, i])[..., 0]).max() <= 1
        assert shown["nats"] == pytest.approx(drawn["log_density"][j, i], abs=0.05)
        assert shown["course"][-1] == pytest.approx(shown["nats"], abs=0.06)
        assert len(shown["course"]) == 7
        assert len({setting[i][j]["png"] for setting in (none, early, late)}) == 3


def test_trouble_is_one_clear_line(folder, tmp_path, run, small_model):
    flat = small_model(tmp_path / "flat", (16,), spread=0.7)
    out = tmp_path / "page.html"
    for arguments, message in [
        (["--model", flat], r"shows images .* shape \(16,\)"),
        (["--model", folder, "--class", 3], "class 3 is out of range"),
        (["--model", folder, "--q", 1.5], "q must"),
        (["--model", folder, "--split", 50], "outside the model's range of log-SNR, -8.764 to"),
        (["--model", folder, "--out", tmp_path], "is a folder: name a file"),
        (["--model", tmp_path / "none"], "none"),
    ]:
        status, _, complaint = run("explore", "--out", out, *arguments)
        assert status == 1
        assert len(complaint.splitlines()) == 1
        assert re.search(message, complaint), complaint
        assert not out.exists()
