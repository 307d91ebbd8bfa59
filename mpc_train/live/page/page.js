"use strict";
// Texts from peers are only ever set as text, never as HTML.

const get = (id) => document.getElementById(id);
const set = (id, text) => { if (get(id).textContent !== text) get(id).textContent = text; };
const PHASES = {
  gathering: "waiting for nodes", agreeing: "signing the job", running: "training",
  suspended: "broken off, waiting for all to come back", done: "finished", failed: "ended with an error",
};

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.round(seconds), h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
  if (h >= 48) return `${Math.floor(h / 24)} d ${h % 24} h`;
  return h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes, unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${value.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

function draw(svg, points, toX) {
  // In pixels of the screen, so that texts have their size at any width.
  const width = svg.clientWidth || 640;
  const [left, right, top, bottom] = [56, width - 8, 12, 172];
  svg.setAttribute("viewBox", `0 0 ${width} 200`);
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1e-9);
  const y0 = Math.min(0, ...ys), y1 = Math.max(...ys, y0 + 1e-9);
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (right - left);
  const py = (y) => bottom - ((y - y0) / (y1 - y0)) * (bottom - top);
  const make = (name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const label = (y) => (Math.abs(y) >= 100 || Number.isInteger(y) ? Math.round(y).toLocaleString("en") : y.toPrecision(3));
  const parts = [];
  for (const y of [y0, (y0 + y1) / 2, y1]) {
    parts.push(make("path", { class: "grid", d: `M${left} ${py(y)}H${right}` }));
    parts.push(make("text", { x: left - 8, y: py(y) + 4, "text-anchor": "end" }, label(y)));
  }
  parts.push(make("text", { x: left, y: 192 }, toX(x0)));
  parts.push(make("text", { x: right, y: 192, "text-anchor": "end" }, toX(x1)));
  parts.push(make("path", { d: points.map((p, i) => `${i ? "L" : "M"}${px(p[0]).toFixed(1)} ${py(p[1]).toFixed(1)}`).join("") }));
  svg.replaceChildren(...parts);
}

function cell(text, kind) {
  const td = document.createElement("td");
  td.textContent = text;
  if (kind) td.className = kind;
  return td;
}

function show(state) {
  document.title = `${state.job}: ${PHASES[state.phase] || state.phase}`;
  set("job", state.job);
  const service = state.service, running = service && state.phase === "running";
  const phase = running ? "serving" : PHASES[state.phase] || state.phase;
  set("phase", phase + (state.message ? `: ${state.message}` : ""));
  get("phase").className = state.phase;
  const share = state.phase === "done" ? 100 : state.steps ? (100 * state.step) / state.steps : 0;
  get("filled").style.setProperty("width", `${share}%`);
  get("bar").setAttribute("aria-valuenow", share.toFixed(0));
  set("step", state.steps ? `${state.step.toLocaleString("en")} of ${state.steps.toLocaleString("en")}` : "–");
  set("rate", state.rate ? state.rate.toPrecision(3) : "–");
  set("left", duration(state.left_s));
  set("elapsed", duration(state.seconds));
  set("sent", size(state.bytes_sent));
  set("rounds", state.rounds ? state.rounds.toLocaleString("en") : "–");
  for (const id of ["bar", "step-number", "rate-number", "left-number"]) get(id).hidden = !!service;
  get("service").hidden = !service;
  if (service) {
    const count = (value) => value.toLocaleString("en");
    const time = (value) => (value ? `${value.toPrecision(3)} ms` : "–");
    set("questions", count(service.questions));
    set("rows", count(service.rows));
    set("rows-rate", service.rate.toPrecision(3));
    set("refused", count(service.refused));
    set("waiting", count(service.waiting));
    set("median", time(service.median_ms));
    set("slow", time(service.slow_ms));
  }
  const over = service ? "Rows answered over time" : "Steps over time";
  set("progress-caption", over);
  get("progress").setAttribute("aria-label", over);
  set("digest", `Job ${state.digest}`);
  // Before anything is drawn: what is beside a chart decides how wide it is.
  get("losses-figure").hidden = state.losses.length < 2;
  if (state.progress.length > 1) draw(get("progress"), state.progress, duration);
  if (state.losses.length > 1) draw(get("losses"), state.losses, (x) => `step ${x.toLocaleString("en")}`);
  get("nodes").replaceChildren(...Object.entries(state.nodes).map(([name, node]) => {
    const row = document.createElement("tr");
    row.append(cell(name), cell(node.state, node.state), cell(node.phase),
      cell(node.step ? node.step.toLocaleString("en") : "–", "number"), cell(size(node.bytes_sent), "number"));
    return row;
  }));
  get("events").replaceChildren(...state.events.slice().reverse().map((event) => {
    const item = document.createElement("li"), when = document.createElement("time");
    when.textContent = duration(event.seconds);
    item.append(when, document.createTextNode(event.text));
    return item;
  }));
}

let last = null;
addEventListener("resize", () => { if (last) show(last); });

async function look() {
  let over = false;
  try {
    const state = await (await fetch("/state.json", { cache: "no-store" })).json();
    last = state;
    show(state);
    over = state.phase === "done" || state.phase === "failed";
  } catch {
    set("phase", "this run's process does not answer any more");
    get("phase").className = "away";
  }
  setTimeout(look, over ? 5000 : 1000);
}

look();
