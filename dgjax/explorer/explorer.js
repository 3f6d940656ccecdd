"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const find = (selector, root = document) => root.querySelector(selector);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const nearest = (q) => data.q.reduce((best, v, i) => (Math.abs(v - q) < Math.abs(data.q[best] - q) ? i : best), 0);
const MIDDLE = nearest(0.5);

// Everything the user can choose. The state of panel B is kept while it is hidden.
const state = { latent: 0, compare: false, panels: [{ q: MIDDLE, setting: 0 }, { q: nearest(0.75), setting: 0 }] };
const LETTERS = ["A", "B"];

// The choice is kept in the address, so that a reload, a bookmark or a copied address shows it again.
function remember() {
  const numbers = [state.latent, Number(state.compare), ...state.panels.flatMap(({ q, setting }) => [q, setting])];
  try { history.replaceState(null, "", "#" + numbers.join(",")); } catch { /* some viewers of files have no history */ }
}
function recall() {
  const found = location.hash.slice(1).split(",").map(Number);
  const sizes = [data.samples[0].length, 2, data.q.length, data.settings.length, data.q.length, data.settings.length];
  if (found.length !== sizes.length || !found.every((v, k) => Number.isInteger(v) && v >= 0 && v < sizes[k])) return;
  const [latent, compare, ...rest] = found;
  Object.assign(state, { latent, compare: compare === 1 });
  state.panels.forEach((panel, i) => Object.assign(panel, { q: rest[2 * i], setting: rest[2 * i + 1] }));
}
recall();
const shown = () => (state.compare ? [0, 1] : [0]);
const sampleOf = ({ q, setting }) => data.samples[setting][state.latent][q];

// Words and numbers

const thousands = (v, digits = 0) => v.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const minus = (text) => text.replace("-", "\u2212");
const orNone = (v, text) => (v === null ? "not finite" : text(v));
const nats = ({ nats, error }) => {
  const least = Math.max(error, 0.1); // with one decimal a smaller error would look like none
  const spread = error === null ? "" : ` \u00b1 ${thousands(least, least < 1 ? 1 : 0)}`;
  return orNone(nats, (v) => minus(thousands(v)) + spread + " nats");
};
const bits = ({ bits, nats }) => (bits === null && nats !== null ? "none for latents" : orNone(bits, (v) => minus(v.toFixed(2))));
const bytes = (sample) => `${thousands(sample.bytes)} bytes`;
const qText = (i) => `q = ${data.q[i].toFixed(data.q.every((q) => Math.abs(q * 100 - Math.round(q * 100)) < 1e-6) ? 2 : 4)}`;
const noiseText = (setting) => (data.settings[setting].noise ? `${data.settings[setting].name.toLowerCase()} noise` : "no noise");
const source = (sample) => `data:image/png;base64,${sample.png}`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Native radio buttons, one of which is `chosen()`; `content(i)` is what each label shows. */
function radios(place, name, count, content, chosen, choose) {
  for (let i = 0; i < count; i++) {
    const input = element("input", { type: "radio", name, value: i, checked: i === chosen() });
    input.addEventListener("change", () => { choose(i); update(); });
    place.append(element("label", {}, input, content(i)));
  }
}

// Panels

const panels = state.panels.map((chosen, i) => {
  const root = find("#panel").content.cloneNode(true).firstElementChild;
  const slider = find("input[type=range]", root);
  root.classList.add(LETTERS[i].toLowerCase());
  find(".letter", root).textContent = LETTERS[i];
  slider.id = `dial-${LETTERS[i]}`;
  slider.max = data.q.length - 1;
  find(".dial", root).htmlFor = slider.id;
  slider.addEventListener("input", () => { chosen.q = Number(slider.value); update(); });
  radios(find(".segments", root), `noise-${LETTERS[i]}`, data.settings.length,
    (k) => element("span", { textContent: data.settings[k].name }),
    () => chosen.setting, (k) => { chosen.setting = k; });
  find(".noise", root).hidden = data.settings.length < 2;
  find("#panels").append(root);
  return root;
});

