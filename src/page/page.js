"use strict";

// What is known; `calls` are those that have ended, by id, the oldest first.
const known = { overview: null, running: [], calls: new Map(), next: 0, records: true };
const CALLS_MAX = 2000;
const ROWS_MAX = 300;
const PAUSE_MS = 1000;
// The share of a call's time from which on a step stands out.
const SLOW = 0.25;
const LOOKS = /^(List|Stream|Version$|RuntimeConfig$|GetContainerEvents$)|(Status|Stats|Info)$/;
const filter = { text: "", errors: false, looks: false };
const specs = new Map();

// An element. Texts become text, never markup.
function h(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === false || value === undefined || value === "") continue;
    if (typeof value === "function") element.addEventListener(key, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}

function time(us) {
  if (us === undefined || us === null) return "";
  if (us < 1000) return `${us} µs`;
  if (us < 1e6) return `${(us / 1e3).toFixed(1)} ms`;
  if (us < 1e8) return `${(us / 1e6).toFixed(2)} s`;
  return `${(us / 1e6).toFixed(0)} s`;
}

function age(us) {
  const s = Math.floor(us / 1e6);
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172800) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

function clock(us) {
  const at = new Date(us / 1000);
  const two = (number) => String(number).padStart(2, "0");
  const ms = String(at.getMilliseconds()).padStart(3, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}.${ms}`;
}

const short = (id) => id.slice(0, 13);
// Ids and digests in a text, cut to their beginnings as crictl does.
const brief = (text) => text.replace(/[0-9a-f]{40,}/g, short);
const endOf = (call) => Math.max(call.us || 0, 1, ...(call.steps || []).map((s) => s.at_us + (s.us || 0)));
const hasFailed = (call) => Boolean(call.code) && call.code !== "OK";

function about(call) {
  const parts = [call.pod, call.container].filter(Boolean);
  return parts.length ? parts.join(" ") : brief(call.object || "");
}

function table(caption, heads, rows, nothing, kind) {
  if (!rows.length) return [h("h2", {}, caption), h("p", { class: "note" }, nothing)];
  const head = heads.map(([text, kind]) => h("th", { scope: "col", class: kind }, text));
  return [
    h("div", { class: "scroll" },
      h("table", { class: kind }, h("caption", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows))),
  ];
}

// The views, each from what is known.

function podsView() {
  const { pods, containers } = known.overview;
  const rows = [];
  for (const pod of pods) {
    rows.push(h("tr", {},
      h("th", { scope: "row" }, pod.name),
      h("td", { class: "mono" }, h("a", { href: `#spec=${pod.id}`, id: `p${pod.id}` }, short(pod.id))),
      h("td", { class: pod.state === "READY" ? "good" : "bad" }, pod.state),
      h("td", { class: "number" }, age(pod.age_us)),
      h("td", {}, `${pod.running} of ${pod.containers} running`),
      h("td", { class: "mono" }, pod.addresses.join(" "))));
    for (const it of containers.filter((container) => container.pod_id === pod.id)) {
      const state = it.state === "RUNNING" ? "good" : it.state === "EXITED" ? "" : "faint";
      rows.push(h("tr", { class: "part" },
        h("th", { scope: "row" }, it.name),
        h("td", { class: "mono" }, h("a", { href: `#spec=${it.id}`, id: `c${it.id}` }, short(it.id))),
        h("td", { class: it.end && !it.end.startsWith("0 ") ? "bad" : state }, it.state),
        h("td", { class: "number" }, age(it.age_us)),
        h("td", {}, it.end || (it.pid ? `pid ${it.pid}` : "")),
        h("td", {}, it.attempt ? `attempt ${it.attempt}` : "")));
    }
  }
  const heads = [["Name"], ["Id: its spec"], ["State"], ["For", "number"], ["Containers, process, end"], ["Address"]];
  return [
    ...runningView(),
    ...table("Pods and their containers", heads, rows, "There are none."),
  ];
}

function runningView() {
  const calls = known.overview.calls;
  if (!calls) return [];
  const rows = calls.map((call) => h("tr", {},
    h("th", { scope: "row" }, h("a", { href: `#call=${call.id}`, id: `r${call.id}` }, call.method)),
    h("td", {}, brief(call.object)),
    h("td", { class: "number" }, time(call.age_us)),
    h("td", { class: "text" }, call.stage ? `${call.stage}, ${time(call.stage_us)}` : ""),
    h("td", { class: "bad" }, call.is_client_gone ? "client gone" : "")));
  const heads = [["Call"], ["Object"], ["For", "number"], ["Waits for"], [""]];
  return table("Calls that run now", heads, rows, "None.");
}

