// The viewer: 2 to 8 pictures of one scene, one zoom and one place for all of them.
//
// Runs once, as the body of a function Gradio calls with `element`, `props` and `watch`. All DOM is
// made here with textContent, never from strings of HTML, so nothing a caller passes can become
// markup. The data is what `Viewer.postprocess` of ui/viewer.py returns.
//
// Coordinates. A scene is as large as its largest picture; smaller ones (the input) are enlarged to
// it by repeating pixels. `zoom` is device pixels per scene pixel, so 1 is 100 % whatever the
// screen; above 1 it is whole and so is the place, hence every pixel is a square of equal size.
//
// A study uses the same instrument: a scene with `zooms` is there to be judged. Only these zooms are
// on offer, none below 1, and nothing but zoom and place. What stands below a picture is then the
// page's: `props.caption(node, index)` fills it. `loaded` is told when every picture is decoded, or
// has failed, with `detail.failed`.

const LADDER = [1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32];
const LARGEST = 32;
const WHEEL_STEP = 60; // of a wheel's pixels; a notch of a mouse is 100 to 120
const PINCH_WHEEL = 8; // a touchpad's pinch comes as a wheel with small numbers
const PAN_SHARE = 1 / 8; // of the frame, for an arrow key
const LINK_DELAY = 250; // ms; browsers allow about a hundred address changes in 30 s
const RED = "#e11d2e";
const RANGES = [16, 32, 64, 128, 255];
const DPI = 300;
const TEXT_WIDTH = 2062; // pixels: 6.875 inches, two columns of a conference paper, at 300 dpi
const GAP = 12; // pixels between the tiles of a figure
const LABEL_FONT = "36px sans-serif"; // about 8.6 pt at 300 dpi
const LABEL_HEIGHT = 56;
const MODES = { grid: "Grid", swipe: "Swipe", flip: "Flip", difference: "Difference" };
const ROLES = { lq: "Input", gt: "Reference", sr: "" };
const KEYS = [
  ["Arrows", "move"],
  ["+ −", "zoom"],
  ["F", "fit"],
  ["O", "one to one"],
  ["Space", "hold: show the second"],
  ["G S L D", "grid, swipe, flip, difference"],
  ["X", "exchange first and second"],
  ["[ ]", "next first, next second"],
  ["B", "box on and off"],
  ["Shift arrows", "move the box"],
  ["< >", "box smaller, larger"],
];

const root = element.querySelector(".viewer");
const view = {
  mode: "grid", first: 0, second: 1, zoom: null, x: 0, y: 0,
  split: 0.5, across: false, range: 64, box: null,
}; // zoom null: fit
let scene = null;
let held = false; // the second picture is shown in place of the others
let boxing = false; // dragging draws a box
let opened = ""; // the fragment that was last read or written

// Small helpers

function make(tag, className, text, attributes) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  return node;
}

function button(text, label, action, className) {
  const node = make("button", className, text, { type: "button" });
  if (label) { node.setAttribute("aria-label", label); node.title = label; }
  if (action) node.addEventListener("click", action);
  return node;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const percent = (zoom) => Math.round(zoom * 100) + " %";
const pictures = () => (scene ? scene.pictures : []);
const isPair = () => view.mode !== "grid";
const judged = () => Boolean(scene?.zooms);

function announce(text) {
  said.textContent = "";
  said.textContent = text;
}

// Pictures: fetched once, decoded without touching a value, with halved copies for small zooms

const store = new Map(); // address -> {width, height, levels} | {failed}

function fetched(picture) {
  const entry = picture.url ? store.get(picture.url) : null;
  return entry && entry.levels ? entry : null;
}

async function load(url) {
  if (store.has(url)) return;
  store.set(url, {});
  try {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(answer.status + " " + answer.statusText);
    const bitmap = await createImageBitmap(await answer.blob(), {
      colorSpaceConversion: "none", premultiplyAlpha: "none",
    });
    store.set(url, { width: bitmap.width, height: bitmap.height, levels: [bitmap] });
  } catch (error) {
    store.set(url, { failed: true });
    console.error("viewer: a picture could not be loaded:", error);
  }
  arrange();
  const known = pictures().map((picture) => store.get(picture.url));
  if (!known.every((entry) => entry?.levels || entry?.failed)) return;
  root.dispatchEvent(new CustomEvent("loaded", {
    detail: { key: scene.key, failed: known.some((entry) => entry.failed) },
  }));
}

function halved(source) {
  const width = Math.max(1, source.width >> 1), height = Math.max(1, source.height >> 1);
  const canvas = new OffscreenCanvas(width, height);
  const ctx = canvas.getContext("2d");
  ctx.imageSmoothingEnabled = true;
  ctx.drawImage(source, 0, 0, width, height); // at exactly one half this is the mean of four
  return canvas;
}

function level(entry, scale) {
  let depth = 0;
  while (scale * 2 ** (depth + 1) <= 1 && depth < 6) depth += 1;
  while (entry.levels.length <= depth) entry.levels.push(halved(entry.levels.at(-1)));
  return entry.levels[depth];
}

// Draws a picture so that the scene's corner is at (left, top) and a scene pixel is `zoom` wide,
// inside the rectangle (x, y, w, h) of the canvas.
function paint(ctx, entry, left, top, zoom, x, y, w, h) {
  const scale = zoom * scene.width / entry.width;
  const source = level(entry, scale);
  const sx = scene.width * zoom / source.width, sy = scene.height * zoom / source.height;
  const x0 = clamp(Math.floor((x - left) / sx), 0, source.width);
  const y0 = clamp(Math.floor((y - top) / sy), 0, source.height);
  const x1 = clamp(Math.ceil((x + w - left) / sx), 0, source.width);
  const y1 = clamp(Math.ceil((y + h - top) / sy), 0, source.height);
  if (x1 <= x0 || y1 <= y0) return;
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, w, h);
  ctx.clip();
  ctx.imageSmoothingEnabled = scale < 1;
  ctx.drawImage(
    source, x0, y0, x1 - x0, y1 - y0,
    left + x0 * sx, top + y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy,
  );
  ctx.restore();
}

// The difference map: mean over the channels of |first - second|, in levels of 0 to 255

const differences = { key: "", entry: null, mean: 0, largest: 0 };

