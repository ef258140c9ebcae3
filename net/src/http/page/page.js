// Follows /api/stream and draws what it says. No part of it waits for another site.
"use strict";

const KEPT = 300; // states that the plots show, one a second
const SPAN_MIN = 60; // states that the plots have room for at first
const $ = (id) => document.getElementById(id);
const history = [];
let status = null;

// ---- small helpers ----------------------------------------------------------------------------------------------------

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "text") made.textContent = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const alike = (one, other) => one.nodeName === other.nodeName && JSON.stringify(one.dataset) === JSON.stringify(other.dataset);

// Gives a place the children that were made, by changing those it has: a button that somebody points at, or that has the focus, stays the one it is.
// Children with data attributes are known again by them, others by their kind and order.
function update(place, made) {
  made.forEach((wanted, index) => {
    const rest = [...place.childNodes].slice(index);
    const known = rest.find((child) => alike(child, wanted));
    if (!known) {
      place.insertBefore(wanted, rest[0] || null);
      return;
    }
    if (known !== rest[0]) place.insertBefore(known, rest[0]);
    if (known.isEqualNode(wanted)) return;
    if (known.nodeType === Node.TEXT_NODE) {
      known.data = wanted.data;
      return;
    }
    for (const { name } of [...known.attributes]) if (!wanted.hasAttribute(name)) known.removeAttribute(name);
    for (const { name, value } of wanted.attributes) if (name !== "style") known.setAttribute(name, value);
    known.style.cssText = wanted.style.cssText; // the policy of the page forbids the attribute
    update(known, [...wanted.childNodes]);
  });
  while (place.childNodes.length > made.length) place.lastChild.remove();
}

function button(text, action) {
  return element("button", { type: "button", "data-action": action, text });
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

const number = (value) => Math.round(value).toLocaleString("en");
const percent = (part) => `${Math.round(part * 100)} %`;
const width = (part) => `${(Math.min(1, Math.max(0, part)) * 100).toFixed(1)}%`;
const microseconds = (us) => us >= 1e6 ? `${+(us / 1e6).toFixed(2)} s` : us >= 1000 ? `${+(us / 1000).toFixed(us < 1e5 ? 2 : 0)} ms` : `${Math.round(us)} µs`;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// ---- theme ------------------------------------------------------------------------------------------------------------

function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  $("theme").setAttribute("aria-pressed", String(dark));
  if (status) draw();
}

const wanted = localStorage.getItem("theme");
const preference = matchMedia("(prefers-color-scheme: dark)");
setTheme(wanted ? wanted === "dark" : preference.matches);
preference.addEventListener("change", (event) => { if (!localStorage.getItem("theme")) setTheme(event.matches); });
$("theme").addEventListener("click", () => {
  const dark = !document.documentElement.classList.contains("dark");
  localStorage.setItem("theme", dark ? "dark" : "light");
  setTheme(dark);
});

// ---- hosts ------------------------------------------------------------------------------------------------------------

function hostCard(host) {
  const title = element("h3", { text: `Host ${host.host}${host.host === status.host ? " (this one)" : ""}` });
  const owned = status.partitions.filter((partition) => partition.owner === host.host).map((partition) => partition.partition);
  const head = element("div", { class: "title" }, title);
  const card = element("li", { "data-host": host.host }, head,
    element("div", { class: "soft", text: `${host.resp}; partitions ${owned.join(", ") || "none"}` }));
  if (host.host === status.host && owned.length && status.hosts.length > 1) {
    head.append(button("Drain", "drain"));
  }
  if (!host.trend || !host.trend.windows) {
    const silence = host.trend ? "no window yet" : host.lapsed ? "lease lapsed" : "does not answer";
    card.append(element("p", { class: host.trend ? "soft" : "lost", text: silence }));
    return card;
  }
  host.trend.shards.forEach((shard, index) => {
    const fill = element("i", shard.raised ? { class: "raised" } : {});
    fill.style.width = width(shard.level);
    const expected = element("b", { title: `expected: ${percent(shard.expected)}` });
    expected.style.left = width(Math.min(0.99, shard.expected));
    const text = `shard ${index}: ${percent(shard.level)} of its limit, ${percent(shard.expected)} expected, overload probable by ${percent(shard.probability)}`;
    card.append(element("div", { class: "load" }, element("span", { text: `shard ${index}` }),
      element("div", { class: "bar", role: "img", "aria-label": text, title: text }, fill, expected), element("span", { text: percent(shard.level) })));
  });
  return card;
}

// ---- servers that are told --------------------------------------------------------------------------------------------