function recent() {
  return [...known.calls.values()].reverse();
}

function callRows(calls) {
  const longest = Math.max(...calls.map((call) => call.us || 0), 1);
  return calls.map((call) => {
    const width = ((call.us || 0) / longest) * 100;
    return h("tr", {},
      h("td", { class: "mono" }, clock(call.at_us)),
      h("th", { scope: "row" }, h("a", { href: `#call=${call.id}`, id: `e${call.id}` }, call.method)),
      h("td", {}, about(call)),
      h("td", { class: "number" }, time(call.us)),
      h("td", { class: "lane", "aria-hidden": "true" },
        bar(0, width, hasFailed(call) ? "failed" : "")),
      h("td", { class: hasFailed(call) ? "bad" : "good" }, call.code));
  });
}

const CALL_HEADS = [["At"], ["Call"], ["Object"], ["Took", "number"], [""], ["Code"]];

function callsView() {
  const words = filter.text.toLowerCase();
  const all = recent().filter((call) =>
    (!filter.errors || hasFailed(call)) &&
    (filter.looks || hasFailed(call) || !LOOKS.test(call.method)) &&
    (!words || `${call.method} ${about(call)} ${call.id} ${call.error || ""}`.toLowerCase().includes(words)));
  const shown = all.slice(0, ROWS_MAX);
  const box = (key, text) => h("label", {},
    h("input", {
      type: "checkbox", id: `f-${key}`, checked: filter[key],
      change: (event) => { filter[key] = event.target.checked; render(); },
    }), ` ${text}`);
  return [
    h("form", { submit: (event) => event.preventDefault() },
      h("label", {}, "Find ",
        h("input", {
          type: "search", id: "f-text", value: filter.text,
          input: (event) => { filter.text = event.target.value; render(); },
        })),
      box("errors", "only errors"),
      box("looks", "with calls that only look")),
    ...runningView(),
    ...table("Calls that have ended, the last first", CALL_HEADS, callRows(shown), "None is in the record."),
    h("p", { class: "note" }, all.length > shown.length ? `${all.length - shown.length} older ones are not shown.` : ""),
  ];
}

function bar(left, width, kind) {
  const span = h("span", { class: kind });
  // Not an attribute: the page's policy refuses styles that are written into it.
  span.style.left = `${Math.min(left, 99.5)}%`;
  span.style.width = `${Math.max(width, 0.2)}%`;
  return span;
}