function drawPanel(i) {
  const root = panels[i], chosen = state.panels[i], sample = sampleOf(chosen);
  const slider = find("input[type=range]", root), over = find(".over", root), under = find(".under", root);
  root.hidden = !shown().includes(i);
  root.setAttribute("aria-label", state.compare ? `Setting ${LETTERS[i]}` : "Sample");
  slider.value = chosen.q;
  slider.setAttribute("aria-label", state.compare ? `Dial q of ${LETTERS[i]}` : "Dial q");
  slider.setAttribute("aria-valuetext", qText(chosen.q));
  find(".q", root).textContent = qText(chosen.q);
  find(`input[name=noise-${LETTERS[i]}][value="${chosen.setting}"]`, root).checked = true;
  find(".words", root).textContent = data.settings[chosen.setting].words;
  find(".nats", root).textContent = nats(sample);
  find(".bits", root).textContent = bits(sample);
  find(".bytes", root).textContent = bytes(sample);
  const share = Math.round(100 * (sample.bound ?? 0));
  find(".alone", root).textContent = sample.error === null || sample.solver ? "" : "± counts the probes alone: the solver states no error here.";
  find(".bound", root).textContent = share ? `Guidance is at its bound for ${share} % of the log-SNR range.` : "";
  over.alt = `Sample of latent ${state.latent + 1} at ${qText(chosen.q)}, ${noiseText(chosen.setting)}`;
  if (over.src === source(sample)) return;
  const before = over.src;
  over.src = source(sample);
  if (!before) return;
  under.src = before;
  if (!calm.matches) over.animate([{ opacity: 0 }, { opacity: 1 }], 140);
}

// The chart: log-density against log-SNR

const NS = "http://www.w3.org/2000/svg";
function svg(tag, attributes, text) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Round numbers between low and high, about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(k * step);
  return found;
}

function drawChart() {
  const place = find("#chart"), width = place.clientWidth || 320, height = Math.round(Math.min(440, Math.max(280, 0.62 * width)));
  // One scale for all curves of this latent, so that the axes stay fixed while curves move.
  const all = data.settings.flatMap((_, s) => data.samples[s][state.latent].flatMap((sample) => sample.course)).filter((v) => v !== null);
  const low = Math.min(...all), high = Math.max(...all), pad = 0.04 * (high - low || 1);
  const room = 7.5 * Math.max(...[low, high].map((v) => thousands(v).length)); // for the longest number
  const left = room + 14, right = room + (state.compare ? 30 : 16), top = 30, bottom = 48;
  const [first, last] = [data.logsnr[0], data.logsnr.at(-1)];
  const x = (v) => left + ((v - first) / (last - first)) * (width - left - right);
  const y = (v) => height - bottom - ((v - low + pad) / (high - low + 2 * pad)) * (height - top - bottom);
  const points = (course) => course.map((v, k) => (v === null ? "" : `${x(data.logsnr[k]).toFixed(1)},${y(v).toFixed(1)}`)).join(" ");
  const said = shown().map((i) => `${state.compare ? LETTERS[i] + ", " : ""}${qText(state.panels[i].q)}: ends at ${nats(sampleOf(state.panels[i]))}`);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `Log-density in nats against log-SNR. ${said.join("; ")}` });

  for (const i of shown()) {
    const { noise } = data.settings[state.panels[i].setting];
    if (!noise) continue;
    const [from, to] = noise; // null where there is no end
    const a = x(Math.max(first, from ?? first)), b = x(Math.min(last, to ?? last));
    root.append(svg("rect", { class: `band ${LETTERS[i].toLowerCase()}`, x: a, y: top, width: Math.max(0, b - a), height: height - top - bottom }));
  }
  for (const v of ticks(low - pad, high + pad, height / 45)) {
    root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }));
    root.append(svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, minus(thousands(v))));
  }
  for (const v of ticks(first, last, (width - left - right) / 45)) {
    root.append(svg("line", { class: "grid", x1: x(v), x2: x(v), y1: height - bottom, y2: height - bottom + 5 }));
    root.append(svg("text", { x: x(v), y: height - bottom + 19, "text-anchor": "middle" }, minus(String(v))));
  }
  root.append(svg("text", { class: "axis", x: 0, y: 14 }, "log-density of x\u209c, nats"));
  root.append(svg("text", { class: "axis", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "log-SNR: noise \u2192 image"));

  const families = shown().filter((i) => i === 0 || state.panels[1].setting !== state.panels[0].setting);
  for (const i of families)
    for (const sample of data.samples[state.panels[i].setting][state.latent])
      root.append(svg("polyline", { class: `faint ${LETTERS[i].toLowerCase()}`, points: points(sample.course) }));
  const ends = [];
  for (const i of shown()) {
    const sample = sampleOf(state.panels[i]), end = sample.course.at(-1), kind = LETTERS[i].toLowerCase();
    root.append(svg("polyline", { class: `bold ${kind}`, points: points(sample.course) }));
    if (end === null) continue;
    root.append(svg("circle", { class: `end ${kind}`, cx: x(last), cy: y(end), r: 5 }));
    ends.push({ kind, at: y(end), text: `${state.compare ? LETTERS[i] + " " : ""}${minus(thousands(sample.nats ?? end))}` });
  }
  ends.sort((one, other) => one.at - other.at);
  if (ends.length === 2) {
    const gap = Math.max(0, 18 - (ends[1].at - ends[0].at)) / 2;
    ends[0].at -= gap;
    ends[1].at += gap;
  }
  for (const { kind, at, text } of ends)
    root.append(svg("text", { class: `value ${kind}`, x: width - right + 9, y: at + 4 }, text));
  place.replaceChildren(root);
}