function difference() {
  const [a, b] = [view.first, view.second].map((index) => pictures()[index]);
  const [one, two] = [fetched(a), fetched(b)];
  if (!one || !two) return null;
  const key = JSON.stringify([a.url, b.url, view.range]);
  if (differences.key === key) return differences;
  const { width, height } = scene;
  const [left, right] = [one, two].map((entry) => {
    const ctx = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    paint(ctx, entry, 0, 0, 1, 0, 0, width, height);
    return ctx.getImageData(0, 0, width, height).data;
  });
  const colours = palette();
  const result = new ImageData(width, height);
  const words = new Uint32Array(result.data.buffer);
  let sum = 0, largest = 0;
  for (let i = 0, j = 0; i < left.length; i += 4, j += 1) {
    const level = (
      Math.abs(left[i] - right[i]) + Math.abs(left[i + 1] - right[i + 1])
      + Math.abs(left[i + 2] - right[i + 2])
    ) / 3;
    sum += level;
    if (level > largest) largest = level;
    words[j] = colours[Math.min(255, Math.round(level * 255 / view.range))];
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(result, 0, 0);
  return Object.assign(differences, {
    key, entry: { width, height, levels: [canvas] }, mean: sum / (width * height), largest,
  });
}

function stops() {
  return (props.stops || "000000 ffffff").split(" ");
}

function palette() {
  const colours = stops().map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const table = new Uint32Array(256);
  for (let i = 0; i < 256; i += 1) {
    const place = i / 255 * (colours.length - 1), low = Math.min(Math.floor(place), colours.length - 2);
    const [r, g, b] = [0, 1, 2].map(
      (c) => Math.round(colours[low][c] + (colours[low + 1][c] - colours[low][c]) * (place - low)),
    );
    table[i] = (255 << 24) | (b << 16) | (g << 8) | r; // little-endian RGBA
  }
  return table;
}

// The place: shared by all frames, which are equally large but for a pixel of rounding

function frame() {
  const { width, height } = cells[0].canvas;
  return { width, height };
}

function fit() {
  const { width, height } = frame();
  const zoom = Math.min(width / scene.width, height / scene.height);
  return zoom >= 1 ? Math.min(LARGEST, Math.floor(zoom)) : zoom;
}

// A small picture may be made smaller than the frame, down to its own size.
const least = () => (judged() ? scene.zooms[0] : Math.min(1, fit()));
const most = () => (judged() ? scene.zooms.at(-1) : LARGEST);

function place() {
  const { width, height } = frame();
  const fitting = fit();
  const zoom = clamp(view.zoom ?? fitting, least(), most());
  const [x, y] = [[view.x, width, scene.width], [view.y, height, scene.height]].map(
    ([centre, room, size]) => (
      size * zoom <= room ? size / 2 : clamp(centre, room / 2 / zoom, size - room / 2 / zoom)
    ),
  );
  return {
    zoom, x, y, fits: zoom <= fitting,
    left: Math.round(width / 2 - x * zoom), top: Math.round(height / 2 - y * zoom),
  };
}

// Zooms so that what is at (px, py) of a frame, in device pixels, stays there.
function zoomTo(zoom, px, py) {
  const { width, height } = frame();
  const before = place();
  const after = clamp(zoom, least(), most());
  const [x, y] = [(px - before.left) / before.zoom, (py - before.top) / before.zoom];
  view.zoom = after === fit() && !judged() ? null : after;
  view.x = x - (px - width / 2) / after;
  view.y = y - (py - height / 2) / after;
  settle();
  changed();
}

function settle() {
  ({ x: view.x, y: view.y } = place());
}

function stepped(direction) {
  const now = place().zoom, smallest = least();
  const ladder = judged()
    ? scene.zooms : [smallest, ...LADDER.filter((zoom) => zoom > smallest * 1.001)];
  const next = direction > 0
    ? ladder.find((zoom) => zoom > now * 1.001)
    : ladder.findLast((zoom) => zoom < now * 0.999);
  return next ?? now;
}

function step(direction, px, py) {
  const { width, height } = frame();
  zoomTo(stepped(direction), px ?? width / 2, py ?? height / 2);
  announce("Zoom " + percent(place().zoom));
}

function pan(dx, dy) {
  const now = place();
  view.x = now.x - dx / now.zoom;
  view.y = now.y - dy / now.zoom;
  settle();
  changed();
}

function setZoom(zoom) {
  const { width, height } = frame();
  if (zoom === null) { view.zoom = null; settle(); changed(); } else zoomTo(zoom, width / 2, height / 2);
  announce("Zoom " + percent(place().zoom));
}

// The page

root.setAttribute("role", "region");
const bar = make("div", "bar");
const modeGroup = make("div", "group modes", "", { role: "group", "aria-label": "Layout" });
const modeButtons = {};
for (const [mode, title] of Object.entries(MODES)) {
  modeButtons[mode] = button(title, "", () => setMode(mode), "mode");
  modeButtons[mode].dataset.mode = mode;
  modeGroup.append(modeButtons[mode]);
}
const zoomGroup = make("div", "group zooms", "", { role: "group", "aria-label": "Zoom" });
const zoomShown = make("output", "percent", "100 %");
const fitButton = button("Fit", "Fit: the whole picture", () => setZoom(null), "fit");
zoomGroup.append(
  button("−", "Zoom out", () => step(-1), "out"), zoomShown, button("+", "Zoom in", () => step(1), "in"),
  fitButton, button("1:1", "One to one: a picture pixel on a screen pixel", () => setZoom(1), "actual"),
);
const toolGroup = make("div", "group tools", "", { role: "group", "aria-label": "Tools" });
const boxButton = button("Box", "Box: draw one with the pointer; what is in it is enlarged below", toggleBox, "box");
const linkButton = button("Link", "Copy a link to exactly this view", copyLink, "link");
const exportButton = button("Figure", "Export this view as a figure for a paper", toggleExport, "export");
const fullButton = button("Full screen", "", toggleFull, "full");
toolGroup.append(boxButton, linkButton, exportButton, fullButton);
bar.append(modeGroup, zoomGroup, toolGroup);

const pairBar = make("div", "bar pair");
const selects = {};
const fields = {};
for (const [which, title] of [["first", "First"], ["second", "Second"]]) {
  fields[which] = make("label", "field");
  selects[which] = make("select", which);
  fields[which].append(make("span", "", title), selects[which]);
  selects[which].addEventListener("change", () => {
    view[which] = Number(selects[which].value);
    arrange();
    changed();
  });
}
const swapButton = button("⇄", "Exchange first and second", exchange, "swap");
const holdButton = button("Hold to flip", "", null, "hold");
const acrossButton = button("Top and bottom", "", () => { view.across = !view.across; changed(); }, "across");
const rangeField = make("label", "field");
const rangeSelect = make("select", "range");
for (const range of RANGES) rangeSelect.append(make("option", "", "0 to " + range, { value: range }));
rangeSelect.addEventListener("change", () => { view.range = Number(rangeSelect.value); changed(); });
rangeField.append(make("span", "", "Levels"), rangeSelect);
pairBar.append(fields.first, swapButton, fields.second, holdButton, acrossButton, rangeField);

const stage = make("div", "stage", "", { tabindex: "0", role: "group" });
const divider = make("div", "divider", "", {
  role: "slider", tabindex: "0", "aria-valuemin": "0", "aria-valuemax": "100",
});
divider.append(make("i", "line"), make("i", "knob"));
const tags = [make("span", "tag"), make("span", "tag second")];
const legend = make("div", "legend");
const pairStrip = make("div", "strips");
const crops = make("section", "crops", "", { "aria-label": "Enlarged crops" });
const panel = make("section", "panel", "", { "aria-label": "Figure" });
panel.hidden = true;
const help = make("details", "help");
const helpList = make("dl");
for (const [key, what] of KEYS) {
  const row = make("div");
  row.append(make("dt", "", key), make("dd", "", what));
  helpList.append(row);
}
help.append(
  make("summary", "", "Keys and gestures"),
  make("p", "", "Wheel or pinch zooms, dragging moves. With the pictures focused (Tab):"), helpList,
);
const said = make("div", "said", "", { role: "status", "aria-live": "polite" });
root.append(bar, pairBar, stage, legend, pairStrip, crops, panel, help, said);

const cells = [];
const sizes = new ResizeObserver((entries) => {
  for (const entry of entries) {
    const box = entry.devicePixelContentBoxSize?.[0];
    const ratio = window.devicePixelRatio;
    let width = Math.round(entry.contentRect.width * ratio);
    let height = Math.round(entry.contentRect.height * ratio);
    // The browser's own rounding, if it is that of this screen and not of another it imitates.
    if (box && Math.abs(box.inlineSize - width) <= 1) width = box.inlineSize;
    if (box && Math.abs(box.blockSize - height) <= 1) height = box.blockSize;
    if (!width || !height) continue;
    entry.target.width = width;
    entry.target.height = height;
  }
  if (scene) hug();
  if (scene) draw(); // at once: a canvas that was resized is empty
});

// Where a whole picture fits at 100 % or more, the frame is no taller than the picture.
function hug() {
  const width = cells[0].canvas.width, zoom = Math.floor(width / scene.width);
  const tall = zoom < 1 ? "72vh" : scene.height * zoom / window.devicePixelRatio + "px";
  if (root.style.getPropertyValue("--most") !== tall) root.style.setProperty("--most", tall);
}

function cell(index) {
  if (cells[index]) return cells[index];
  const figure = make("figure", "cell");
  const box = make("div", "frame");
  const canvas = make("canvas", "", "", { role: "img" });
  const note = make("p", "note");
  const caption = make("figcaption");
  box.append(canvas, note);
  figure.append(box, caption);
  try {
    sizes.observe(canvas, { box: "device-pixel-content-box" });
  } catch {
    sizes.observe(canvas); // Safari knows content-box only
  }
  canvas.dataset.cell = index;
  cells[index] = { figure, box, canvas, note, caption, ctx: canvas.getContext("2d") };
  return cells[index];
}

function strip(node, picture) {
  const head = make("div", "name");
  head.append(make("b", "", picture.name));
  if (ROLES[picture.role] && ROLES[picture.role] !== picture.name) {
    head.append(make("span", "role", ROLES[picture.role]));
  }
  node.replaceChildren(head);
  if (picture.metrics.length) {
    const list = make("dl", "metrics");
    for (const metric of picture.metrics) {
      const row = make("div", metric.best ? "best" : "");
      const arrow = { higher: "↑", lower: "↓" }[metric.better] || "";
      // the arrow stays on the line of the name's last word
      const name = make("dt", "", metric.name + (arrow ? "\u00a0" : ""));
      if (arrow) {
        name.append(make("span", "arrow", arrow, { "aria-hidden": "true" }));
        name.append(make("span", "unseen", " (" + metric.better + " is better)"));
      }
      const value = make("dd", "", metric.text);
      if (metric.best) value.append(make("span", "unseen", " (best here)"));
      row.append(name, value);
      list.append(row);
    }
    node.append(list);
  }
  if (picture.facts.length) node.append(make("p", "facts-line", picture.facts.join(" · ")));
}

// Everything that depends on the scene or the layout, but not on the place.
function arrange() {
  if (!scene) return;
  const all = pictures(), pair = isPair();
  const count = pair ? 1 : all.length;
  root.dataset.mode = view.mode;
  root.dataset.count = all.length;
  root.style.setProperty(
    "--columns", scene.columns ?? (all.length <= 4 ? all.length : all.length <= 6 ? 3 : 4),
  );
  root.style.setProperty("--ratio", scene.width / scene.height);
  root.setAttribute("aria-label", scene.title ? "Viewer: " + scene.title : "Viewer");
  stage.setAttribute(
    "aria-label", "Pictures: arrows move, plus and minus zoom" + (judged() ? "" : ", Space flips"),
  );
  const chosen = Array.from({ length: count }, (_, index) => cell(index));
  const figures = chosen.map((one) => one.figure);
  if (stage.children.length !== count || figures.some((one, i) => stage.children[i] !== one)) {
    stage.replaceChildren(...figures);
  }
  for (let index = 0; index < count; index += 1) {
    const one = chosen[index];
    const shown = pair ? [all[view.first], all[view.second]] : [all[index]];
    const missing = shown.find((picture) => !fetched(picture));
    one.note.textContent = missing ? noteOf(missing) : "";
    one.canvas.setAttribute("aria-label", label(shown));
    one.figure.classList.toggle("waits", Boolean(missing));
    if (pair) one.caption.replaceChildren();
    else if (judged() && props.caption) props.caption(one.caption, index);
    else strip(one.caption, all[index]);
  }
  pairStrip.replaceChildren();
  if (pair) {
    for (const picture of [all[view.first], all[view.second]]) {
      const node = make("div", "strip");
      strip(node, picture);
      pairStrip.append(node);
    }
  }
  if (view.mode === "swipe") cells[0].box.append(divider, ...tags);
  else { divider.remove(); tags.forEach((tag) => tag.remove()); }
  for (const which of ["first", "second"]) {
    const select = selects[which];
    select.replaceChildren(...all.map((picture, index) => (
      make("option", "", picture.name, { value: index })
    )));
    select.value = String(view[which]);
  }
  for (const [mode, node] of Object.entries(modeButtons)) {
    node.hidden = !scene.modes.includes(mode);
    node.setAttribute("aria-pressed", String(mode === view.mode));
  }
  modeGroup.hidden = scene.modes.length < 2;
  fields.first.hidden = swapButton.hidden = !pair;
  fields.second.firstChild.textContent = pair ? "Second" : "Flip to";
  acrossButton.hidden = view.mode !== "swipe";
  rangeField.hidden = legend.hidden = view.mode !== "difference";
  holdButton.hidden = view.mode === "difference";
  linkButton.hidden = !scene.linked;
  exportButton.hidden = !scene.exported;
  if (!scene.exported) panel.hidden = true;
  boxButton.hidden = !scene.boxed;
  fullButton.hidden = !document.fullscreenEnabled || judged();
  toolGroup.hidden = pairBar.hidden = help.hidden = fitButton.hidden = judged();
  hug();
  changed(false);
}

function noteOf(picture) {
  if (picture.note) return picture.note;
  if (!picture.url) return "No picture yet.";
  return store.get(picture.url)?.failed ? "This picture could not be loaded." : "Loading…";
}

function label(shown) {
  const texts = shown.map((picture) => picture.alt);
  if (shown.length === 1) return texts[0];
  return {
    swipe: "Swipe between: " + texts.join("; and: "),
    flip: texts[0] + "; while flipped: " + texts[1],
    difference: "Difference between: " + texts.join("; and: "),
  }[view.mode];
}

// Drawing: at most once a frame of the screen

let due = 0;

function changed(tell = true) {
  if (!due) due = requestAnimationFrame(() => { due = 0; draw(); });
  if (tell) {
    remember();
    root.dispatchEvent(new CustomEvent("viewchange", {
      bubbles: true, detail: { ...view, shown: cells.length ? place().zoom : 1 },
    }));
  }
}

function draw() {
  if (!scene || !cells.length || !cells[0].canvas.isConnected) return;
  const now = place();
  const all = pictures(), count = isPair() ? 1 : all.length;
  for (let index = 0; index < count; index += 1) {
    const { canvas, ctx } = cells[index];
    const { width, height } = canvas;
    ctx.clearRect(0, 0, width, height);
    const entries = [view.first, view.second].map((at) => fetched(all[at]));
    const put = (entry, x, y, w, h) => {
      if (entry) paint(ctx, entry, now.left, now.top, now.zoom, x, y, w, h);
    };
    if (held) put(entries[1], 0, 0, width, height);
    else if (view.mode === "grid") put(fetched(all[index]), 0, 0, width, height);
    else if (view.mode === "flip") put(entries[0], 0, 0, width, height);
    else if (view.mode === "difference") put(difference()?.entry, 0, 0, width, height);
    else {
      const at = Math.round(view.split * (view.across ? height : width));
      if (view.across) { put(entries[0], 0, 0, width, at); put(entries[1], 0, at, width, height - at); }
      else { put(entries[0], 0, 0, at, height); put(entries[1], at, 0, width - at, height); }
    }
    if (view.box) {
      const [x, y, w, h] = view.box;
      outline(
        ctx, Math.round(now.left + x * now.zoom), Math.round(now.top + y * now.zoom),
        Math.round(w * now.zoom), Math.round(h * now.zoom), Math.max(2, Math.round(2 * devicePixelRatio)),
      );
    }
  }
  drawCrops();
  reflect(now);
}

// Around a rectangle, never on it, so that what is inside stays as it is.
function outline(ctx, x, y, w, h, thick) {
  for (const [colour, grow] of [["#ffffff", thick + 1], [RED, thick]]) {
    ctx.fillStyle = colour;
    ctx.fillRect(x - grow, y - grow, w + 2 * grow, grow);
    ctx.fillRect(x - grow, y + h, w + 2 * grow, grow);
    ctx.fillRect(x - grow, y, grow, h);
    ctx.fillRect(x + w, y, grow, h);
  }
}

// What depends on the place.
function reflect(now) {
  const all = pictures();
  zoomShown.textContent = percent(now.zoom);
  root.dataset.zoom = now.zoom;
  stage.classList.toggle("zoomed", !now.fits);
  stage.classList.toggle("boxing", boxing);
  boxButton.setAttribute("aria-pressed", String(boxing || view.box !== null));
  exportButton.setAttribute("aria-expanded", String(!panel.hidden));
  holdButton.textContent = "Hold: " + all[view.second].name;
  holdButton.setAttribute("aria-pressed", String(held));
  acrossButton.textContent = view.across ? "Left and right" : "Top and bottom";
  rangeSelect.value = String(view.range);
  cells.forEach((one, index) => one.figure.classList.toggle("held", held && index !== view.second));
  if (view.mode === "swipe") {
    const share = (view.split * 100).toFixed(2) + "%";
    divider.classList.toggle("across", view.across);
    divider.style.left = view.across ? "0" : share;
    divider.style.top = view.across ? share : "0";
    divider.setAttribute("aria-orientation", view.across ? "vertical" : "horizontal");
    divider.setAttribute("aria-valuenow", String(Math.round(view.split * 100)));
    divider.setAttribute(
      "aria-label", "Divider between " + all[view.first].name + " and " + all[view.second].name,
    );
    tags.forEach((tag, at) => {
      tag.textContent = all[at ? view.second : view.first].name;
      tag.classList.toggle("across", view.across);
    });
  }
  if (view.mode === "difference") {
    const result = difference();
    const words = result
      ? "Mean " + result.mean.toFixed(2) + ", largest " + result.largest.toFixed(0) + " of 255 levels"
      : "";
    if (legend.dataset.words !== words + view.range) {
      const gradient = make("i", "scale");
      gradient.style.background = "linear-gradient(90deg,#" + stops().join(",#") + ")";
      const ticks = make("div", "ticks");
      ticks.append(make("span", "", "0"), make("span", "", view.range + " levels and more"));
      legend.replaceChildren(make("b", "", words), gradient, ticks);
      legend.dataset.words = words + view.range;
    }
  }
}

// Crops: what is in the red box, enlarged by a whole number, in the order of the pictures

function drawCrops() {
  crops.hidden = !view.box;
  if (!view.box) { crops.replaceChildren(); return; }
  const all = pictures(), [x, y, w, h] = view.box;
  if (crops.querySelectorAll("figure").length !== all.length) {
    const row = make("div", "row");
    for (let index = 0; index < all.length; index += 1) {
      const figure = make("figure");
      figure.append(make("canvas", "", "", { role: "img" }), make("figcaption"));
      row.append(figure);
    }
    crops.replaceChildren(make("p", "about"), row);
  }
  const figures = [...crops.querySelectorAll("figure")];
  const ratio = window.devicePixelRatio;
  const room = figures[0].clientWidth * ratio;
  const times = clamp(Math.floor(room / w), 1, LARGEST);
  crops.firstChild.textContent = "Box of " + w + " × " + h + " pixels at (" + x + ", " + y
    + "), enlarged " + times + "×";
  figures.forEach((figure, index) => {
    const canvas = figure.firstChild, entry = fetched(all[index]);
    const [width, height] = [Math.min(w * times, Math.floor(room)), h * times];
    if (canvas.width !== width || canvas.height !== height) {
      Object.assign(canvas, { width, height });
    }
    canvas.style.width = width / ratio + "px";
    canvas.style.height = height / ratio + "px";
    canvas.setAttribute("aria-label", "Crop of: " + all[index].alt);
    figure.lastChild.textContent = all[index].name;
    const ctx = canvas.getContext("2d");
    ctx.clearRect(0, 0, width, height);
    if (entry) paint(ctx, entry, -x * times, -y * times, times, 0, 0, width, height);
  });
}

function setBox(x, y, w, h) {
  const width = Math.round(clamp(w, 4, scene.width)), height = Math.round(clamp(h, 4, scene.height));
  view.box = [
    Math.round(clamp(x, 0, scene.width - width)), Math.round(clamp(y, 0, scene.height - height)),
    width, height,
  ];
}

function toggleBox() {
  if (view.box || boxing) { view.box = null; boxing = false; }
  else boxing = true;
  announce(boxing ? "Drag a box on a picture" : "Box removed");
  changed();
}

function boxAtCentre() {
  if (!scene.boxed) return;
  if (view.box) { view.box = null; boxing = false; }
  else {
    const now = place(), side = Math.round(Math.min(scene.width, scene.height) / 5);
    setBox(now.x - side / 2, now.y - side / 2, side, side);
  }
  announce(view.box ? "Box drawn" : "Box removed");
  changed();
}

function growBox(factor) {
  if (!view.box) return;
  const [x, y, w, h] = view.box, more = factor > 1 ? 1 : -1;
  const [width, height] = [w, h].map((side) => side + more * Math.max(1, Math.round(side / 8)));
  setBox(x - (width - w) / 2, y - (height - h) / 2, width, height);
  changed();
}

// Layout

function setMode(mode) {
  if (!scene.modes.includes(mode)) return;
  view.mode = mode;
  held = false;
  arrange();
  changed();
}

function exchange() {
  [view.first, view.second] = [view.second, view.first];
  arrange();
  changed();
}

function hold(on) {
  if (held === on || view.mode === "difference" || judged()) return;
  held = on;
  changed(false);
}

function toggleFull() {
  if (document.fullscreenElement) document.exitFullscreen(); else root.requestFullscreen();
}

// Pointers: one drags, two pinch

const pointers = new Map();
let gesture = null;

function at(event) {
  const canvas = event.target.closest?.("canvas") || cells[0].canvas;
  const box = canvas.getBoundingClientRect();
  return [
    (event.clientX - box.left) * canvas.width / box.width,
    (event.clientY - box.top) * canvas.height / box.height,
  ];
}

stage.addEventListener("pointerdown", (event) => {
  if (!scene || event.button !== 0 || !event.target.closest("canvas")) return;
  const [px, py] = at(event);
  const now = place();
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  event.target.setPointerCapture(event.pointerId);
  const origin = event.target.getBoundingClientRect();
  const ratio = event.target.width / origin.width;
  if (pointers.size === 2) {
    const [a, b] = [...pointers.values()];
    gesture = { kind: "pinch", distance: Math.hypot(a[0] - b[0], a[1] - b[1]), zoom: now.zoom, ratio, origin, last: null };
  } else if (pointers.size === 1 && boxing) {
    gesture = { kind: "box", from: [(px - now.left) / now.zoom, (py - now.top) / now.zoom], target: event.target };
  } else if (pointers.size === 1) {
    gesture = { kind: "pan", ratio, last: [event.clientX, event.clientY] };
  }
});

stage.addEventListener("pointermove", (event) => {
  if (!pointers.has(event.pointerId) || !gesture) return;
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  if (gesture.kind === "pinch" && pointers.size >= 2) {
    const [a, b] = [...pointers.values()];
    const middle = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    if (gesture.last) {
      pan((middle[0] - gesture.last[0]) * gesture.ratio, (middle[1] - gesture.last[1]) * gesture.ratio);
    }
    gesture.last = middle;
    const distance = Math.hypot(a[0] - b[0], a[1] - b[1]);
    zoomTo(
      gesture.zoom * distance / gesture.distance,
      (middle[0] - gesture.origin.left) * gesture.ratio, (middle[1] - gesture.origin.top) * gesture.ratio,
    );
  } else if (gesture.kind === "pan") {
    pan((event.clientX - gesture.last[0]) * gesture.ratio, (event.clientY - gesture.last[1]) * gesture.ratio);
    gesture.last = [event.clientX, event.clientY];
  } else if (gesture.kind === "box") {
    const now = place(), [px, py] = at({ target: gesture.target, clientX: event.clientX, clientY: event.clientY });
    const to = [clamp((px - now.left) / now.zoom, 0, scene.width), clamp((py - now.top) / now.zoom, 0, scene.height)];
    const from = [clamp(gesture.from[0], 0, scene.width), clamp(gesture.from[1], 0, scene.height)];
    setBox(
      Math.min(from[0], to[0]), Math.min(from[1], to[1]),
      Math.abs(from[0] - to[0]), Math.abs(from[1] - to[1]),
    );
    changed();
  }
});

function released(event) {
  if (!pointers.delete(event.pointerId)) return;
  if (gesture?.kind === "pinch") {
    // Fingers stop anywhere; pixels are equal squares at whole zooms only.
    const now = place(), { width, height } = frame();
    const near = (zoom) => Math.abs(Math.log(zoom / now.zoom));
    const whole = judged()
      ? scene.zooms.toSorted((a, b) => near(a) - near(b))[0] : Math.round(now.zoom);
    if (now.zoom > 1) zoomTo(whole, width / 2, height / 2);
    announce("Zoom " + percent(place().zoom));
  }
  if (gesture?.kind === "box" && view.box) boxing = false;
  gesture = null;
  changed();
}
stage.addEventListener("pointerup", released);
stage.addEventListener("pointercancel", released);

let wheeled = 0;
stage.addEventListener("wheel", (event) => {
  if (!scene || !event.target.closest("canvas")) return;
  const unit = event.deltaMode === 1 ? 30 : event.deltaMode === 2 ? 300 : 1; // lines, pages, pixels
  const delta = event.deltaY * unit * (event.ctrlKey ? PINCH_WHEEL : 1);
  // At fit there is no further out: the page scrolls on.
  if (delta > 0 && place().fits && !event.ctrlKey) return;
  event.preventDefault();
  if (Math.sign(delta) !== Math.sign(wheeled)) wheeled = 0;
  wheeled += delta;
  if (Math.abs(wheeled) < WHEEL_STEP) return;
  step(wheeled < 0 ? 1 : -1, ...at(event));
  wheeled = 0;
}, { passive: false });

divider.addEventListener("pointerdown", (event) => {
  divider.setPointerCapture(event.pointerId);
  event.preventDefault();
  divider.focus({ preventScroll: true });
});
divider.addEventListener("pointermove", (event) => {
  if (!divider.hasPointerCapture(event.pointerId)) return;
  const box = cells[0].canvas.getBoundingClientRect();
  view.split = view.across
    ? clamp((event.clientY - box.top) / box.height, 0, 1)
    : clamp((event.clientX - box.left) / box.width, 0, 1);
  changed();
});
divider.addEventListener("keydown", (event) => {
  const move = {
    ArrowLeft: -0.02, ArrowUp: -0.02, ArrowRight: 0.02, ArrowDown: 0.02,
    PageUp: -0.1, PageDown: 0.1, Home: -1, End: 1,
  }[event.key];
  if (move === undefined) return;
  view.split = clamp(view.split + move, 0, 1);
  event.preventDefault();
  event.stopPropagation();
  changed();
});

holdButton.addEventListener("pointerdown", (event) => {
  holdButton.setPointerCapture(event.pointerId);
  hold(true);
});
for (const name of ["pointerup", "pointercancel", "lostpointercapture", "blur"]) {
  holdButton.addEventListener(name, () => hold(false));
}
holdButton.addEventListener("contextmenu", (event) => event.preventDefault()); // a long press
holdButton.addEventListener("keydown", (event) => {
  if (event.key === " " || event.key === "Enter") { event.preventDefault(); hold(true); }
});
holdButton.addEventListener("keyup", () => hold(false));
stage.addEventListener("blur", () => hold(false));

stage.addEventListener("keydown", (event) => {
  if (!scene || event.ctrlKey || event.metaKey || event.altKey) return;
  const { width, height } = frame();
  const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const count = pictures().length;
  const next = (which) => { view[which] = (view[which] + 1) % count; arrange(); changed(); };
  if (arrows[event.key] && event.shiftKey) {
    if (!view.box) return;
    const [x, y, w, h] = view.box, [dx, dy] = arrows[event.key];
    setBox(x - dx * Math.max(1, w >> 3), y - dy * Math.max(1, h >> 3), w, h);
    changed();
  } else if (arrows[event.key]) {
    const [dx, dy] = arrows[event.key];
    pan(Math.round(dx * width * PAN_SHARE), Math.round(dy * height * PAN_SHARE));
  } else {
    const keys = judged() ? ["+", "=", "-", "_", "o"] : null;
    const action = keys && !keys.includes(event.key.toLowerCase()) ? null : {
      "+": () => step(1), "=": () => step(1), "-": () => step(-1), "_": () => step(-1),
      f: () => setZoom(null), o: () => setZoom(1), " ": () => hold(true),
      g: () => setMode("grid"), s: () => setMode("swipe"), l: () => setMode("flip"),
      d: () => setMode("difference"), x: exchange, b: boxAtCentre,
      "[": () => next("first"), "]": () => next("second"),
      "<": () => growBox(0.5), ">": () => growBox(2),
    }[event.key.toLowerCase()];
    if (!action) return;
    action();
  }
  event.preventDefault();
  event.stopPropagation();
});
stage.addEventListener("keyup", (event) => { if (event.key === " ") hold(false); });

// Links: the fragment of the address says scene and view

function fragment() {
  const now = place();
  const parts = {
    scene: scene.key, mode: view.mode, first: view.first, second: view.second,
    zoom: view.zoom === null ? "fit" : String(view.zoom),
  };
  if (view.zoom !== null) Object.assign(parts, { x: now.x.toFixed(3), y: now.y.toFixed(3) });
  if (view.mode === "swipe") {
    Object.assign(parts, { split: view.split.toFixed(4), across: Number(view.across) });
  }
  if (view.mode === "difference") parts.range = view.range;
  if (view.box) parts.box = view.box.join(" ");
  return "#" + new URLSearchParams(parts);
}

let remembering = 0;
function remember() {
  if (!scene.linked) return;
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    if (!scene.linked || !root.offsetParent) return;
    opened = fragment();
    history.replaceState(history.state, "", opened);
  }, LINK_DELAY);
}