// One call as a waterfall.
function callView(id) {
  const call = known.calls.get(id) || known.running.find((one) => one.id === id) ||
    recent().find((one) => one.failure === id);
  if (!call) {
    return [h("h2", {}, `Call ${id}`), h("p", { class: "note" },
      known.next ? "It is not in the record (any more)." : "Loading.")];
  }
  const now = Date.now() * 1000 - call.at_us;
  const end = call.us === undefined ? Math.max(now, endOf(call)) : endOf(call);
  const steps = call.steps || [];
  const depth = (step) => (step.parent ? 1 + depth(steps[step.parent - 1]) : 0);
  const children = new Map();
  steps.forEach((step, place) => {
    const of = step.parent || 0;
    children.set(of, [...(children.get(of) || []), place + 1]);
  });
  const rows = [];
  const add = (place) => {
    const step = steps[place - 1];
    const took = step.us === undefined ? end - step.at_us : step.us;
    const isLeaf = !children.has(place);
    const kind = step.error ? "failed" : isLeaf && took >= end * SLOW ? "slow" : "";
    const notes = (step.notes || []).map(([name, text]) =>
      h("details", { id: `n${place}-${name}` }, h("summary", {}, name), h("pre", {}, text)));
    const label = brief(step.kind === "stage" ? step.name : `${step.kind} ${step.name}`);
    const name = h("th", { scope: "row" }, label);
    name.style.paddingLeft = `${depth(step) * 18}px`;
    rows.push(h("tr", {}, name,
      h("td", { class: "number" }, `+${time(step.at_us)}`),
      h("td", { class: "number" }, step.us === undefined ? "runs" : time(step.us)),
      h("td", { class: "lane", "aria-hidden": "true" },
        bar((step.at_us / end) * 100, (took / end) * 100, step.us === undefined ? `${kind} open` : kind)),
      h("td", { class: "text mono", title: step.args }, brief(step.args || ""),
        step.error ? h("div", { class: "bad" }, step.error) : null, notes)));
    (children.get(place) || []).forEach(add);
  };
  (children.get(0) || []).forEach(add);
  const facts = [
    ["Object", about(call)], ["Pod", call.pod_id], ["Container", call.container_id], ["At", clock(call.at_us)],
    ["Took", call.us === undefined ? `runs for ${time(end)}` : time(call.us)], ["Code", call.code], ["Error", call.error],
  ].filter(([, value]) => value);
  const value = (name, text) => {
    if (name === "Pod" || name === "Container") return h("a", { href: `#spec=${text}`, class: "mono" }, text);
    return h("span", { class: name === "Error" || (name === "Code" && text !== "OK") ? "bad" : "" }, text);
  };
  const heads = [["Step"], ["Began", "number"], ["Took", "number"], [`0 to ${time(end)}`], ["With"]];
  return [
    h("h2", {}, `${call.method} `, h("span", { class: "mono faint" }, call.id)),
    h("dl", {}, facts.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, value(name, text))])),
    ...table("What it caused", heads, rows, "Nothing that takes time.", "steps"),
    call.left_out ? h("p", { class: "note" }, `${call.left_out} more steps had no room in the record.`) : null,
    call.request ? h("details", { id: "request" }, h("summary", {}, "Request"), h("pre", {}, pretty(call.request))) : null,
  ];
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// Where the time goes, over all calls in the record.
function stagesView() {
  const found = new Map();
  for (const call of known.calls.values()) {
    for (const step of call.steps || []) {
      if (step.us === undefined) continue;
      // All layers are one row.
      const name = `${step.kind} ${step.name.replace(/(sha256:)?[0-9a-f]{40,}/g, "…")}`;
      const one = found.get(name) || { name, times: [], failed: 0, worst: null };
      one.times.push(step.us);
      if (step.error) one.failed += 1;
      if (!one.worst || step.us > one.worst.us) one.worst = { us: step.us, id: call.id };
      found.set(name, one);
    }
  }
  const at = (times, share) => times[Math.min(times.length - 1, Math.floor(times.length * share))];
  const all = [...found.values()].map((one) => {
    one.times.sort((a, b) => a - b);
    return { ...one, sum: one.times.reduce((a, b) => a + b, 0) };
  });
  all.sort((a, b) => at(b.times, 0.5) - at(a.times, 0.5));
  const rows = all.slice(0, ROWS_MAX).map((one) => h("tr", {},
    h("th", { scope: "row" }, one.name),
    h("td", { class: "number" }, String(one.times.length)),
    h("td", { class: "number" }, time(at(one.times, 0.5))),
    h("td", { class: "number" }, time(at(one.times, 0.95))),
    h("td", { class: "number" }, h("a", { href: `#call=${one.worst.id}`, id: `w${one.name}` }, time(one.worst.us))),
    h("td", { class: "number" }, time(one.sum)),
    h("td", { class: one.failed ? "number bad" : "number" }, String(one.failed))));
  const number = (text) => [text, "number"];
  const heads = [["Step"], number("Times"), number("Median"), number("95 %"), number("Longest: its call"), number("Together"), number("Failed")];
  return table("Where the time goes, the slowest first", heads, rows, "Nothing is in the record.");
}

function errorsView() {
  const failed = recent().filter(hasFailed).slice(0, ROWS_MAX);
  const rows = failed.map((call) => h("tr", {},
    h("td", { class: "mono" }, clock(call.at_us)),
    h("th", { scope: "row" }, h("a", { href: `#call=${call.id}`, id: `e${call.id}` }, call.method)),
    h("td", {}, about(call)),
    h("td", { class: "bad" }, call.code),
    h("td", { class: "text" }, call.error || "")));
  return table("Calls that failed, the last first", [["At"], ["Call"], ["Object"], ["Code"], ["Error"]], rows, "None in the record.");
}

