// The live parts of the page: the chart, the position that is shown, and the dot. All else works without this file.
// start.js loads it after htmx and uPlot, and after the first paint.
"use strict";

const API = "/api/v1";
const LOOK_AGAIN_MS = 10000;
const GO_AGAIN_MS = 150;
const TAIL_ROWS_MAX = 500;
const state = { at: null, ids: [], chart: null };

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// The position.

function positionInAddress() {
  const at = new URL(location.href).searchParams.get("at");
  return at ? Number(at) : null;
}

function readPosition() {
  const nav = document.getElementById("position");
  if (!nav) return;
  state.at = nav.dataset.at === "" ? null : Number(nav.dataset.at);
  for (const field of document.querySelectorAll("input.at")) field.value = nav.dataset.at;
  const form = document.getElementById("context-form");
  if (form) {
    form.setAttribute("hx-post", state.at === null ? "/context" : `/context?at=${state.at}`);
    htmx.process(form);
  }
  if (state.chart) state.chart.redraw(false);
}

// The first of several in a row is asked for at once, then only the last: a key that is held must not start a replay
// for each point that it passes.
let wentMs = -Infinity;
let later = 0;

function go(at) {
  state.at = at;
  if (state.chart) state.chart.redraw(false);
  clearTimeout(later);
  const wait = wentMs + GO_AGAIN_MS - performance.now();
  wentMs = performance.now();
  if (wait <= 0) show(at);
  else later = setTimeout(show, GO_AGAIN_MS, at);
}

function show(at) {
  const query = at === null ? "" : `?at=${at}`;
  history.pushState({}, "", `/${query}`);
  htmx.trigger("#mind", "htmx:abort");
  // A replay that nobody waits for any more would only slow down the next one.
  const left = document.querySelector("#mind > .waiting form");
  if (left) fetch(left.action, { method: "POST", credentials: "same-origin" });
  // Its promise is also rejected when a newer position takes its place.
  htmx.ajax("GET", `/mind${query}`, { source: "#mind", target: "#mind", swap: "innerHTML" }).catch(() => {});
}

// An answer for a position that was left meanwhile is late.
document.addEventListener("htmx:beforeSwap", (event) => {
  const asked = new URL(event.detail.pathInfo.requestPath, location.origin);
  if (asked.pathname !== "/mind") return;
  const at = asked.searchParams.get("at");
  if ((at === null ? null : Number(at)) !== state.at) event.detail.shouldSwap = false;
});

function nextPoint(step) {
  const ids = state.ids;
  if (!ids.length) return;
  const here = state.at === null ? Infinity : state.at;
  const found = step > 0 ? ids.find((id) => id > here) : ids.findLast((id) => id < here);
  if (found !== undefined) go(found);
  else if (step > 0 && state.at !== null) go(null);
}

function nextEvent(step) {
  const nav = document.getElementById("position");
  // Events have come since the page was made.
  if (step < 0 && state.at === null && Number(seen) > 1) return go(Number(seen) - 1);
  const id = nav && (step > 0 ? nav.dataset.after : nav.dataset.before);
  if (id) go(Number(id));
  else if (step > 0 && state.at !== null) go(null);
}

document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.closest("input, textarea, select")) return;
  event.preventDefault();
  if (event.shiftKey) nextEvent(step);
  else nextPoint(step);
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a.go");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || !document.getElementById("position")) return;
  event.preventDefault();
  go(link.dataset.go === "" ? null : Number(link.dataset.go));
});

// Not after a jump within the page.
window.addEventListener("popstate", () => {
  if (positionInAddress() !== state.at) location.reload();
});
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.target.id === "mind") readPosition();
  if (event.target.id === "why") document.getElementById("why-title")?.focus({ preventScroll: true });
});

// The events behind a value: the keyboard goes there, and back.

let asker = null;
document.addEventListener("click", (event) => {
  const ask = event.target.closest("a.why");
  if (ask) asker = ask;
  if (!event.target.closest("button.close")) return;
  document.getElementById("why").replaceChildren();
  if (asker && asker.isConnected) asker.focus();
});

// The chart.

const marks = {
  hooks: {
    drawClear: [
      (chart) => {
        const { ctx, bbox } = chart;
        ctx.save();
        for (const [first, last, stage] of state.bands) {
          const left = Math.max(chart.valToPos(first, "x", true), bbox.left);
          const right = Math.min(chart.valToPos(last, "x", true), bbox.left + bbox.width);
          ctx.fillStyle = colour(`--${stage.toLowerCase()}`) || colour("--s0");
          if (right > left) ctx.fillRect(left, bbox.top, right - left, bbox.height);
          if (right - left > 30) {
            ctx.fillStyle = colour("--quiet");
            ctx.fillText(stage, left + 6, bbox.top + 14);
          }
        }
        ctx.restore();
      },
    ],
    draw: [
      (chart) => {
        for (const [id] of state.names) upright(chart, id, 1, 8, colour("--ink"));
        if (state.at !== null) upright(chart, state.at, 2, chart.bbox.height, colour("--bad"));
      },
    ],
  },
};

// A line from the bottom up.
function upright(chart, id, width, height, fill) {
  const { ctx, bbox } = chart;
  const x = chart.valToPos(id, "x", true);
  if (x < bbox.left || x > bbox.left + bbox.width) return;
  ctx.save();
  ctx.fillStyle = fill;
  ctx.fillRect(x - width / 2, bbox.top + bbox.height - height, width, height);
  ctx.restore();
}

