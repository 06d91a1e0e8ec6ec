// The page of `datakit browse`. What comes from files (keys, labels, paths) is only ever put in as text.
"use strict";

const PAGE = 60, LONG = 40; // records of a page; values of a facet that are ticked, more are typed
const FIRST = ["source", "split", "reason", "stage", "detail", "lost_to", "distance_bits", "turned", "label", "path", "name",
  "window", "width", "height", "image_width", "image_height", "gsd_m", "acquired", "crs", "bands", "dtype", "format", "licences"];
const svgNamespace = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const count = (n) => n.toLocaleString("en-US");
let about = null, columns = {}, rows = [], total = 0, asking = null, opened = null;

function make(name, more = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(more)) {
    if (key === "class") made.className = value;
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function draw(name, more, text) {
  const made = document.createElementNS(svgNamespace, name);
  for (const [key, value] of Object.entries(more)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, options) {
  const reply = await fetch(path, options);
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

function tell(id, error) {
  $(id).hidden = !error;
  $(id).textContent = error ? (error instanceof TypeError ? "The server does not answer: is `datakit browse` still running?" : error.message) : "";
}

// ---- what is asked stands in the address, after #

const state = () => new URLSearchParams(location.hash.slice(1));

function go(change, replace) {
  const next = state();
  for (const [name, value] of Object.entries(change)) {
    next.delete(name);
    for (const one of [value].flat()) if (one !== null && one !== "") next.append(name, one);
  }
  const address = "#" + next;
  if (replace) history.replaceState(null, "", address); else history.pushState(null, "", address);
  show();
}

function question() {
  const asked = new URLSearchParams();
  for (const [name, value] of state()) if (about.facets.includes(name) || about.measures.includes(name)) asked.append(name, value);
  return asked;
}

// ---- filters

function facetField(name) {
  const box = make("fieldset", { id: "facet-" + name });
  return make("details", { class: "facet", open: name !== "label" }, make("summary", {}, name), box);
}

function fillFacet(name, { values, of }) {
  const box = $("facet-" + name);
  if (of <= LONG) {
    box.replaceChildren(make("div", { class: "choices" }, ...values.map(([value, times]) => {
      const input = make("input", { type: "checkbox", name, value });
      return make("label", {}, input, make("span", { class: "name" }, value || "(none)"), make("span", { class: "number" }, count(times)));
    })));
  } else {
    const list = make("datalist", { id: "values-" + name }, ...values.map(([value]) => make("option", { value })));
    const input = make("input", { type: "text", name, list: list.id, placeholder: `one of ${count(of)}`, autocomplete: "off" });
    input.setAttribute("aria-label", name);
    box.replaceChildren(input, list);
  }
}

function measureField(name, said) {
  return make("details", { class: "measure", id: "measure-" + name }, make("summary", {}, name.replaceAll("_", " ")),
    make("p", { class: "number" }, "reading …"));
}

const short = (x) => Number.isInteger(x) ? String(x) : String(Number(x.toPrecision(5)));

function fillMeasure(name, { known, low, high, counts }) {
  const box = $("measure-" + name), summary = box.firstElementChild;
  if (!known) return box.replaceChildren(summary, make("p", { class: "number" }, "known of no record"));
  const bars = draw("svg", { class: "bars", viewBox: `0 0 ${counts.length} 20`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const most = Math.log1p(Math.max(...counts));
  counts.forEach((n, i) => {
    const tall = n ? 1 + 19 * Math.log1p(n) / most : 0;
    bars.append(draw("rect", { x: i + 0.05, y: 20 - tall, width: 0.9, height: tall }));
  });
  const end = (which, value) => make("input", { type: "number", step: "any", name, placeholder: short(value), "data-end": which, "aria-label": `${name}, ${which}` });
  box.replaceChildren(summary, bars, make("div", { class: "row" }, end("lowest", low), make("span", {}, "to"), end("highest", high)),
    make("p", { class: "number" }, `${short(low)} to ${short(high)}, known of ${count(known)}`));
}

function fillFilters() { // from the address
  const asked = state();
  for (const input of document.querySelectorAll("#facets input")) {
    const values = asked.getAll(input.name);
    if (input.type === "checkbox") input.checked = values.includes(input.value);
    else if (input !== document.activeElement) input.value = values[0] ?? "";
  }
  for (const input of document.querySelectorAll("#measures input")) {
    if (input === document.activeElement) continue;
    const [low, high] = (asked.get(input.name) ?? "..").split("..");
    input.value = input.dataset.end === "lowest" ? low : high;
    if (input.value) input.closest("details").open = true;
  }
}

function filtersChanged() {
  const change = { offset: null, row: null };
  for (const name of about.facets) {
    const inputs = [...document.querySelectorAll("#facet-" + name + " input")];
    if (!inputs.length) continue;
    change[name] = inputs.filter((i) => i.type !== "checkbox" ? i.value : i.checked).map((i) => i.value);
  }
  for (const name of about.measures) {
    const ends = document.querySelectorAll("#measure-" + name + " input");
    if (ends.length) change[name] = ends[0].value || ends[1].value ? `${ends[0].value}..${ends[1].value}` : null;
  }
  // a facet may have the value "", which an address keeps only if it is told
  const next = state();
  for (const [name, value] of Object.entries(change)) {
    next.delete(name);
    for (const one of [value].flat()) if (one !== null) next.append(name, one);
  }
  history.pushState(null, "", "#" + next);
  show();
}

async function readColumns() {
  let said;
  try { said = await ask("columns"); } catch (error) { return tell("trouble", error); }
  for (const [name, one] of Object.entries(said.columns)) {
    if (name in columns) continue;
    columns[name] = one;
    (one.kind === "facet" ? fillFacet : fillMeasure)(name, one);
  }
  fillFilters();
  const left = said.missing.length;
  $("reading").hidden = !left;
  $("reading").textContent = left ? `Reading columns for the first time: ${left} to go` : "";
  if (left) setTimeout(readColumns, 1000);
}

// ---- records

function tile(one, size) {
  const frame = make("span", { class: "frame" });
  const none = () => frame.replaceChildren(make("span", { class: "none" }, one.reason === "kept" ? "no image" : one.reason));
  if (one.image) {
    const image = make("img", { alt: "", loading: "lazy", decoding: "async", src: `image/${one.row}?side=${size}` });
    image.addEventListener("error", none);
    frame.append(image);
  } else none();
  const said = make("span", { class: one.reason === "kept" ? "said" : "left-out" }, one.reason === "kept" ? one.source : one.reason);
  const caption = make("span", { class: "caption" }, make("span", { class: "key", title: one.key }, one.key), said);
  if (one.bits !== undefined) caption.append(make("span", { class: "said line" }, `${one.bits} bits${one.turned ? ", " + one.turned : ""}`));
  const link = make("a", { class: "tile", href: "#" }, frame, caption);
  link.dataset.row = one.row;
  link.addEventListener("click", (event) => { event.preventDefault(); go({ row: one.row }); });
  return make("li", {}, link);
}

async function showRows() {
  const asked = question(), key = String(asked), offset = Number(state().get("offset") ?? 0);
  const now = key + "&offset=" + offset;
  if (asking === now) return;
  asking = now;
  $("tiles").setAttribute("aria-busy", "true");
  let said;
  try {
    const more = new URLSearchParams(asked);
    more.append("offset", offset);
    more.append("count", PAGE);
    said = await ask("rows?" + more);
  } catch (error) {
    if (asking !== now) return;
    asking = null;
    tell("trouble", error);
    $("tiles").replaceChildren();
    $("count").textContent = "No answer";
    return;
  } finally { $("tiles").removeAttribute("aria-busy"); }
  if (asking !== now) return; // something else has been asked meanwhile
  tell("trouble", null);
  ({ rows, total } = said);
  $("tiles").replaceChildren(...rows.map((one) => tile(one, 256)));
  const all = about.kept + about.dropped;
  $("count").textContent = total === all ? `${count(total)} records` : `${count(total)} of ${count(all)} records`;
  $("page").textContent = total ? `${count(offset + 1)} to ${count(offset + rows.length)}` : "";
  $("first").disabled = $("previous").disabled = offset === 0;
  $("next").disabled = offset + rows.length >= total;
  if ($("places").open) showWorld();
}

async function showWorld() {
  if (!about.has_places) return;
  const asked = question(), now = String(asked);
  if ($("world").dataset.of === now) return;
  $("world").dataset.of = now;
  $("placed").textContent = "reading …";
  try {
    const said = await ask("density?" + asked);
    if ($("world").dataset.of !== now) return;
    drawMap($("world"), said, null);
    const placed = said.cells.reduce((sum, [, , n]) => sum + n, 0);
    $("placed").textContent = `${count(placed)} of ${count(total)} have a place; the fullest cell has ${count(Math.max(0, ...said.cells.map((c) => c[2])))}`;
  } catch (error) { delete $("world").dataset.of; tell("trouble", error); }
}

// ---- maps: degrees as they are, no tiles of anyone

function nice(span) {
  const steps = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30];
  return steps.find((step) => span / step <= 7) ?? 60;
}

function drawMap(svg, { box: [west, south, east, north], across, down, cells }, polygon) {
  const wide = (((east - west) % 360) + 360) % 360 || 360, tall = north - south, W = 720, H = 360;
  const x = (lon) => ((((lon - west) % 360) + 360) % 360) / wide * W, y = (lat) => (north - lat) / tall * H;
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  svg.replaceChildren();
  const most = Math.log1p(Math.max(1, ...cells.map((cell) => cell[2]))), paths = ["", "", "", "", ""];
  const w = W / across, h = H / down;
  for (const [column, line, n] of cells) {
    paths[Math.min(4, Math.floor(Math.log1p(n) / most * 5))] += `M${(column * w).toFixed(2)} ${(line * h).toFixed(2)}h${w.toFixed(2)}v${h.toFixed(2)}h${(-w).toFixed(2)}z`;
  }
  paths.forEach((d, n) => d && svg.append(draw("path", { d, class: "heat-" + (n + 1) })));
  const step = wide === 360 ? 30 : nice(wide), places = step < 1 ? Math.ceil(-Math.log10(step)) : 0;
  for (let lon = Math.ceil(west / step) * step; lon < west + wide; lon += step) {
    const shown = ((((lon + 180) % 360) + 360) % 360) - 180;
    svg.append(draw("path", { class: "grid", d: `M${(lon - west) / wide * W} 0V${H}` }));
    svg.append(draw("text", { x: (lon - west) / wide * W + 3, y: H - 4 }, shown.toFixed(places) + "°"));
  }
  for (let lat = Math.ceil(south / step) * step; lat < north; lat += step) {
    svg.append(draw("path", { class: "grid", d: `M0 ${y(lat)}H${W}` }));
    if (y(lat) < H - 20) svg.append(draw("text", { x: 3, y: y(lat) - 3 }, lat.toFixed(places) + "°"));
  }
  if (!polygon) return;
  const rings = (polygon.type === "Polygon" ? [polygon.coordinates] : polygon.coordinates).map((part) => part[0]);
  for (const ring of rings) {
    const middle = ring.reduce((sum, [lon]) => sum + lon, 0) / ring.length, at = x(middle);
    const near = (lon) => at + (lon - middle) / wide * W; // sides do not jump at the edge of the map
    svg.append(draw("path", { class: "shape", d: "M" + ring.map(([lon, lat]) => `${near(lon).toFixed(2)} ${y(lat).toFixed(2)}`).join("L") + "z" }));
    if (wide === 360) svg.append(draw("circle", { class: "mark", cx: at, cy: y(ring[0][1]), r: 9 }));
  }
}

function around(polygon) { // a box twelve times as large as the footprint, twice as wide as high
  const points = (polygon.type === "Polygon" ? [polygon.coordinates] : polygon.coordinates).flat(2);
  const lon0 = points[0][0], lons = points.map(([lon]) => lon - 360 * Math.round((lon - lon0) / 360)), lats = points.map(([, lat]) => lat);
  const middle = [(Math.min(...lons) + Math.max(...lons)) / 2, (Math.min(...lats) + Math.max(...lats)) / 2];
  const size = Math.max(Math.max(...lons) - Math.min(...lons), Math.max(...lats) - Math.min(...lats), 1e-5) * 6;
  if (size >= 60) return null;
  const wrap = (lon) => ((((lon + 180) % 360) + 360) % 360) - 180;
  const south = Math.max(-90, Math.min(90 - size, middle[1] - size / 2));
  return [wrap(middle[0] - size), south, wrap(middle[0] + size), Math.min(90, south + size)];
}

async function showPlace(row, polygon) {
  $("place").hidden = !polygon;
  if (!polygon) return;
  const box = around(polygon), empty = { across: 1, down: 1, cells: [] };
  drawMap($("there"), { box: [-180, -90, 180, 90], ...empty }, polygon);
  $("here").toggleAttribute("hidden", !box);
  if (box) drawMap($("here"), { box, ...empty }, polygon);
  const rings = polygon.type === "Polygon" ? [polygon.coordinates] : polygon.coordinates;
  $("corners").textContent = rings.map((part) => part[0].slice(0, -1).map(([lon, lat]) => `${lat.toFixed(5)}, ${lon.toFixed(5)}`).join("; ")).join(" and ") + " (latitude, longitude)";
  try {
    const world = await ask("density");
    if (opened === row) drawMap($("there"), world, polygon);
    if (!box) return;
    const near = await ask("density?box=" + box.join(","));
    if (opened === row) drawMap($("here"), near, polygon);
  } catch (error) { if (opened === row) tell("record-trouble", error); }
}

// ---- one record

const empty = (value) => value === null || value === "" || value === "[]" || (Array.isArray(value) && !value.length);
const spelled = (value) => typeof value === "string" ? value : typeof value === "number" ? short(value) : Array.isArray(value) && value.every((one) => typeof one !== "object") ? value.join(", ") : JSON.stringify(value);

function fact(name, value) {
  return make("tr", {}, make("th", { scope: "row" }, name.replaceAll("_", " ")), make("td", {}, value));
}

function facts(said) {
  const link = (row, text) => {
    const made = make("a", { href: "#" }, text);
    made.addEventListener("click", (event) => { event.preventDefault(); go({ row }); });
    return made;
  };
  const all = { ...said.record, source: said.source, split: said.split, reason: said.reason };
  const lines = FIRST.filter((name) => name in all && !empty(all[name])).map((name) =>
    fact(name, name === "lost_to" && said.lost_to !== null ? link(said.lost_to, all[name]) : spelled(all[name])));
  for (const name of about.measures) {
    const value = all[name] ?? null;
    if (!FIRST.includes(name) && !empty(value)) lines.push(fact(name, spelled(value)));
  }
  if (said.shard) lines.push(fact("shard", said.shard), fact("members", said.members.map((m) => `${m.name} (${count(m.bytes)} B)`).join(", ")));
  $("facts").tBodies[0].replaceChildren(...lines);
  $("more").querySelector("tbody").replaceChildren(...Object.entries(said.record).map(([name, value]) => fact(name, empty(value) ? "" : typeof value === "number" ? String(value) : spelled(value))));
  $("json").hidden = said.json === null;
  $("json").querySelector("pre").textContent = said.json === null ? "" : JSON.stringify(said.json, null, 1);
}

function images(said) {
  const box = $("images"), names = said.images ?? [];
  const none = make("p", { class: "none" }, said.reason === "kept" ? "no image that can be shown" : `no picture was left: ${said.reason}`);
  if (!said.image) return box.replaceChildren(none);
  const image = make("img", { alt: said.key, src: `image/${said.row}` });
  image.addEventListener("error", () => image.replaceWith(none));
  box.replaceChildren(image);
  if (said.image === "thumbnail") box.append(make("figcaption", {}, "8 px: what records are compared by; the build left no larger picture of this one"));
  if (names.length < 2) return;
  box.append(make("div", { class: "row" }, ...names.map((name) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => { image.src = `image/${said.row}?member=${encodeURIComponent(name)}`; });
    return button;
  })));
}

async function showNeighbours(row) {
  $("near-about").textContent = "comparing …";
  $("neighbours").replaceChildren();
  try {
    const said = await ask("neighbours/" + row);
    if (opened !== row) return;
    $("near-about").textContent = said.rows.length ? `nearest of ${count(said.compared)} by signature, in 8 orientations; more than 10 bits apart is mostly chance` : "nothing else was measured";
    $("neighbours").replaceChildren(...said.rows.map((one) => tile(one, 128)));
  } catch (error) { if (opened === row) $("near-about").textContent = error.message; }
}

async function showRecord() {
  const text = state().get("row"), dialog = $("record");
  if (text === null) {
    if (dialog.open) dialog.close();
    return;
  }
  const row = Number(text);
  if (opened === row) return;
  opened = row;
  tell("record-trouble", null);
  if (!dialog.open) dialog.showModal();
  const at = rows.findIndex((one) => one.row === row);
  $("before").disabled = at <= 0;
  $("after").disabled = at < 0 || at === rows.length - 1;
  try {
    const said = await ask("record/" + row);
    if (opened !== row) return;
    $("record-key").textContent = said.key;
    dialog.scrollTop = 0;
    images(said);
    facts(said);
    $("near").hidden = !said.flags.signature;
    if (said.flags.signature) showNeighbours(row);
    showPlace(row, said.polygon);
  } catch (error) { if (opened === row) tell("record-trouble", error); }
}

function step(by) {
  const at = rows.findIndex((one) => one.row === opened);
  if (at >= 0 && rows[at + by]) go({ row: rows[at + by].row }, true);
}

// ---- keys and buttons

async function show() {
  fillFilters();
  await showRows();
  await showRecord();
}

function moveInGrid(event) {
  const links = [...event.currentTarget.querySelectorAll("a.tile")], at = links.indexOf(document.activeElement);
  const across = getComputedStyle(event.currentTarget).gridTemplateColumns.split(" ").length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
  if (at < 0 || by === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  links[Math.min(links.length - 1, Math.max(0, at + by))].focus();
}

async function start() {
  try { about = await ask("about"); } catch (error) { return tell("trouble", error); }
  document.title = `${about.name}: datakit browse`;
  $("title").textContent = about.title || about.name;
  $("about").textContent = `${about.out}: ${count(about.kept)} kept, ${count(about.dropped)} left out`;
  $("places").hidden = !about.has_places;
  $("filters").open = !matchMedia("(max-width: 760px)").matches;
  $("facets").append(...about.facets.map(facetField));
  $("measures").append(...about.measures.map(measureField));
  $("facets").addEventListener("change", filtersChanged);
  $("measures").addEventListener("change", filtersChanged);
  $("clear").addEventListener("click", () => { history.pushState(null, "", "#"); document.activeElement.blur(); show(); });
  $("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!$("key").value || document.activeElement.name !== "key" && document.activeElement.type !== "submit") return;
    try {
      const { row } = await ask("find?key=" + encodeURIComponent($("key").value.trim()));
      tell("trouble", null);
      go({ row });
    } catch (error) { tell("trouble", error); }
  });
  const offset = () => Number(state().get("offset") ?? 0);
  $("first").addEventListener("click", () => go({ offset: null }));
  $("previous").addEventListener("click", () => go({ offset: Math.max(0, offset() - PAGE) || null }));
  $("next").addEventListener("click", () => go({ offset: offset() + PAGE }));
  $("places").addEventListener("toggle", () => $("places").open && showWorld());
  $("skip").addEventListener("click", (event) => { event.preventDefault(); (document.querySelector("#tiles a") ?? $("tiles")).focus(); });
  $("tiles").addEventListener("keydown", moveInGrid);
  $("neighbours").addEventListener("keydown", moveInGrid);
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => $("record").close());
  $("record").addEventListener("close", () => {
    if ($("record").open) return; // another record was asked for meanwhile
    const row = opened;
    opened = null;
    if (state().has("row")) go({ row: null });
    document.querySelector(`#tiles a[data-row="${row}"]`)?.focus();
  });
  $("record").addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  addEventListener("popstate", show);
  readColumns();
  await show();
}

start();