// Applies a fragment if it speaks of this scene; values out of range are left out.
function reopen(hash = location.hash) {
  if (!scene?.linked || hash === opened) return;
  const parts = new URLSearchParams(hash.slice(1));
  if (parts.get("scene") !== scene.key) return;
  opened = hash;
  const whole = (name, most) => {
    const value = Number(parts.get(name) ?? NaN);
    return Number.isInteger(value) && value >= 0 && value < most ? value : null;
  };
  const number = (name, low, high) => {
    const value = parseFloat(parts.get(name) ?? "");
    return Number.isFinite(value) ? clamp(value, low, high) : null;
  };
  if (scene.modes.includes(parts.get("mode"))) view.mode = parts.get("mode");
  view.first = whole("first", scene.pictures.length) ?? view.first;
  view.second = whole("second", scene.pictures.length) ?? view.second;
  view.zoom = number("zoom", 1 / 64, LARGEST);
  if (view.zoom > 1) view.zoom = Math.round(view.zoom);
  view.x = number("x", 0, scene.width) ?? scene.width / 2;
  view.y = number("y", 0, scene.height) ?? scene.height / 2;
  view.split = number("split", 0, 1) ?? 0.5;
  view.across = parts.get("across") === "1";
  if (RANGES.includes(Number(parts.get("range")))) view.range = Number(parts.get("range"));
  const box = (parts.get("box") ?? "").split(" ").map(Number);
  view.box = null;
  if (scene.boxed && box.length === 4 && box.every(Number.isFinite)) setBox(...box);
}