function sinkRow(sink) {
  const confirmed = sink.confirmed === null ? `no: ${sink.last_error || "not told yet"}` : "yes";
  return element("tr", { "data-sink": `${sink.sink} ${sink.target}` },
    ...[sink.sink, sink.target, sink.wanted].map((text) => element("td", { text })),
    element("td", { class: sink.confirmed === null ? "lost" : "", text: confirmed }),
    element("td", { text: sink.since ? timeOf(sink.since) : "-" }));
}

// ---- partitions -------------------------------------------------------------------------------------------------------

function stateOf(partition) {
  if (partition.diverged) return `diverged from host ${partition.diverged.host}`;
  if (partition.state === "Stable") return "stable";
  const [name, moving] = Object.entries(partition.state)[0];
  return `${name.toLowerCase()}: ${moving.source} to ${moving.destination}, attempt ${moving.attempt}`;
}

function partitionRow(partition) {
  const here = partition.here;
  const moving = status.moves.find((known) => known.partition === partition.partition && known.under_way);
  const actions = element("td", { class: "actions" });
  if (partition.owner === status.host && status.hosts.length > 1 && !moving) {
    actions.append(button("Move", "move"));
  }
  if (moving) {
    actions.append(button("Abort", "abort"));
    if (moving.progress.state === "Ready") {
      actions.append(" ", button("Switch", "switch"));
    }
  }
  const cells = [partition.partition, `${partition.slots[0]}-${partition.slots[1]}`, `host ${partition.owner}`, partition.epoch, stateOf(partition),
    here ? here.serving : "-", here ? bytes(here.table_bytes + here.memtable_bytes) : "-", here ? number(here.reads) : "-", here ? number(here.writes) : "-"];
  const row = element("tr", { "data-partition": partition.partition });
  cells.forEach((text, index) => row.append(element(index ? "td" : "th", index ? { text } : { text, scope: "row" })));
  row.append(actions);
  return row;
}

// Four rows: observed, predicted, held in the shadow, resident. Returns the same in words.
function drawStrip(canvas, segments) {
  const context = canvas.getContext("2d");
  canvas.width = Math.max(1, segments.length);
  canvas.height = 4;
  const [cool, hot, held, resident] = ["--cool", "--hot", "--good", "--read"].map(colour);
  const scale = (name) => Math.log1p(Math.max(1e-9, ...segments.map((segment) => segment[name])));
  const scales = { observed: scale("observed"), predicted: scale("predicted") };
  segments.forEach((segment, column) => {
    ["observed", "predicted"].forEach((name, row) => {
      context.globalAlpha = 1; context.fillStyle = cool; context.fillRect(column, row, 1, 1);
      context.globalAlpha = Math.log1p(segment[name]) / scales[name]; context.fillStyle = hot; context.fillRect(column, row, 1, 1);
    });
    context.globalAlpha = 1;
    context.fillStyle = segment.missing ? hot : segment.held ? held : cool; context.fillRect(column, 2, 1, 1);
    context.fillStyle = cool; context.fillRect(column, 3, 1, 1);
    context.globalAlpha = segment.resident; context.fillStyle = resident; context.fillRect(column, 3, 1, 1);
  });
  const share = (test) => percent(segments.filter(test).length / Math.max(1, segments.length));
  return `${number(segments.length)} segments; accessed in the last window ${share((segment) => segment.observed > 0)}, held in a shadow ` +
    `${share((segment) => segment.held)}, resident ${share((segment) => segment.resident > 0)}, missing ${share((segment) => segment.missing)}`;
}

async function strips() {
  const here = status.partitions.filter((partition) => partition.here && partition.here.serving !== "released").map((partition) => partition.partition);
  for (const old of [...$("strips").children]) if (!here.includes(Number(old.dataset.strip))) old.remove();
  for (const id of here) {
    const answer = await fetch(`api/partitions/${id}/segments`);
    if (!answer.ok) continue;
    let strip = document.querySelector(`[data-strip="${id}"]`);
    if (!strip) {
      const rows = element("ul", { "aria-hidden": "true" }, ...["observed", "predicted", "in shadow", "resident"].map((text) => element("li", { text })));
      strip = element("div", { class: "strip", "data-strip": id }, element("h3", { text: `Partition ${id}, segments in key order` }),
        element("p", { class: "soft" }), element("div", { class: "rows" }, rows, element("canvas", { role: "img" })));
      $("strips").append(strip);
    }
    const canvas = strip.querySelector("canvas");
    const words = drawStrip(canvas, await answer.json());
    canvas.setAttribute("aria-label", words);
    strip.querySelector("p").textContent = words;
  }
}

// ---- moves ------------------------------------------------------------------------------------------------------------

const SHADES = 8;

