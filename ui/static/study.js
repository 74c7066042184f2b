// The study: consent, training, trials, breaks, the end. One component, no build step.
//
// Runs once, as the body of a function Gradio calls with `element` and `props`; `openViewer` is
// viewer.js, put in front of it by ui/study_tab.py. All DOM is made with textContent. The server
// remembers everything: after a reload, or in a second tab, the next screen is whatever has no stored
// answer. What is kept in the browser is the participant's code and nothing else.

const TICK = 100; // ms between looks at the clock
const RETRIES = [1000, 2000, 4000, 8000, 15000]; // ms between attempts to send a vote
const HEALTH_EVERY = 30000; // ms
const CLICK_PX = 6; // a pointer that moves further drags
const ZOOMS = [1, 2, 4];
const LETTERS = "ABCDEFGH";
const LABELS = {
  vision: ["Eyesight", {
    normal: "Normal", corrected: "Corrected by glasses or lenses",
    uncorrected: "Not fully corrected", colour_deficient: "Colour vision deficiency",
  }],
  expertise: ["Experience with image quality", { naive: "None in particular", expert: "Professional or research" }],
  display: ["Screen", { laptop: "Laptop", monitor: "Monitor", tablet: "Tablet", phone: "Phone" }],
};

function make(tag, className, text, attributes) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  return node;
}

function button(text, action, className) {
  const node = make("button", className, text, { type: "button" });
  node.addEventListener("click", action);
  return node;
}

function hex(bytes) {
  const values = crypto.getRandomValues(new Uint8Array(bytes)); // randomUUID needs https
  return Array.from(values, (value) => value.toString(16).padStart(2, "0")).join("");
}

const root = element.querySelector(".study");
root.setAttribute("role", "region");
root.setAttribute("aria-label", "Study");
const session = hex(16);
const began = Date.now();
let about = null; // what the study says of itself
let code = "";
let asked = ""; // the criterion of the trial before
let rested = -1; // index of the trial before which a break was taken
let lastHash = ""; // of the last stored vote

// Talking to the server: endpoints that wait in no queue

class Told extends Error {} // the server said why not; trying again will not help

// Without a session of Gradio's each call would make one, which takes longer than the call.
async function call(name, ...data) {
  const home = new URL(window.gradio_config?.root || location.href, location.href).pathname;
  const address = location.origin + home.replace(/\/$/, "") + "/gradio_api/run/study_" + name;
  const answer = await fetch(address, {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ data, session_hash: session }),
  });
  const body = await answer.json().catch(() => ({}));
  if (answer.ok && body.data) return body.data[0];
  if (body.error && !body.error.startsWith("Something broke")) throw new Told(unescaped(body.error));
  throw new Error(body.error || "The server answered " + answer.status + ".");
}

const unescaped = (text) => text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// The code, in the browser's storage where it has one

const shelf = () => "study-" + about.study_hash.slice(0, 16);
function kept() { try { return localStorage.getItem(shelf()) || ""; } catch { return ""; } }
function keep() { try { localStorage.setItem(shelf(), code); } catch { /* it is shown at the end */ } }
function forget() { try { localStorage.removeItem(shelf()); } catch { /* nothing was kept */ } }

// A code in the fragment, which no server sees, is taken over and removed from the address.
function fromAddress() {
  const found = /^#participant=([0-9a-f]{32})$/.exec(location.hash);
  if (!found) return "";
  history.replaceState(history.state, "", location.pathname + location.search);
  return found[1];
}
const link = () => location.href.split("#")[0] + "#participant=" + code;

// The page: a screen, and below it what was saved and how far copies are

const screen = make("div", "screen");
const saved = make("p", "saved", "", { role: "status" });
const health = make("p", "health");
const foot = make("div", "foot");
foot.append(saved, health);
root.append(screen, foot);

function show(title, ...parts) {
  stopClock();
  const heading = make("h2", "", title, { tabindex: "-1" });
  screen.replaceChildren(heading, ...parts);
  focusOn(heading);
  toTop();
  return heading;
}

// What is above is no part of the study; on a phone it fills half the screen.
function toTop() {
  if (code && root.offsetParent) root.scrollIntoView({ block: "start" });
}