// The table, and the text for screen readers

function drawTable() {
  const row = (tag, cells) => element("tr", {}, ...cells.map((text) => element(tag, { textContent: text, ...(tag === "th" ? { scope: "col" } : {}) })));
  const made = shown().map((i) => {
    const { setting } = state.panels[i];
    const caption = `${state.compare ? LETTERS[i] + ": l" : "L"}atent ${state.latent + 1}, ${noiseText(setting)}`;
    const rows = data.samples[setting][state.latent].map((s, k) => row("td", [qText(k).slice(4), nats(s).replace(" nats", ""), bits(s), thousands(s.bytes)]));
    return element("table", {}, element("caption", { textContent: caption }),
      element("thead", {}, row("th", ["q", "Log-density, nats", "Bits per dimension", "PNG, bytes"])), element("tbody", {}, ...rows));
  });
  find("#table").replaceChildren(...made);
}

let wait;
/** Announces the sample when the slider has stopped, not at every step. */
function say() {
  clearTimeout(wait);
  wait = setTimeout(() => {
    find("#status").textContent = shown().map((i) => {
      const chosen = state.panels[i], sample = sampleOf(chosen);
      return `${state.compare ? LETTERS[i] + ": " : ""}${qText(chosen.q)}, ${noiseText(chosen.setting)}: log-density ${nats(sample)}, ${sample.bits === null ? "" : `${bits(sample)} bits per dimension, `}PNG ${bytes(sample)}.`;
    }).join(" ");
  }, 350);
}

function update() {
  find("#stage").classList.toggle("two", state.compare);
  find("#compare").checked = state.compare;
  panels.forEach((_, i) => drawPanel(i));
  drawChart();
  drawTable();
  say();
  remember();
}

// Latents, comparison, theme

radios(find("#latents"), "latent", data.samples[0].length,
  (i) => element("img", { src: source(data.samples[0][i][nearest(0.7)]), alt: `Latent ${i + 1}` }),
  () => state.latent, (i) => { state.latent = i; });

find("#compare").addEventListener("change", (event) => { state.compare = event.target.checked; update(); });

function preset(text, title, a, b) {
  const button = element("button", { type: "button", textContent: text, title });
  button.addEventListener("click", () => {
    state.compare = true;
    Object.assign(state.panels[0], a);
    Object.assign(state.panels[1], b);
    update();
    find("#stage").scrollIntoView({ block: "nearest", behavior: calm.matches ? "instant" : "smooth" });
  });
  find("#presets").append(button);
}
preset("Low | high q", "One latent, without noise, at a low and at a high q", { q: nearest(0.3), setting: 0 }, { q: nearest(0.7), setting: 0 });
data.settings.forEach(({ noise }, k) => {
  if (noise) preset(`${data.settings[k].name} noise`, `One latent at one q, without and with ${noiseText(k)}`, { q: nearest(0.6), setting: 0 }, { q: nearest(0.6), setting: k });
});

const dark = matchMedia("(prefers-color-scheme: dark)"), page = document.documentElement;
const theme = () => page.dataset.theme ?? (dark.matches ? "dark" : "light");
const nameTheme = () => { find("#theme").textContent = theme() === "dark" ? "Light theme" : "Dark theme"; };
find("#theme").addEventListener("click", () => { page.dataset.theme = theme() === "dark" ? "light" : "dark"; nameTheme(); });
dark.addEventListener("change", nameTheme);
nameTheme();

update();
new ResizeObserver(drawChart).observe(find("#chart"));