function moveCard(known) {
  const progress = known.progress;
  const by = known.automatic ? "controller" : "operator";
  const card = element("article", { class: "move", "data-move": known.partition },
    element("h3", { text: `Partition ${known.partition} to host ${known.destination} (${by}): ${progress.failed ? "ended" : progress.state}` }));
  if (progress.failed) {
    card.append(element("p", { class: "lost", text: progress.failed }));
    return card;
  }
  const fill = element("i");
  fill.style.width = width(progress.held / Math.max(1, progress.segments));
  card.append(element("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": progress.segments, "aria-valuenow": progress.held,
    "aria-label": `segments held by the shadow of partition ${known.partition}` }, fill),
  element("p", { class: "soft", text: `${progress.held} of ${progress.segments} segments held, ${bytes(progress.bytes_on_wire)} sent` }));
  if (known.done) {
    const done = known.done;
    const total = done.steps.reduce((sum, step) => sum + step.us, 0) || 1;
    const line = element("div", { class: "steps", role: "img", "aria-label": done.steps.map((step) => `${step.name} ${microseconds(step.us)}`).join(", ") });
    const list = element("ol", { class: "step-list" });
    done.steps.forEach((step, index) => {
      const shade = colour(`--step-${index % SHADES}`);
      const part = element("span", { title: `${step.name}: ${microseconds(step.us)}` });
      part.style.flexGrow = step.us / total;
      part.style.background = shade;
      line.append(part);
      const key = element("i");
      key.style.background = shade;
      list.append(element("li", {}, key, `${step.name}: ${microseconds(step.us)}`));
    });
    card.append(element("p", { text: `Switchover of attempt ${done.attempt}: writes parked for ${microseconds(done.frozen_us)}, ` +
      `${bytes(done.bytes_on_wire)} in ${done.seconds.toFixed(1)} s, both sides ${done.equal ? "equal" : "DIFFERENT"}` }), line, list);
  }
  return card;
}

// ---- plots ------------------------------------------------------------------------------------------------------------

// A round number that is not below the value: the scale does not jump with each state.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