async function copyLink() {
  const link = location.href.split("#")[0] + fragment();
  opened = fragment();
  history.replaceState(history.state, "", opened);
  try {
    await navigator.clipboard.writeText(link);
    announce("Link copied");
    flash(linkButton, "Copied");
  } catch {
    announce("The link is in the address bar"); // the page may not be allowed to copy
    flash(linkButton, "In the address bar");
  }
}

function flash(node, text) {
  const before = node.textContent;
  node.textContent = text;
  setTimeout(() => { node.textContent = before; }, 1600);
}

// Figures: tiles of real pixels, enlarged by a whole number, 300 dpi written into the PNG

function region() {
  const now = place(), { width, height } = frame();
  const x = clamp(Math.floor(-now.left / now.zoom), 0, scene.width - 1);
  const y = clamp(Math.floor(-now.top / now.zoom), 0, scene.height - 1);
  return [
    x, y,
    clamp(Math.ceil((width - now.left) / now.zoom), x + 1, scene.width) - x,
    clamp(Math.ceil((height - now.top) / now.zoom), y + 1, scene.height) - y,
  ];
}

// What a figure of this view consists of: tiles {name, area, layers}; a layer is a picture and the
// part of the area it is shown in: left, top, right and bottom in pixels of the scene, whole ones.
function tiles() {
  const all = pictures(), area = view.box || region();
  const [x, y, w, h] = area;
  const whole = (picture) => ({
    name: picture.name, area,
    layers: [[fetched(picture), 0, 0, w, h]],
  });
  const pair = [all[view.first], all[view.second]];
  if (view.box || view.mode === "grid") return all.map(whole);
  if (view.mode === "flip") return pair.map(whole);
  if (view.mode === "difference") {
    const name = "Difference, 0 to " + view.range + " levels";
    return [...pair.map(whole), { name, area, layers: [[difference()?.entry, 0, 0, w, h]] }];
  }
  // The divider at the nearest edge of a pixel, counted in whole numbers until the one division: a
  // share of the width would round a divider in the middle of a pixel one way or the other by chance.
  const now = place(), { width, height } = frame();
  const cut = view.across
    ? clamp(Math.round((Math.round(view.split * height) - now.top) / now.zoom) - y, 0, h)
    : clamp(Math.round((Math.round(view.split * width) - now.left) / now.zoom) - x, 0, w);
  const [one, two] = pair.map(fetched);
  const names = pair.map((picture) => picture.name);
  return [{
    name: view.across ? names.join(" above, ") + " below" : names.join(" | "), area,
    layers: view.across
      ? [[one, 0, 0, w, cut], [two, 0, cut, w, h]]
      : [[one, 0, 0, cut, h], [two, cut, 0, w, h]],
  }];
}

