"""The explorer in headless Chromium: it moves, says what is so, and asks the network for nothing.

Needs `pip install '.[browser]'` and a Chromium on the path (on Debian `apt-get install chromium`).
"""

import os
import re
import shutil

import numpy as np
import pytest
from test_explorer import exploration

from dgjax.explorer import render_page
from dgjax.pictures.png import encode_png
from dgjax.pictures.quantization import bits_per_dim

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install '.[browser]'"
)

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")

DESKTOP, PHONE = (1280, 900), (360, 740)
FOUND = exploration()
MIDDLE = 1  # of q = 0.2, 0.4, 0.6, 0.8 the first as near to 0.5 as any


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("explorer") / "page.html"
    file.write_text(render_page(FOUND, "noise", {"Model": "noise"}), "utf-8")
    return file.as_uri()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as play:
        # Its sandbox refuses to run as root, as in containers.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """Opens the page; at the end no error may have been logged nor anything else been asked for."""
    opened = []

    def call(size=DESKTOP, scheme="light", motion="reduce"):
        context = chromium.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            reduced_motion=motion,
        )
        page = context.new_page()
        page.set_default_timeout(10_000)
        asked, logged = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: logged.append(message.text))
        page.on("pageerror", lambda error: logged.append(str(error)))
        opened.append((context, asked, logged))
        page.goto(address)
        return page

    yield call
    for context, asked, logged in opened:
        context.close()
        assert [url for url in asked if not url.startswith("data:")] == [address]
        assert logged == []


def panel(page, letter):
    return page.locator(f".panel.{letter}")


def shown(page, letter="a"):
    """What panel A or B shows: q, three figures, levels of the image."""
    root = panel(page, letter)
    figures = [root.locator(f".{name}").inner_text() for name in ("nats", "bits", "bytes")]
    levels = page.evaluate(
        """async (image) => {
          await image.decode();
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          return Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data);
        }""",
        root.locator(".over").element_handle(),
    )
    height, width, _ = FOUND.levels.shape[-3:]
    image = np.array(levels, np.uint8).reshape(height, width, 4)[..., :3]
    return root.locator(".q").inner_text(), figures, image


def expected(setting, latent, dial):
    """The same by the arrays."""
    at = (setting, latent, dial)
    value, error = FOUND.log_density[at], FOUND.standard_error[at]
    error += FOUND.solver_error[at] if setting < 2 else 0
    bits = float(bits_per_dim(value, FOUND.levels[at].size, (-1.0, 1.0)))
    figures = [
        f"{value:,.0f} ± {error:.{1 if error < 1 else 0}f} nats",
        f"{bits:.2f}",
        f"{len(encode_png(FOUND.levels[at])):,} bytes",
    ]
    figures = [text.replace("-", "\N{MINUS SIGN}") for text in figures]
    return f"q = {FOUND.q[dial]:.2f}", figures, FOUND.levels[at]


def agree(page, letter, setting, latent, dial):
    for found, wanted in zip(shown(page, letter), expected(setting, latent, dial), strict=True):
        np.testing.assert_array_equal(found, wanted)


def curve(page, letter="a"):
    return page.locator(f"#chart .bold.{letter}").get_attribute("points")


def test_every_sample_is_shown_with_its_own_figures(visit):
    page = visit()
    slider = panel(page, "a").get_by_role("slider")
    curves = set()
    for setting, latent, dial in np.ndindex(FOUND.log_density.shape):
        page.locator("#latents input").nth(latent).check()
        panel(page, "a").locator(".segments input").nth(setting).check()
        slider.fill(str(dial))
        agree(page, "a", setting, latent, dial)
        curves.add(curve(page))
    assert len(curves) == FOUND.log_density.size