// A spec, a row for each field, with where it comes from.
function specView(id) {
  const found = specs.get(id);
  if (!found) {
    loadSpec(id);
    return [h("h2", {}, `Spec of ${short(id)}`), h("p", { class: "note" }, "Loading.")];
  }
  if (found.error) return [h("h2", {}, `Spec of ${short(id)}`), h("p", { class: "bad" }, found.error)];
  const part = found.containers[0] || found.pod;
  const rows = [];
  const walk = (value, pointer, name, depth) => {
    const isOpen = value !== null && typeof value === "object" && Object.keys(value).length > 0;
    const label = h("th", { scope: "row", class: "mono" }, name);
    label.style.paddingLeft = `${depth * 16}px`;
    rows.push(h("tr", {}, label,
      h("td", { class: "text mono" }, isOpen ? "" : JSON.stringify(value)),
      h("td", { class: "text" }, origin(part.origins[pointer]))));
    if (!isOpen) return;
    for (const [key, inner] of Object.entries(value)) {
      const step = key.replaceAll("~", "~0").replaceAll("/", "~1");
      walk(inner, `${pointer}/${step}`, key, depth + 1);
    }
  };
  for (const [key, value] of Object.entries(part.spec)) walk(value, `/${key}`, key, 0);
  return [
    h("h2", {}, `Spec of ${part.name} `, h("span", { class: "mono faint" }, short(id))),
    h("p", { class: "note" }, "As longshore would make it now; values of environment variables are masked."),
    ...found.said.map((said) => h("p", { class: "note" }, said)),
    ...table("Fields", [["Field"], ["Value"], ["Comes from"]], rows, "The spec is empty.", "fields"),
  ];
}

function origin(sources) {
  if (!sources) return "";
  return sources.map((source) => (typeof source === "string"
    ? source
    : Object.entries(source).map(([kind, name]) => `${kind}: ${name}`).join(""))).join(" + ");
}

async function loadSpec(id) {
  if (specs.has(id)) return;
  // It is asked for once, until another view was looked at.
  specs.set(id, null);
  try {
    const answer = await fetch(`/v1/spec/${encodeURIComponent(id)}`);
    specs.set(id, answer.ok ? await answer.json() : { error: await answer.text() });
  } catch (error) {
    specs.set(id, { error: String(error) });
  }
  render();
}

// Which view the address asks for.
function view() {
  const [name, argument] = location.hash.slice(1).split("=");
  switch (name) {
    case "calls": return callsView();
    case "call": return callView(argument);
    case "stages": return stagesView();
    case "errors": return errorsView();
    case "spec": return specView(argument);
    default: return podsView();
  }
}

let last = null;

function render() {
  if (!known.overview) return;
  const main = document.getElementById("main");
  const parts = view();
  const fresh = h("div", {}, parts);
  // What has not changed stays, and with it what is selected or open.
  const text = fresh.textContent + location.hash;
  if (text !== last) {
    const open = [...main.querySelectorAll("details[open]")].map((one) => one.id);
    const focused = document.activeElement && main.contains(document.activeElement) ? document.activeElement : null;
    const place = focused && focused.id;
    const caret = focused && focused.type === "search" ? focused.selectionStart : null;
    main.replaceChildren(fresh);
    open.forEach((id) => { const one = document.getElementById(id); if (one) one.open = true; });
    const again = place && document.getElementById(place);
    if (again) {
      again.focus({ preventScroll: true });
      if (caret !== null) again.setSelectionRange(caret, caret);
    }
    last = text;
  }
  const current = location.hash.slice(1).split("=")[0] || "pods";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${current}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = current === "pods" ? "longshore" : `longshore: ${current}`;
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${(await answer.text()).trim()}`);
  return answer;
}

async function look() {
  known.overview = await (await ask("/v1/ps")).json();
  known.records = known.overview.calls !== null;
  if (!known.records) return;
  known.running = await (await ask("/v1/calls")).json();
  for (;;) {
    const answer = await ask(`/v1/trace?after=${known.next}`);
    const next = Number(answer.headers.get("x-longshore-next"));
    const lines = (await answer.text()).split("\n").filter(Boolean);
    for (const line of lines) {
      const call = JSON.parse(line);
      known.calls.set(call.id, call);
    }
    known.next = next;
    while (known.calls.size > CALLS_MAX) known.calls.delete(known.calls.keys().next().value);
    if (!lines.length) return;
  }
}

const state = document.getElementById("state");
const pause = document.getElementById("pause");

function say(text, isBad) {
  // Told once: a screen reader reads what changes.
  if (state.textContent !== text) state.textContent = text;
  state.className = isBad ? "bad" : "";
}

async function turn() {
  if (pause.getAttribute("aria-pressed") === "false") {
    try {
      await look();
      render();
      say(known.records ? "live" : "live; calls are not recorded ([trace] enabled is false)", false);
    } catch (error) {
      say(`no answer: ${error.message}`, true);
    }
  }
  setTimeout(turn, PAUSE_MS);
}

pause.addEventListener("click", () => {
  const isPaused = pause.getAttribute("aria-pressed") === "true";
  pause.setAttribute("aria-pressed", String(!isPaused));
  say(isPaused ? "live" : "paused", false);
});
addEventListener("hashchange", () => {
  if (location.hash === "#main") return;
  specs.clear();
  render();
  scrollTo(0, 0);
});
turn();