function options(width) {
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  const steps = uPlot.paths.stepped({ align: 1 });
  const line = (label, name, dash) => ({
    label, stroke: colour(name), width: 1.5, dash, paths: steps, points: { show: false },
    value: (_, value) => (value === null ? "–" : value.toFixed(3)),
  });
  return {
    width, height: 240, padding: [null, 28, null, null], plugins: [marks], cursor: { drag: { x: true, y: false }, y: false },
    scales: { x: { time: false }, y: { range: [0, 1.02] } },
    axes: [{ ...axis, space: 90, size: 32, values: (_, all) => all.map((id) => (Number.isInteger(id) ? id.toLocaleString("en") : "")) }, { ...axis, size: 44 }],
    series: [{ label: "event", value: (_, id) => (id === null ? "–" : id.toLocaleString("en")) },
      line("IAS", "--ias"), line("GAS", "--gas", [6, 3])],
  };
}

async function draw() {
  const box = document.getElementById("chart");
  if (!box) return;
  const answer = await fetch(`${API}/chart`, { credentials: "same-origin" });
  if (answer.status !== 200) return;
  const found = await answer.json();
  if (!found) return;
  Object.assign(state, { ids: [...new Set(found.ids)], bands: found.stages, names: found.names });
  const data = [found.ids, found.ias, found.gas];
  if (state.chart) {
    state.chart.setData(data);
    return;
  }
  box.replaceChildren();
  state.chart = new uPlot(options(box.clientWidth), data, box);
  // A click, and not the end of a drag, which zooms.
  let downX = null;
  state.chart.over.addEventListener("mousedown", (event) => { downX = event.clientX; });
  state.chart.over.addEventListener("mouseup", (event) => {
    if (downX === null || Math.abs(event.clientX - downX) > 3) return;
    const left = event.clientX - state.chart.over.getBoundingClientRect().left;
    go(Math.max(0, Math.round(state.chart.posToVal(left, "x"))));
  });
  new ResizeObserver(() => state.chart.setSize({ width: box.clientWidth, height: 240 })).observe(box);
}

function redrawInNewColours() {
  if (!state.chart) return;
  state.chart.destroy();
  state.chart = null;
  draw();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawInNewColours);

// Failures: an answer that is no success is not put into the page.

function notice(text) {
  const box = document.getElementById("notice");
  if (!box) return;
  box.replaceChildren();
  if (!text) return;
  const line = document.createElement("p");
  line.className = "note bad";
  line.textContent = text;
  box.append(line);
}

document.addEventListener("htmx:sendError", () => notice("The server does not answer."));
document.addEventListener("htmx:responseError", (event) => {
  const { status, responseText } = event.detail.xhr;
  notice(`The server has refused: ${responseText.slice(0, 300) || status}`);
});
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.shouldSwap && event.detail.target.id !== "notice") notice("");
});

// The dot.

let source = null;
let seen = null;
let isOn = false;
let beats = 0;
// What follows the log: at once, then after each `ms` at most, and always once more after the last append. The `throttle`
// of htmx would drop that one.
const tellings = [
  { name: "appended", ms: 500, toldMs: -Infinity, timer: 0 },
  { name: "settled", ms: 3000, toldMs: -Infinity, timer: 0 },
];

function tell() {
  for (const one of tellings) {
    if (one.timer) continue;
    const wait = Math.max(0, one.toldMs + one.ms - performance.now());
    one.timer = setTimeout(() => {
      one.timer = 0;
      one.toldMs = performance.now();
      document.body.dispatchEvent(new CustomEvent(one.name));
    }, wait);
  }
}

function setDot(isBeat) {
  const dot = document.getElementById("dot");
  if (!dot) return;
  dot.classList.toggle("on", isOn);
  dot.setAttribute("aria-label", isOn ? "connected" : "not connected");
  if (isBeat) beats += 1;
  // The header is replaced after an append, and the dot with it.
  dot.dataset.beats = String(beats);
  if (!isBeat) return;
  dot.classList.remove("beat");
  void dot.offsetWidth;
  dot.classList.add("beat");
}

function listen() {
  if (source || document.hidden) return;
  source = new EventSource(`${API}/live`);
  source.onopen = () => { isOn = true; setDot(false); };
  source.onerror = () => { isOn = false; setDot(false); };
  source.addEventListener("head", (event) => {
    const isNew = seen !== null && event.data !== seen;
    seen = event.data;
    isOn = true;
    setDot(isNew);
    if (!isNew) return;
    tell();
  });
}

function stopListening() {
  if (source) source.close();
  source = null;
}

document.addEventListener("visibilitychange", () => (document.hidden ? stopListening() : listen()));
window.addEventListener("pagehide", stopListening);
document.addEventListener("htmx:afterSwap", () => setDot(false));
document.body.addEventListener("settled", draw);
document.addEventListener("htmx:afterSettle", () => {
  const mark = document.querySelector("#stream .mark");
  const shown = [mark && mark.dataset.after, document.querySelector("#header[hx-get] #as-of")?.textContent.replaceAll(",", "")];
  // An append came while these were made; their elements are new, and have not heard of it.
  if (shown.some((id) => id && Number(id) < Number(seen))) tell();
  // A page that is open for days begins its list anew, unless somebody reads in it.
  const isLong = document.querySelectorAll("#stream .event").length > TAIL_ROWS_MAX;
  if (mark && isLong && !document.querySelector("#stream details[open]")) htmx.ajax("GET", mark.dataset.list, "#stream");
});
// A daemon may end, or come, without an append.
setInterval(() => document.hidden || document.body.dispatchEvent(new CustomEvent("looked")), LOOK_AGAIN_MS);

// The page was there before this file.
state.at = positionInAddress();
readPosition();
draw();
listen();
for (const event of document.querySelectorAll("details.event[open]")) htmx.trigger(event, "toggle");
document.documentElement.classList.add("scripted");