// Only if the visitor is in this tab: a page must not steal the focus of another.
function focusOn(node) {
  if (root.offsetParent) node.focus({ preventScroll: true });
}

function row(...buttons) {
  const node = make("div", "row");
  node.append(...buttons);
  return node;
}

const text = (...lines) => lines.map((line) => make("p", "", line));

function trouble(error, again) {
  console.error("study:", error);
  const words = error instanceof Told ? error.message : "The server cannot be reached just now. "
    + "Votes that were saved are safe.";
  show("One moment", ...text(words), row(button("Try again", again, "primary")));
}

async function lookAfter() {
  try {
    const state = await call("health");
    health.textContent = !state.copied ? "Votes are kept on this server."
      : state.failing ? "Copies of votes are failing; votes are safe on this server. "
        + state.pending + " wait, the oldest for " + seconds(state.oldest_seconds) + "."
        : state.pending ? "Copies: " + state.pending + " wait, the oldest for "
          + seconds(state.oldest_seconds) + "." : "Copies are up to date.";
  } catch { health.textContent = "The server cannot be reached."; }
}
const seconds = (value) => (value < 90 ? Math.round(value) + " s" : Math.round(value / 60) + " min");
setInterval(() => { if (about && root.offsetParent && !document.hidden) lookAfter(); }, HEALTH_EVERY);

// From opening the tab to the first trial

async function start() {
  show("Study", ...text("Loading…"));
  try {
    about = await call("about");
    lookAfter();
    const found = fromAddress();
    code = found || kept();
    if (!code) return consent();
    const progress = await call("join", code, "", false, device());
    keep();
    if (progress.done >= progress.total) return next();
    show(
      "Welcome back", ...text(
        "You have done " + progress.done + " of " + progress.total + " trials. You go on where you were.",
      ),
      row(button("Continue", roomEnough, "primary"), button("Withdraw", withdrawal)),
    );
  } catch (error) {
    if (!(error instanceof Told) || !about) return trouble(error, start);
    forget();
    code = "";
    consent();
  }
}

function device() {
  const gamut = ["rec2020", "p3", "srgb"].find((name) => matchMedia(`(color-gamut: ${name})`).matches);
  return {
    screen_w: window.screen.width, screen_h: window.screen.height, gamut: gamut || "srgb",
    pointer: matchMedia("(pointer: coarse)").matches ? "coarse" : "fine",
  };
}

function consent() {
  if (about.closed) {
    show(about.title, ...text("This study is closed and takes nobody new. Thank you for your interest."));
    return;
  }
  const words = make("div", "consent", "", { tabindex: "0", role: "region", "aria-label": "Consent" });
  // Lines of a paragraph are wrapped in the study file; here they run on.
  words.append(...text(...about.consent.trim().split(/\n\s*\n/).map((part) => part.replace(/\s+/g, " "))));
  const more = make("details", "more");
  more.append(make("summary", "", "About you, if you like (not required)"));
  const selects = {};
  const fields = make("div", "fields");
  for (const [name, [label, options]] of Object.entries(LABELS)) {
    const field = make("label", "field");
    selects[name] = make("select");
    selects[name].append(make("option", "", "Not said", { value: "" }));
    for (const [value, title] of Object.entries(options)) selects[name].append(make("option", "", title, { value }));
    field.append(make("span", "", label), selects[name]);
    fields.append(field);
  }
  more.append(fields);
  const agreed = make("input", "", "", { type: "checkbox" });
  const label = make("label", "agree");
  label.append(agreed, make("span", "", "I am 18 or older, I have read this, and I agree."));
  const problem = make("p", "problem", "", { role: "alert" });
  const go = button("Take part", async () => {
    if (!code) code = hex(16);
    const said = Object.fromEntries(Object.entries(selects).map(([name, node]) => [name, node.value]));
    go.disabled = true;
    try {
      await call("join", code, about.consent_sha256, true, { ...said, ...device() });
      keep();
      instructions();
    } catch (error) {
      go.disabled = false;
      problem.textContent = error instanceof Told ? error.message : "The server cannot be reached. Try again.";
    }
  }, "primary");
  go.disabled = true;
  agreed.addEventListener("change", () => { go.disabled = !agreed.checked; });
  show(about.title, words, more, label, problem, row(go));
}