// `format` is for the scale and the legend, `least` is the lowest top of the scale, `mark` a line across.
function plot(id, series, { format, least, mark }) {
  const svg = (name, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const top = roundUp(Math.max(least, ...series.flatMap((line) => line.values)));
  const span = Math.max(SPAN_MIN, history.length);
  const x = (index) => 600 - (history.length - 1 - index) * 600 / (span - 1);
  const y = (value) => 160 - value / top * 158;
  const fixed = { "vector-effect": "non-scaling-stroke" };
  const drawn = series.map((one) => svg("polyline", {
    points: one.values.map((value, index) => value === null ? null : `${x(index).toFixed(1)},${y(value).toFixed(1)}`).filter(Boolean).join(" "),
    fill: "none", stroke: colour(one.colour), "stroke-width": 2, "stroke-dasharray": one.dashed ? "5 4" : "none", ...fixed,
  }));
  if (mark) drawn.push(svg("line", { x1: 0, x2: 600, y1: y(mark), y2: y(mark), stroke: colour("--bad"), "stroke-width": 1, ...fixed }));
  const last = (one) => one.values.at(-1);
  const words = series.map((one) => `${one.name}: ${last(one) === null || last(one) === undefined ? "none" : format(last(one))}`);
  const picture = svg("svg", { role: "img", viewBox: "0 0 600 160", preserveAspectRatio: "none", "aria-label": words.join("; ") }, ...drawn);
  const labels = (kind, ...texts) => element("div", { class: kind, "aria-hidden": "true" }, ...texts.map((text) => element("span", { text })));
  const ago = span < 120 ? `${span} s ago` : `${(span / 60).toFixed(span % 60 ? 1 : 0)} min ago`;
  $(id).replaceChildren(labels("scale", format(top), format(top / 2), "0"), picture, labels("span", ago, "now"));
  $(`${id}-legend`).replaceChildren(...series.map((one, index) => {
    const key = element("i", { class: one.dashed ? "key dashed" : "key" });
    key.style.borderColor = colour(one.colour);
    return element("span", {}, key, words[index]);
  }));
}

function plots() {
  const of = (name) => history.map((state) => state[name]);
  plot("plot-requests", [
    { name: "reads", colour: "--read", values: of("reads") },
    { name: "writes", colour: "--write", dashed: true, values: of("writes") },
  ], { format: number, least: 10 });
  plot("plot-load", [
    { name: "highest shard", colour: "--read", values: of("level") },
    { name: "expected", colour: "--accent", dashed: true, values: of("expected") },
  ], { format: percent, least: 1, mark: 1 });
  plot("plot-latency", [
    { name: "reads", colour: "--read", values: of("readP99") },
    { name: "writes", colour: "--write", dashed: true, values: of("writeP99") },
  ], { format: microseconds, least: 1000 });
}

function remember() {
  const here = status.hosts.find((host) => host.host === status.host);
  const shards = here && here.trend ? here.trend.shards : [];
  const highest = (name) => shards.length ? Math.max(...shards.map((shard) => shard[name])) : null;
  history.push({
    reads: status.requests.reads_s, writes: status.requests.writes_s, readP99: status.requests.read_p99_us, writeP99: status.requests.write_p99_us,
    level: highest("level"), expected: highest("expected"),
  });
  if (history.length > KEPT) history.shift();
}

// ---- everything -------------------------------------------------------------------------------------------------------

function draw() {
  $("host").textContent = `host ${status.host}`;
  $("leader").textContent = status.leader === null ? "none" : `host ${status.leader}`;
  const { kind, reachable, since, last_error: error } = status.coordinator;
  $("coordinator").textContent = `${kind}, ${reachable ? "answers" : "silent"} since ${timeOf(since)}`;
  $("coordinator").className = reachable ? "" : "lost";
  $("coordinator").title = error ? `last error: ${error}` : "";
  $("policy").textContent = status.automation;
  $("version").textContent = status.version;
  const alarms = status.stalls.map((stall) => `${stall.subject} stands still since ${timeOf(stall.since)}: it waits for ${stall.waits_for}`);
  if (status.coordinator_error) alarms.unshift(`The coordinator cannot be reached, what is shown of others may be old: ${status.coordinator_error}`);
  $("alarm").hidden = !alarms.length;
  $("alarm").textContent = alarms.join("; ");
  update($("hosts"), status.hosts.map(hostCard));
  update($("partitions"), status.partitions.map(partitionRow));
  $("sinks-section").hidden = !status.sinks.length;
  update($("sinks"), status.sinks.map(sinkRow));
  if (status.moves.length) update($("moves"), status.moves.map(moveCard));
  plots();
}

function timeOf(ms) {
  return new Date(ms).toLocaleTimeString("en-GB");
}

function addEvent(event) {
  const where = event.partition === null ? "" : `partition ${event.partition}: `;
  const row = element("li", { class: `topic-${event.topic}`, "data-event": event.number },
    element("time", { datetime: new Date(event.at_ms).toISOString(), class: "soft", text: timeOf(event.at_ms) }),
    element("span", { text: event.topic }), element("span", { text: where + event.text }));
  $("events").prepend(row);
  $("no-events").hidden = true;
  while ($("events").children.length > 500) $("events").lastChild.remove();
}

const stream = new EventSource("api/stream");
let busy = false;
stream.addEventListener("open", () => { $("link").textContent = "live"; $("link").className = "live"; });
stream.addEventListener("error", () => { $("link").textContent = "lost, trying again"; $("link").className = "lost"; });
stream.addEventListener("event", (message) => addEvent(JSON.parse(message.data)));
stream.addEventListener("status", (message) => {
  status = JSON.parse(message.data);
  remember();
  draw();
  if (!busy) {
    busy = true;
    strips().catch(() => {}).finally(() => { busy = false; });
  }
});

// ---- actions ----------------------------------------------------------------------------------------------------------

const ACTIONS = {
  move: (partition) => `Move partition ${partition} to another host? Readers see no pause, writers a few milliseconds.`,
  abort: (partition) => `Abort the move of partition ${partition}? This host goes on serving it; what was copied is dropped.`,
  drain: () => `Move everything away from host ${status.host}, one partition after the other? Aborting a move ends it.`,
  switch: (partition) => `Switch partition ${partition} over now? The destination becomes its owner.`,
};
let pending = null;

function ask(action, partition) {
  pending = { action, partition };
  $("confirm-text").textContent = ACTIONS[action](partition);
  $("confirm-destination").hidden = action !== "move";
  const others = status.hosts.filter((host) => host.host !== status.host);
  $("destination").replaceChildren(...others.map((host) => element("option", { value: host.host, text: `host ${host.host}` })));
  $("confirm-error").textContent = "";
  $("token").value = sessionStorage.getItem("token") || "";
  $("confirm").showModal();
}

document.addEventListener("click", ({ target }) => {
  const pressed = target.closest("button[data-action]");
  if (!pressed) return;
  const row = pressed.closest("tr[data-partition]");
  ask(pressed.dataset.action, row ? Number(row.dataset.partition) : undefined);
});

$("confirm-go").addEventListener("click", async (event) => {
  event.preventDefault();
  const token = $("token").value;
  const body = pending.partition === undefined ? {} : { partition: pending.partition };
  if (pending.action === "move") body.destination = Number($("destination").value);
  const answer = await fetch(`api/${pending.action}`, {
    method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
  }).catch((cause) => ({ ok: false, json: async () => ({ error: String(cause) }) }));
  if (answer.ok) {
    sessionStorage.setItem("token", token);
    $("confirm").close();
  } else {
    $("confirm-error").textContent = (await answer.json().catch(() => ({ error: "no answer" }))).error;
  }
});