def test_the_curve_is_that_of_the_sample(visit):
    page = visit()
    assert page.locator("#chart .faint").count() == len(FOUND.q)
    points = np.array([p.split(",") for p in curve(page).split()], float)
    course = FOUND.course[0, 0, MIDDLE]
    for got, wanted in [(points[:, 0], FOUND.logsnr), (-points[:, 1], course)]:
        scaled = (got - got[0]) / np.ptp(got), (wanted - wanted[0]) / np.ptp(wanted)
        np.testing.assert_allclose(*scaled, atol=0.01)
    texts = page.locator("#chart text").all_text_contents()
    assert "log-density of xₜ, nats" in texts
    assert any("log-SNR" in text for text in texts)
    assert page.locator("#chart .band").count() == 0
    panel(page, "a").get_by_label("Late", exact=True).check()
    band, plot = (page.locator(f"#chart .{name}").first.bounding_box() for name in ("band", "bold"))
    share = (FOUND.logsnr[-1] - 0.5) / np.ptp(FOUND.logsnr)
    assert band["width"] / plot["width"] == pytest.approx(share, abs=0.03)


def test_an_error_of_the_probes_alone_is_called_that(visit):
    page = visit()
    alone = panel(page, "a").locator(".alone")
    assert not alone.is_visible()
    assert "solver steps" in page.locator(".about").inner_text()
    panel(page, "a").get_by_label("Late", exact=True).check()
    playwright.expect(alone).to_have_text(re.compile("counts the probes alone"))


def test_dragging_the_slider_moves_everything(visit):
    page = visit(PHONE)
    before, line = shown(page), curve(page)
    slider = panel(page, "a").get_by_role("slider")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    agree(page, "a", 0, 0, len(FOUND.q) - 1)
    assert shown(page)[1] != before[1]
    assert curve(page) != line


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_two_settings_stand_side_by_side(size, visit):
    page = visit(size)
    assert not panel(page, "b").is_visible()
    page.get_by_label("Compare A | B").check()
    panel(page, "b").get_by_role("slider").fill("3")
    panel(page, "b").get_by_label("Early", exact=True).check()
    agree(page, "a", 0, 0, MIDDLE)
    agree(page, "b", 1, 0, 3)
    a, b = (panel(page, letter).locator(".picture").bounding_box() for letter in "ab")
    assert a["y"] == b["y"]
    assert a["x"] + a["width"] < b["x"]
    assert curve(page, "a") != curve(page, "b")
    assert page.locator("#chart .faint").count() == 2 * len(FOUND.q)
    page.get_by_role("button", name="Late noise").click()
    agree(page, "a", 0, 0, 2)
    agree(page, "b", 2, 0, 2)
    page.get_by_label("Compare A | B").uncheck()
    assert not panel(page, "b").is_visible()
    assert page.locator("#chart .b").count() == 0