function instructions() {
  const pairs = about.mode === "pairwise";
  const list = make("ol");
  const lines = [
    "Look at the input: a small, damaged picture, its pixels enlarged. It is never an answer.",
    pairs
      ? "Compare the two restorations of it, A and B. All pictures move together: drag them, and zoom with the wheel, two fingers, or + and −."
      : "Compare the restorations of it, A, B, C and so on. All pictures move together: drag them, and zoom with the wheel, two fingers, or + and −.",
    pairs
      ? "Click the better one, or “No difference”, then Confirm. Until then you may change your mind."
      : "Click the best one, then Confirm. Until then you may change your mind.",
    "The first trials are easy ones for practice: you are told whether you were right.",
  ];
  if (about.blocks > 1) lines.push("There are " + about.blocks + " parts, each with a question of its own.");
  for (const line of lines) list.append(make("li", "", line));
  show("How it works", list, make("h3", "keyboard", "By keyboard"), keysHelp(pairs), row(button("Start", roomEnough, "primary")));
}

function keysHelp(pairs) {
  const list = make("dl", "keys");
  const keys = [[["1", "2", "…"], "choose a picture"], [["←", "→"], pairs ? "choose the left or the right one" : "choose the one before or after"]];
  if (pairs) keys.push([["T"], "no difference"]);
  keys.push([["Enter"], "confirm"], [["Tab"], "to the pictures, where the arrows move and + − zoom"]);
  for (const [names, what] of keys) {
    const entry = make("div"), term = make("dt");
    term.append(...names.map((key) => make("kbd", "", key)));
    entry.append(term, make("dd", "", what));
    list.append(entry);
  }
  return list;
}

// A window that is too small is warned of, or not let in, as the study file says.
function roomEnough() {
  const needed = about.viewport_min_px;
  if (window.innerWidth >= needed) return next();
  const words = "This window is " + window.innerWidth + " pixels wide. The study is meant for "
    + needed + " or more: on a small screen you see less of each picture at once.";
  if (about.small_viewport === "block") {
    show(
      "A larger window is needed",
      ...text(words, "Make the window larger, or go on at another screen with this address:"),
      make("p", "code", link()), row(button("Check again", roomEnough, "primary")),
    );
  } else {
    show(
      "A small window", ...text(words, "If you go on, your answers count and are marked as given on a small screen."),
      row(button("Go on anyway", next, "primary"), button("Check again", roomEnough)),
    );
  }
}

// Trials

async function next() {
  show("Loading the next pictures…");
  let trial;
  try {
    trial = await call("next", code);
  } catch (error) { return trouble(error, next); }
  if (trial.finished) return finish(trial.summary);
  if (trial.break_before && rested !== trial.index) return rest(trial);
  if (!trial.training && asked && asked !== trial.criterion) {
    asked = trial.criterion;
    show(
      "A new question", ...text("From here on the question is:"), make("p", "question", trial.question),
      ...text(trial.meaning), row(button("Continue", next, "primary")),
    );
    return;
  }
  asked = trial.criterion;
  try {
    await look(trial);
  } catch (error) { trouble(error, next); }
}

function rest(trial) {
  rested = trial.index;
  call("break", code, session).catch(() => {}); // a note for the log; the break is taken anyway
  show(
    "Half way", ...text("Half of the trials are done. Rest your eyes as long as you like."),
    row(button("Continue", next, "primary"), button("Stop for now", stop)),
  );
}

// The stage is made once: the viewer keeps its zoom instrument, trials change what is in it.
const form = make("form", "trial");
const place = make("div", "stage-place");
place.append(make("div", "viewer"));
const top_ = make("div", "top");
const count = make("span", "count");
const bar = make("progress", "", "", { "aria-label": "Progress" });
top_.append(count, bar);
const meaning = make("p", "meaning");
const answers = make("div", "answers", "", { role: "group", "aria-label": "Other answers" });
const confirmButton = make("button", "primary confirm", "Confirm", { type: "submit" });
const hint = make("p", "hint", "", { role: "status" });
const next_ = make("p", "next", "", { role: "status" });
const leave = row(button("Stop for now", stop, "quiet"), button("Withdraw", withdrawal, "quiet"));
form.append(top_, meaning, place, answers, hint, leave);
form.addEventListener("submit", (event) => { event.preventDefault(); confirm(); });