function compose() {
  const list = tiles();
  const columns = list.length <= 4 ? list.length : Math.ceil(list.length / 2);
  const [x, y, w, h] = list[0].area;
  const overview = view.box ? fetched(pictures().at(-1)) || fetched(pictures()[0]) : null;
  const rows = Math.ceil(list.length / columns);
  const laidOut = (times) => {
    const tall = rows * (h * times + LABEL_HEIGHT) + (rows - 1) * GAP;
    // The overview, which only shows where the box is, is as tall as the rows beside it.
    const shrink = overview ? (tall - LABEL_HEIGHT) / scene.height : 0;
    const [side, down] = [Math.round(scene.width * shrink), Math.round(scene.height * shrink)];
    const start = overview ? side + GAP : 0;
    return {
      times, shrink, side, down, start,
      wide: start + columns * w * times + (columns - 1) * GAP,
      high: tall,
    };
  };
  let plan = laidOut(1);
  for (let times = 2; times <= LARGEST && laidOut(times).wide <= TEXT_WIDTH; times += 1) {
    plan = laidOut(times);
  }
  const { times, shrink, side, down, start } = plan;
  const [width, height] = [w * times, h * times];
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: plan.wide, height: plan.high });
  const ctx = canvas.getContext("2d", { alpha: false });
  ctx.fillStyle = "#ffffff";
  ctx.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, left, top, room) => {
    ctx.fillStyle = "#111111";
    ctx.font = LABEL_FONT;
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.fillText(text, left + room / 2, top + LABEL_HEIGHT / 2, room);
  };
  if (overview) {
    ctx.imageSmoothingEnabled = true;
    ctx.drawImage(level(overview, shrink * scene.width / overview.width), 0, 0, side, down);
    outline(ctx, Math.round(x * shrink), Math.round(y * shrink), Math.round(w * shrink), Math.round(h * shrink), 4);
    write(scene.title || "Overview", 0, down, side);
  }
  list.forEach((tile, index) => {
    const left = start + (index % columns) * (width + GAP);
    const top = Math.floor(index / columns) * (height + LABEL_HEIGHT + GAP);
    for (const [entry, l, t, r, s] of tile.layers) {
      if (!entry) continue;
      paint(
        ctx, entry, left - x * times, top - y * times, times,
        left + l * times, top + t * times, (r - l) * times, (s - t) * times,
      );
    }
    write(tile.name, left, top + height, width);
  });
  return { canvas, names: list.map((tile) => tile.name), area: [x, y, w, h], times };
}