def test_the_keyboard_reaches_and_moves_all_of_it(visit):
    page = visit()
    press = page.keyboard.press

    def focused():
        return page.evaluate("[document.activeElement.type, document.activeElement.id]")

    press("Tab")
    assert focused() == ["button", "theme"]
    press("Tab")
    press("ArrowRight")  # the other latent
    agree(page, "a", 0, 1, MIDDLE)
    press("Tab")
    assert focused() == ["checkbox", "compare"]
    press("Space")
    for _ in range(4):  # past three comparisons to the dial
        press("Tab")
    assert focused() == ["range", "dial-A"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press("End")
    agree(page, "a", 0, 1, 3)
    press("ArrowLeft")
    agree(page, "a", 0, 1, 2)
    press("Home")
    agree(page, "a", 0, 1, 0)
    press("Tab")
    press("ArrowRight")  # early noise
    agree(page, "a", 1, 1, 0)
    press("Tab")
    assert focused() == ["range", "dial-B"]


def test_what_changed_is_said_once_it_rests(visit):
    page = visit()
    slider = panel(page, "a").get_by_role("slider", name="Dial q")
    slider.fill("0")
    slider.fill("3")
    _, (nats, bits, size), _ = expected(0, 0, 3)
    words = f"q = 0.80, no noise: log-density {nats}, {bits} bits per dimension, PNG {size}."
    playwright.expect(page.get_by_role("status")).to_have_text(words)
    assert slider.get_attribute("aria-valuetext") == "q = 0.80"
    assert "q = 0.80, no noise" in panel(page, "a").locator(".over").get_attribute("alt")
    assert nats in page.get_by_role("img", name="Log-density in nats").get_attribute("aria-label")
    page.get_by_text("Every q of this latent as a table").click()
    rows = page.locator("#table tbody tr").all_inner_texts()
    assert rows[3].split("\t") == ["0.80", nats.removesuffix(" nats"), bits, size.split()[0]]


def test_images_fade_unless_motion_is_unwanted(visit):
    moving = "document.getAnimations().filter((a) => !(a instanceof CSSTransition)).length"
    for motion, count in [("no-preference", 1), ("reduce", 0)]:
        page = visit(motion=motion)
        dial = "document.querySelector('#dial-A')"
        change = f"{dial}.value = 3; {dial}.dispatchEvent(new Event('input')); {moving}"
        assert page.evaluate(change) == count


LOOKS = """() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
    const [r, g, b] = parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
  };
  const faint = [], small = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, style = getComputedStyle(e);
    if (!walk.currentNode.data.trim() || !e.getClientRects().length) continue;
    texts++;
    const ink = e instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(e))].sort((a, b) => b - a);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push([walk.currentNode.data, ink, behind(e)].join());
  }
  for (const e of document.querySelectorAll("button, summary, input")) {
    if (!e.getClientRects().length) continue;
    // A box to tick is as large as the label around it.
    const touched = e.type === "checkbox" ? e.parentElement : e;
    const { width, height } = touched.getBoundingClientRect();
    if (width < 44 || height < 44) small.push([touched.outerHTML, width, height].join());
  }
  const wide = document.documentElement.scrollWidth - innerWidth;
  return { texts, faint, small, wide, paper: getComputedStyle(document.body).backgroundColor };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_can_be_read_and_touched(size, scheme, visit):
    """Contrast 4.5 (WCAG AA) or more, 44 pixels or more to touch, nothing beyond the edge."""
    page = visit(size, scheme)
    page.get_by_role("button", name="Early noise").click()
    page.locator("summary").click()
    papers = []
    for _ in range(2):  # as the system has it, then by the button
        found = page.evaluate(LOOKS)
        assert found["texts"] > 60
        assert (found["faint"], found["small"], found["wide"]) == ([], [], 0)
        papers.append(sum(map(int, found["paper"][4:-1].split(","))))
        page.locator("#theme").click()
    assert (papers[0] > papers[1]) == (scheme == "light")


@pytest.mark.slow
def test_the_policy_stops_what_would_go_out(chromium, address):
    """The tests above would pass for a page that merely asks for nothing."""
    page = chromium.new_page()
    failed = {}
    page.on("requestfailed", lambda request: failed.update({request.url: request.failure}))
    page.goto(address)
    assert (
        page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')")
        == "stopped"
    )
    page.evaluate(
        """() => new Promise((done) => {
          const image = new Image();
          image.onerror = done;
          image.src = "http://127.0.0.1:9/x.png";
        })"""
    )
    script = "Object.assign(document.createElement('script'), {text: 'window.ran = 1'})"
    page.evaluate(f"document.body.append({script})")
    assert page.evaluate("window.ran") is None
    assert set(failed.values()) == {"csp"}
    page.close()


def test_a_reload_shows_the_same_choice(chromium, address):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(address)
    before = shown(page)
    page.locator("#latents input").nth(1).check()
    page.locator("#dial-A").fill("0")
    page.locator("#compare").check()
    chosen = shown(page), shown(page, "b")
    page.reload()
    again = shown(page), shown(page, "b")
    for one, other in zip(chosen, again, strict=True):
        assert one[:2] == other[:2]
        assert (one[2] == other[2]).all()
    assert again[0][:2] != before[:2]
    for wrong in ("#9,9,9,9,9,9", "#0,0,-1,0,0,0", "#<b>", "#1"):
        page.goto("about:blank")
        page.goto(address + wrong)
        assert shown(page)[:2] == before[:2]
    context.close()


@pytest.mark.slow
def test_the_chart_says_the_same_number_as_the_panel(visit):
    page = visit()
    for q in range(int(page.locator("#dial-A").get_attribute("max")) + 1):
        page.locator("#dial-A").fill(str(q))
        value = page.locator("#chart .value.a").text_content()
        assert shown(page)[1][0].split()[0] == value