let trial = null; // under way: {screen, radios, eventId, visible, last, zoomed, zoomMax, flags, sending}
let clock = 0;
let watchValue = () => {};
const viewing = {
  value: null,
  caption(node, index) {
    const label = trial?.labels[index];
    if (label && node.firstChild !== label) node.replaceChildren(label);
  },
};
openViewer(place, viewing, (name, changed) => { watchValue = changed; });
const viewerRoot = place.querySelector(".viewer");
viewerRoot.addEventListener("loaded", (event) => {
  if (!trial || event.detail.key !== trial.key) return;
  if (event.detail.failed) return missing();
  place.classList.remove("waiting");
  trial.last = performance.now();
  trial.ready = true;
  toTop(); // the page is as long as its pictures only now
  reflect();
});
viewerRoot.addEventListener("viewchange", (event) => {
  if (trial) trial.zoomMax = Math.max(trial.zoomMax, event.detail.shown);
});

function choice(value, title, key) {
  const label = make("label", "choice");
  const radio = make("input", "", "", { type: "radio", name: "answer", value: String(value) });
  label.append(radio, make("b", "", title));
  if (key) label.append(make("kbd", "", key, { "aria-hidden": "true" }));
  radio.addEventListener("change", reflect);
  return label;
}

async function look(screen_) {
  const files = await call("pictures", code);
  const wanted = [screen_.input, ...screen_.panels];
  // Another tab has answered meanwhile: the server knows what comes next.
  if (!wanted.every((name) => files[name])) return next();
  release();
  const urls = await Promise.all(wanted.map(async (name) => {
    const bytes = await (await fetch("data:image/png;base64," + files[name])).blob();
    return URL.createObjectURL(bytes);
  }));
  const size = await createImageBitmap(await (await fetch(urls[0])).blob());
  const pairs = screen_.mode === "pairwise";
  const input = make("div", "input-name");
  input.append(make("b", "", "Input"));
  const labels = [input, ...screen_.panels.map(
    (_, index) => choice(index, pairs ? ["A, left", "B, right"][index] : LETTERS[index], String(index + 1)),
  )];
  const others = pairs
    ? [choice("tie", "No difference", "T"), choice("skip", "I cannot see both pictures", "")]
    : [choice("skip", "I cannot decide", "")];
  answers.replaceChildren(...others, next_, confirmButton);
  trial = {
    screen: screen_, labels, key: screen_.panels[0], eventId: hex(16), visible: 0, last: 0, urls,
    zoomMax: 1, hidden: false, ready: false, sending: false,
    radios: [...labels.slice(1), ...others].map((label) => label.querySelector("input")),
  };
  show(screen_.question, form);
  form.prepend(top_);
  count.textContent = (screen_.training ? "Training, trial " : "Trial ") + (screen_.index + 1) + " of " + screen_.total;
  bar.max = screen_.total;
  bar.value = screen_.index;
  meaning.textContent = screen_.meaning;
  const overtime = (Date.now() - began) / 60000 > about.minutes;
  hint.textContent = overtime
    ? "You have been here for more than " + about.minutes + " minutes. You may stop and go on another day." : "";
  place.classList.add("waiting");
  const columns = window.innerWidth <= 640 ? 2 : wanted.length === 4 ? 2 : wanted.length === 3 ? 3
    : wanted.length <= 6 ? 3 : 4;
  viewerRoot.style.setProperty("--tallest", wanted.length <= columns ? "52vh" : "31vh");
  viewing.value = {
    key: trial.key, title: "", width: size.width, height: size.height, modes: ["grid"], start: "actual",
    linked: false, exported: false, boxed: false, zooms: ZOOMS, columns,
    pictures: wanted.map((name, index) => ({
      file: { url: urls[index] }, name: index ? LETTERS[index - 1] : "Input", role: index ? "sr" : "lq",
      alt: index ? "Restoration " + LETTERS[index - 1] : "Input, its pixels enlarged",
      note: "", pending: false, metrics: [], facts: [],
    })),
  };
  size.close();
  watchValue();
  clock = setInterval(tick, TICK);
  reflect();
}

function release() {
  for (const url of trial?.urls || []) URL.revokeObjectURL(url);
  trial = null;
}