const CRCS = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k += 1) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c >>> 0;
});

// A PNG with its resolution: a pHYs chunk right after IHDR (PNG specification, 11.3.4.3).
async function png(canvas) {
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("the figure is too large for this browser");
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const chunk = new DataView(new ArrayBuffer(21));
  const perMetre = Math.round(DPI / 0.0254);
  chunk.setUint32(0, 9);
  [..."pHYs"].forEach((letter, i) => chunk.setUint8(4 + i, letter.charCodeAt(0)));
  chunk.setUint32(8, perMetre);
  chunk.setUint32(12, perMetre);
  chunk.setUint8(16, 1);
  let crc = 0xffffffff;
  for (let i = 4; i < 17; i += 1) crc = CRCS[(crc ^ chunk.getUint8(i)) & 255] ^ (crc >>> 8);
  chunk.setUint32(17, (crc ^ 0xffffffff) >>> 0);
  const header = 8 + 25; // signature, IHDR
  return new Blob([bytes.slice(0, header), chunk.buffer, bytes.slice(header)], { type: "image/png" });
}

const TEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" };
const tex = (text) => String(text).replace(/[\\~^&%$#_{}]/g, (c) => TEX[c] || "\\" + c)
  .replace(/×/g, "$\\times$").replace(/≤/g, "$\\le$").replace(/−/g, "$-$");

function slug() {
  const words = [scene.title || "figure", view.box ? "crops" : view.mode].join("-");
  return words.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
}

function latex(figure) {
  const all = pictures(), [x, y, w, h] = figure.area;
  const shown = view.box || view.mode === "grid" ? all : [all[view.first], all[view.second]];
  const columns = [];
  for (const picture of shown) {
    for (const metric of picture.metrics) {
      if (!columns.some((one) => one.name === metric.name)) columns.push(metric);
    }
  }
  const arrows = { higher: " $\\uparrow$", lower: " $\\downarrow$" };
  const facts = shown.some((picture) => picture.facts.length);
  const lines = [
    "% Needs graphicx and booktabs.",
    "\\begin{figure}", "  \\centering", "  \\includegraphics[width=\\linewidth]{" + slug() + ".png}",
  ];
  if (columns.length || facts) {
    lines.push("  \\begin{tabular}{l" + "r".repeat(columns.length) + (facts ? "l" : "") + "}", "    \\toprule");
    const heads = columns.map((one) => tex(one.name) + (arrows[one.better] || ""));
    lines.push("    " + ["", ...heads, ...(facts ? [""] : [])].join(" & ") + " \\\\", "    \\midrule");
    for (const picture of shown) {
      const values = columns.map((one) => {
        const metric = picture.metrics.find((other) => other.name === one.name);
        if (!metric) return "--";
        return metric.best ? "\\textbf{" + tex(metric.text) + "}" : tex(metric.text);
      });
      const more = facts ? [picture.facts.map(tex).join(", ")] : [];
      lines.push("    " + [tex(picture.name), ...values, ...more].join(" & ") + " \\\\");
    }
    lines.push("    \\bottomrule", "  \\end{tabular}");
  }
  const where = w === scene.width && h === scene.height
    ? "the whole picture" : w + " × " + h + " pixels at (" + x + ", " + y + ")";
  lines.push(
    "  \\caption{" + (scene.title ? tex(scene.title) + ": " : "") + tex(where) + ", each pixel "
      + figure.times + tex(" × ") + figure.times + ". From left to right"
      + (figure.names.length > 4 ? ", row by row: " : ": ")
      + figure.names.map(tex).join(", ") + ".}",
    "  \\label{fig:" + slug() + "}", "\\end{figure}", "",
  );
  return lines.join("\n");
}

const texArea = make("textarea", "tex", "", { readonly: "", "aria-label": "LaTeX", rows: "9", spellcheck: "false" });
const pngButton = button("Download PNG, 300 dpi", "", async () => {
  try {
    download(await png(compose().canvas), slug() + ".png");
  } catch (error) {
    announce("The figure could not be made: " + error.message + ". Zoom in, so that less is shown.");
  }
}, "png");
const texButton = button("Download LaTeX", "", () => {
  download(new Blob([latex(compose())], { type: "text/x-tex" }), slug() + ".tex");
}, "tex-file");
const panelBar = make("div", "bar");
panelBar.append(pngButton, texButton);
panel.append(
  make("p", "about", "The figure shows what you see now, in the pictures' own pixels."), panelBar, texArea,
);

function toggleExport() {
  panel.hidden = !panel.hidden;
  if (!panel.hidden) texArea.value = latex(compose());
  changed(false);
}
root.addEventListener("viewchange", () => {
  if (!panel.hidden && !gesture) texArea.value = latex(compose());
});

function download(blob, name) {
  const link = make("a", "", "", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// A new scene, from Python

function show() {
  const value = props.value;
  const before = scene;
  scene = value?.pictures?.length ? {
    ...value, pictures: value.pictures.map((one) => ({ ...one, url: one.file?.url })),
  } : null;
  root.hidden = !scene;
  if (!scene) return;
  const wanted = new Set(scene.pictures.map((picture) => picture.url));
  for (const [url, entry] of store) {
    if (wanted.has(url)) continue;
    entry.levels?.[0].close?.();
    store.delete(url);
  }
  if (before?.key !== scene.key || before.width !== scene.width || before.height !== scene.height) {
    const last = scene.pictures.length - 1;
    const first = Math.max(0, scene.pictures.findIndex((picture) => picture.role === "sr"));
    Object.assign(view, {
      first, second: first === last ? 0 : last, box: null, split: 0.5,
      zoom: scene.start === "actual" ? 1 : null, x: scene.width / 2, y: scene.height / 2,
    });
    boxing = held = false;
  }
  view.first = Math.min(view.first, scene.pictures.length - 1);
  view.second = Math.min(view.second, scene.pictures.length - 1);
  if (!scene.modes.includes(view.mode)) view.mode = scene.modes[0];
  reopen();
  arrange();
  for (const picture of scene.pictures) if (picture.url) load(picture.url);
}

// What a page tells the viewer when it stops waiting for pictures.
root.addEventListener("stopped", (event) => {
  for (const picture of pictures()) {
    if (!picture.pending) continue;
    Object.assign(picture, { pending: false, note: event.detail });
  }
  arrange();
});
window.addEventListener("hashchange", (event) => {
  if (!root.isConnected || !scene) return;
  // Asked of the event, not the address: the view before it may have been written there since.
  clearTimeout(remembering);
  reopen(new URL(event.newURL).hash);
  arrange();
  remember();
});
window.addEventListener("blur", () => hold(false));
watch("value", show);
show();
