"use strict";
(() => {
  const read = id => JSON.parse(document.getElementById(id).textContent);
  const before = read("before"), outcomes = read("outcomes");
  const memory = "datakit " + before.name + " " + document.documentElement.dataset.build;
  const tiles = [...document.querySelectorAll(".tile[data-key]")];
  const byKey = new Map();
  for (const tile of tiles) {
    byKey.set(tile.dataset.key, [...(byKey.get(tile.dataset.key) || []), tile]);
  }

  // What is decided: key -> {what: "keep" | "drop", stage, reason}
  const marks = new Map();
  const stored = () => {
    try { return JSON.parse(localStorage.getItem(memory)); } catch { return null; }
  };
  const begin = stored() || ["keep", "drop"].flatMap(what => before[what].map(one => [one.key, { ...one, what }]));
  for (const [key, mark] of begin) marks.set(key, mark);

  const save = document.getElementById("save"), list = document.getElementById("decided");
  const show = key => {
    for (const tile of byKey.get(key) || []) {
      const mark = marks.get(key);
      if (mark) tile.dataset.marked = mark.what; else delete tile.dataset.marked;
      const button = tile.querySelector("button");
      if (button) button.setAttribute("aria-pressed", String(Boolean(mark)));
    }
  };
  const row = ([key, mark]) => {
    const line = document.createElement("tr");
    const cells = [key, mark.what === "keep" ? "keep" : "leave out", mark.reason || "", Object.hasOwn(outcomes, key) ? outcomes[key] : ""];
    cells.forEach((text, n) => {
      const cell = line.insertCell();
      cell.textContent = text;
      if (n === 0) cell.className = "key";
    });
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "take back";
    button.addEventListener("click", () => { marks.delete(key); show(key); tell(); });
    line.insertCell().append(button);
    return line;
  };
  const tell = () => {
    const sorted = [...marks].sort(([one], [other]) => (one < other ? -1 : 1));
    list.replaceChildren(...sorted.map(row));
    document.getElementById("undecided").hidden = marks.size > 0;
    document.getElementById("decisions").hidden = marks.size === 0;
    document.getElementById("marked").textContent = String(marks.size);
    save.disabled = marks.size === 0 && before.keep.length + before.drop.length === 0;
    try { localStorage.setItem(memory, JSON.stringify([...marks])); } catch { /* a page of a file may store nothing */ }
  };
  document.addEventListener("click", event => {
    const tile = event.target.closest(".tile[data-mark]");
    if (!tile || !event.target.closest("button")) return;
    const { key, stage, reason, mark } = tile.dataset;
    if (marks.has(key)) marks.delete(key); else marks.set(key, { key, stage, reason, what: mark });
    show(key);
    tell();
  });
  save.addEventListener("click", () => {
    const some = what => [...marks.values()].filter(mark => mark.what === what)
      .map(({ key, stage, reason }) => ({ key, stage: stage || "", reason: reason || "" }))
      .sort((one, other) => (one.key < other.key ? -1 : 1));
    const text = JSON.stringify({ format: before.format, name: before.name, keep: some("keep"), drop: some("drop") }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
    link.download = "decisions.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  // Filters: by source, reason and a text
  const source = document.getElementById("source"), reason = document.getElementById("reason");
  const text = document.getElementById("text");
  const is = (element, name, wanted) => !wanted || element.dataset[name] === wanted;
  const filter = () => {
    const words = text.value.trim().toLowerCase();
    for (const tile of tiles) {
      const kept = tile.dataset.stage === "kept";
      const said = words && !(tile.dataset.key + " " + tile.title).toLowerCase().includes(words);
      tile.hidden = !is(tile, "source", source.value) || (!kept && !is(tile, "reason", reason.value)) || Boolean(said);
    }
    for (const group of document.querySelectorAll(".group, .pair")) {
      const members = [...group.querySelectorAll(".tile:not(.head)[data-key]")];
      group.hidden = members.every(tile => tile.hidden);
      for (const tile of group.querySelectorAll(".tile")) tile.hidden = false;
    }
    const seen = tile => !tile.hidden && !tile.closest(".group[hidden], .pair[hidden]");
    for (const sheet of document.querySelectorAll(".sheet")) {
      sheet.hidden = ![...sheet.querySelectorAll(".tile[data-key]")].some(seen);
    }
    for (const body of document.querySelectorAll("tbody[data-source]")) {
      body.hidden = body.dataset.source !== source.value;
    }
    for (const line of document.querySelectorAll("tr[data-source]")) line.hidden = !is(line, "source", source.value);
    for (const cell of document.querySelectorAll("[data-column]")) {
      cell.hidden = Boolean(reason.value) && cell.dataset.column !== reason.value;
    }
    document.getElementById("shown").textContent = [...tiles].filter(seen).length.toLocaleString("en") + " shown";
  };
  for (const control of [source, reason]) control.addEventListener("change", filter);
  text.addEventListener("input", filter);
  document.querySelector("nav form").addEventListener("submit", event => event.preventDefault());
  document.addEventListener("click", event => {
    const chip = event.target.closest(".chip");
    if (chip) { reason.value = chip.dataset.reason; filter(); }
  });
  document.getElementById("all").addEventListener("click", () => {
    source.value = reason.value = text.value = "";
    filter();
  });

  for (const key of marks.keys()) show(key);
  tell();
  filter();
})();