// Time counts only while the pictures can be seen.
const seen = () => document.visibilityState === "visible" && Boolean(root.offsetParent);
function tick() {
  if (!trial?.ready) return;
  const now = performance.now();
  if (seen()) trial.visible += now - trial.last; else trial.hidden = true;
  trial.last = now;
  reflect();
}
document.addEventListener("visibilitychange", tick);
function stopClock() { clearInterval(clock); clock = 0; }

const chosen = () => trial?.radios.find((radio) => radio.checked);
const early = () => trial.screen.min_view_ms - trial.visible;

function reflect() {
  if (!trial) return;
  const waits = Math.max(0, Math.ceil(early() / 1000));
  const words = trial.sending ? "Saving…" : waits ? "Confirm (" + waits + " s)" : "Confirm";
  if (confirmButton.textContent !== words) confirmButton.textContent = words;
  confirmButton.disabled = trial.sending || !trial.ready || waits > 0 || !chosen();
  const what = chosen() ? "Chosen: " + chosen().labels[0].querySelector("b").textContent + "."
    : trial.screen.mode === "pairwise" ? "Choose A or B." : "Choose a picture.";
  if (next_.textContent !== what) next_.textContent = what;
  for (const radio of trial.radios) {
    radio.disabled = trial.sending || !trial.ready;
    radio.closest("label").classList.toggle("chosen", radio.checked);
    radio.closest("figure")?.classList.toggle("chosen", radio.checked);
  }
}

function choose(radio) {
  if (!radio || radio.disabled) return;
  radio.checked = true;
  radio.focus({ preventScroll: true });
  reflect();
}

// A picture that is clicked or tapped, and not dragged, is chosen.
let pressed = null;
place.addEventListener("pointerdown", (event) => {
  pressed = event.isPrimary && event.button === 0 && event.target.closest("canvas")
    ? [event.target, event.clientX, event.clientY] : null;
}, true);
place.addEventListener("pointermove", (event) => {
  if (pressed && Math.hypot(event.clientX - pressed[1], event.clientY - pressed[2]) > CLICK_PX) pressed = null;
}, true);
place.addEventListener("pointerup", (event) => {
  const figure = pressed && event.isPrimary ? pressed[0].closest("figure") : null;
  pressed = null;
  const radio = figure?.querySelector("input[type=radio]"); // the input has none
  if (trial && !trial.sending) choose(radio);
}, true);
place.addEventListener("pointercancel", () => { pressed = null; }, true);

document.addEventListener("keydown", (event) => {
  if (!trial || trial.sending || !form.isConnected || !root.offsetParent) return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const active = document.activeElement;
  if (active !== document.body && !root.contains(active)) return;
  const onRadio = active?.type === "radio";
  const panels = trial.radios.slice(0, trial.screen.panels.length);
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (/^[1-9]$/.test(event.key) && panels[event.key - 1]) choose(panels[event.key - 1]);
  else if (event.key.toLowerCase() === "t" && trial.screen.mode === "pairwise") {
    choose(trial.radios.find((radio) => radio.value === "tie"));
  } else if (step && trial.screen.mode === "pairwise") {
    choose(panels[step > 0 ? 1 : 0]);
  } else if (step && !onRadio) {
    const now = panels.findIndex((radio) => radio.checked);
    choose(panels[now < 0 ? (step > 0 ? 0 : panels.length - 1) : (now + step + panels.length) % panels.length]);
  } else if (event.key === "Enter" && (active === document.body || active.tagName === "H2" || onRadio)) {
    confirm();
  } else return;
  event.preventDefault();
});

function missing() {
  show(
    "A picture could not be shown", ...text("Try again; if it happens once more, leave this trial out."),
    row(
      button("Try again", next, "primary"),
      button("Leave it out", () => { trial.ready = true; send("skip"); }),
    ),
  );
}

function confirm() {
  const radio = chosen();
  if (!radio || trial.sending || !trial.ready) return;
  if (early() > 0) {
    hint.textContent = "A little longer: the answer can be confirmed in " + Math.ceil(early() / 1000) + " s.";
    return;
  }
  send(/^\d+$/.test(radio.value) ? Number(radio.value) : radio.value);
}

