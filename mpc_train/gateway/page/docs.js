"use strict";
// Texts of others are only ever set as text, never as HTML. The token stays in the page's field.

const get = (id) => document.getElementById(id);

function row(...cells) {
  const tr = document.createElement("tr");
  for (const [text, kind] of cells) {
    const td = document.createElement("td"), inner = kind ? document.createElement(kind) : td;
    inner.textContent = text;
    if (kind) td.append(inner);
    tr.append(td);
  }
  return tr;
}

function tell(text, failed = false) {
  get("status").textContent = text;
  get("status").className = failed ? "failed" : "";
}

async function call(path, body) {
  const headers = { Authorization: `Bearer ${get("token").value.trim()}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body, cache: "no-store" });
  const found = await answer.json();
  if (!answer.ok) throw new Error(`${answer.status}: ${found.error}`);
  return found;
}

// One thing at a time, with its error beside it.
async function doing(button, work) {
  button.disabled = true;
  tell("…");
  try {
    tell(await work());
  } catch (error) {
    tell(error instanceof TypeError ? "the gateway does not answer" : error.message, true);
  } finally {
    button.disabled = false;
  }
}

function example(column) {
  if (column.kind === "boolean") return false;
  if (column.kind === "category") return column.levels[0];
  if (column.kind === "date") return column.dates ? column.dates[0] : "2001-12-31";
  if (column.kind === "array") return column.shape.reduceRight((inner, length) => Array(length).fill(inner), 0);
  return column.range ? (column.range[0] + column.range[1]) / 2 : 0;
}

const path = (name) => `/v1/models/${encodeURIComponent(name)}`;

async function choose() {
  const found = await call(path(get("model").value));
  const rounded = found.decimals === null ? "" : `, ${found.decimals} decimals`;
  get("about").textContent = `Version ${found.version}: ${found.kind} model of ${found.label}; it answers with the ${found.answer}${rounded}; ${found.rows_a_day} rows a day.`;
  const instance = Object.fromEntries(found.columns.map((column) => [column.name, example(column)]));
  get("body").value = JSON.stringify({ instances: [instance] }, null, 2);
  get("asking").hidden = false;
  return "";
}

get("look").addEventListener("click", () => doing(get("look"), async () => {
  const { models } = await call("/v1/models");
  get("model").replaceChildren(...models.map((name) => new Option(name, name)));
  get("choice").hidden = models.length === 0;
  return models.length ? choose() : "No model may be asked by this client.";
}));
get("model").addEventListener("change", () => doing(get("look"), choose));
get("ask").addEventListener("click", () => doing(get("ask"), async () => {
  const began = performance.now();
  get("answer").hidden = true;
  const found = await call(`${path(get("model").value)}:predict`, get("body").value);
  get("answer").textContent = JSON.stringify(found, null, 2);
  get("answer").hidden = false;
  return `Answered in ${Math.round(performance.now() - began)} ms.`;
}));

async function describe() {
  const { paths } = await (await fetch("/openapi.json")).json();
  const statuses = {};
  get("paths").replaceChildren(...Object.entries(paths).flatMap(([place, methods]) =>
    Object.entries(methods).map(([method, said]) => {
      for (const [status, what] of Object.entries(said.responses)) if (status >= "400") statuses[status] = what.description;
      return row([method.toUpperCase()], [place, "code"], [said.summary]);
    })));
  get("errors").replaceChildren(...Object.entries(statuses).sort().map(([status, what]) => row([status], [what])));
}

describe();