// Sends one vote until the server has it. The same event id makes a retry harmless.
async function send(position) {
  trial.sending = true;
  stopClock();
  reflect();
  const { screen: screen_, eventId } = trial;
  const answer = {
    position, response_ms: Math.round(trial.visible),
    zoomed: screen_.panels.map(() => trial.zoomMax > 1), zoom_max: trial.zoomMax,
    viewport_w: window.innerWidth, viewport_h: window.innerHeight, dpr: window.devicePixelRatio,
    flags: trial.hidden ? ["hidden_tab"] : [],
  };
  for (let attempt = 0; ; attempt += 1) {
    try {
      const receipt = await call("vote", code, screen_.token, answer, eventId, session);
      return stored(receipt, screen_, position);
    } catch (error) {
      if (error instanceof Told) {
        release();
        return trouble(error, next);
      }
      saved.textContent = "Not saved yet. Trying again…";
      await pause(RETRIES[Math.min(attempt, RETRIES.length - 1)]);
    }
  }
}

// Reached only when the server has answered, which it does after its commit.
function stored(receipt, screen_, position) {
  lastHash = receipt.row_hash;
  const first = receipt.outcome === "duplicate" && receipt.position !== position
    ? " This trial had been answered in another tab; the first answer counts." : "";
  saved.textContent = "Saved at " + new Date().toLocaleTimeString() + "." + first;
  lookAfter();
  release();
  if (!screen_.training) return next();
  show(
    receipt.correct ? "Right" : "Not quite",
    ...text(receipt.correct
      ? "That one is the undamaged original."
      : "Another one is the undamaged original. Compare fine detail with the input at 200 %."),
    row(button("Continue", next, "primary")),
  );
}

// Leaving

function stop() {
  release();
  show(
    "Stopped for now",
    ...text(
      "What you have answered is saved. This browser remembers you. To go on elsewhere, keep this address for yourself:",
    ),
    make("p", "code", link()),
    row(button("Continue", roomEnough, "primary"), button("Withdraw", withdrawal)),
  );
}

function withdrawal() {
  release();
  show(
    "Withdraw?",
    ...text("All your answers will be erased, here and in every copy. This cannot be undone."),
    row(
      button("Erase my answers", async () => {
        try {
          await call("withdraw", code);
        } catch (error) { return trouble(error, withdrawal); }
        forget();
        code = lastHash = saved.textContent = "";
        show("Erased", ...text("Your answers have been erased. Thank you for your time."));
      }, "danger"),
      button("Keep them", start),
    ),
  );
}

function finish(summary) {
  const table = make("table");
  const pairs = about.mode === "pairwise";
  table.append(make("caption", "", pairs ? "What you preferred, in main trials" : "What you picked, in main trials"));
  const head = make("tr");
  for (const title of ["Method", pairs ? "Preferred" : "Picked"]) head.append(make("th", "", title, { scope: "col" }));
  table.append(head);
  for (const { method, times } of summary.picks) {
    const line = make("tr");
    line.append(make("th", "", method, { scope: "row" }), make("td", "", times + " ×"));
    table.append(line);
  }
  const facts = make("dl", "facts-list");
  const entries = [];
  if (summary.repeated) entries.push(["Repeated trials answered alike", summary.agreeing + " of " + summary.repeated]);
  if (summary.golden) entries.push(["Trials with a known answer got right", summary.golden_passed + " of " + summary.golden]);
  entries.push(["Study", about.study_hash]);
  if (lastHash) entries.push(["Your last vote in the audit chain", lastHash]);
  entries.push(["Your code", code], ["Your address", link()]);
  for (const [name, value] of entries) {
    const entry = make("div");
    entry.append(make("dt", "", name), make("dd", "", value));
    facts.append(entry);
  }
  show(
    "Thank you", ...text("All trials are done and saved. This is your own result; the study's comes when it is closed."),
    table, make("h3", "", "Receipt"), ...text("Keep your code: with it your answers can be erased at any time."), facts,
    row(
      button("Save receipt", () => receiptFile(summary), "primary"), button("Withdraw", withdrawal),
    ),
  );
}

function receiptFile(summary) {
  const content = JSON.stringify({
    study_hash: about.study_hash, code, address: link(), last_row_hash: lastHash, ...summary,
  }, null, 1);
  const url = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  make("a", "", "", { href: url, download: "study-receipt.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

start();
