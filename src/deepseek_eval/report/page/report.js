// The items: unpacked when their task is opened, filtered, searched, shown a page at a time. Texts are only ever set as
// text, never as HTML.
"use strict";
(() => {
  const PAGE = 25;
  const STATES = {
    all: "all",
    lost: "lost: right before, not now",
    won: "won: right now, not before",
    changed: "changed",
    disagree: "where models disagree",
    wrong: "wrong",
    partly: "partly right",
    right: "right",
    scored: "with a number only",
    unscored: "unscored",
    unanswered: "unanswered",
    refused: "refused",
  };
  const index = JSON.parse(document.getElementById("index").textContent);
  const part = (name) => document.getElementById("drill-" + name);
  const [form, taskBox, modelBox, stateBox, searchBox] = [document.getElementById("drill"), ...["task", "model", "state", "search"].map(part)];
  const unpacked = new Map();
  let items = [], found = [], page = 0, turn = 0;

  function element(kind, attributes = {}, ...children) {
    const made = document.createElement(kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  async function unpack(place) {
    if (!unpacked.has(place)) {
      const packed = Uint8Array.from(atob(document.getElementById("data-" + place).textContent), (char) => char.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      unpacked.set(place, await new Response(stream).json());
    }
    return unpacked.get(place);
  }

  const task = () => index.tasks[Number(taskBox.value)];
  const better = (a, b) => (task().better === false ? a < b : a > b);

  // What became of an item from the first model to the second: by its value, where both have one.
  function change(item) {
    const [before, after] = item.models;
    if (!before || !after) return "";
    if (before.v === undefined || after.v === undefined) return before.s !== after.s ? "changed" : "";
    if (before.v === after.v) return "";
    if (task().better === null) return "changed";
    return better(after.v, before.v) ? "won" : "lost";
  }

  function matches(item, state, model) {
    const own = model < 0 ? item.models.filter(Boolean) : [item.models[model]].filter(Boolean);
    if (!own.length) return false;
    if (state === "all") return true;
    if (state === "lost" || state === "won") return change(item) === state;
    if (state === "changed") return change(item) !== "" || (own.length > 1 && own[0].a !== own[1].a);
    if (state === "disagree") return new Set(item.models.filter(Boolean).map((one) => one.s)).size > 1;
    if (state === "refused") return own.some((one) => one.r);
    return own.some((one) => one.s === state);
  }

  function words(item) {
    if (item.words === undefined) {
      const prompt = typeof item.prompt === "string" ? item.prompt : item.prompt.map((one) => one[1]).join("\n");
      const answers = item.models.filter(Boolean).flatMap((one) => [one.a, ...(one.o || []), one.w, one.e]);
      item.words = [item.id, prompt, item.expected, ...(item.groups || []), ...(item.choices || []), ...answers].join("\n").toLowerCase();
    }
    return item.words;
  }

  function options() {
    const model = Number(modelBox.value), pair = index.models.length === 2, before = stateBox.value;
    const known = ["all", ...(pair ? ["lost", "won", "changed"] : []), ...(index.models.length > 2 ? ["disagree"] : []), ...task().states, "refused"];
    stateBox.replaceChildren();
    for (const state of Object.keys(STATES).filter((one) => known.includes(one))) {
      const count = items.filter((item) => matches(item, state, model)).length;
      if (count || state === "all" || state === before) stateBox.append(element("option", { value: state }, `${STATES[state]} (${count})`));
    }
    if ([...stateBox.options].some((one) => one.value === before)) stateBox.value = before;
  }

  function filter() {
    const model = Number(modelBox.value), wanted = searchBox.value.trim().toLowerCase();
    found = items.filter((item) => matches(item, stateBox.value, model) && (!wanted || words(item).includes(wanted)));
    page = 0;
    show();
  }

  function show() {
    const { kept, total } = task(), pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    const left = kept < total ? ` This page holds ${kept.toLocaleString("en")} of the task's ${total.toLocaleString("en")} items, chosen by their ids; the others are in the files of the run.` : "";
    part("count").textContent = `${found.length.toLocaleString("en")} of ${items.length.toLocaleString("en")} items.${left}`;
    part("list").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(entry));
    part("pages").hidden = pages < 2;
    part("page").textContent = `page ${page + 1} of ${pages}`;
    part("previous").disabled = page === 0;
    part("next").disabled = page === pages - 1;
  }

  function mark(given) {
    const value = given.v !== undefined && given.s !== "right" && given.s !== "wrong" ? " " + number(given.v) : "";
    return element("span", { class: "state " + given.s }, given.s + value + (given.r ? ", refused" : ""));
  }

  const number = (value) => (task().unit === "share" ? (100 * value).toFixed(1) + "%" : value.toFixed(2));

  function entry(item) {
    const marks = element("span");
    item.models.forEach((given) => given && marks.append(mark(given)));
    const prompt = typeof item.prompt === "string" ? item.prompt : item.prompt[item.prompt.length - 1][1];
    const lines = prompt.trim().split("\n").filter(Boolean);
    const line = (lines.length > 1 && lines[lines.length - 1].length < 24 ? lines.slice(-2).join(" ") : lines[lines.length - 1]) || (item.choices || []).join(" / ") || item.id;
    const made = element("details", {}, element("summary", {}, marks, element("span", { class: "line", dir: "auto" }, line.slice(0, 300))));
    made.addEventListener("toggle", () => { if (made.open && made.children.length < 2) made.append(body(item)); });
    return made;
  }

  const field = (name) => element("p", { class: "field" }, name);
  const text = (value) => element("div", { class: "text", dir: "auto", tabindex: "0" }, value === "" ? "(empty)" : value);

  function body(item) {
    const made = element("div", { class: "body" });
    made.append(field([`id ${item.id}`, ...(item.groups || [])].join(" · ")));
    const turns = typeof item.prompt === "string" ? [["Prompt", item.prompt]] : item.prompt;
    for (const [role, content] of turns) {
      if (!content && turns.length === 1) continue;
      const shown = text(content);
      made.append(field(role), shown);
      requestAnimationFrame(() => { shown.scrollTop = shown.scrollHeight; }); // behind the examples stands the question
    }
    if (item.choices) made.append(choices(item));
    else if (item.expected) made.append(field("Expected"), text(item.expected));
    item.models.forEach((given, place) => given && made.append(answer(given, place, item)));
    return made;
  }

  function choices(item) {
    const shown = item.models.map((given, place) => [given, place]).filter(([given]) => given && given.p);
    const head = element("tr", {}, element("th", { scope: "col" }, "Choice"));
    for (const [, place] of shown) head.append(element("th", { scope: "col", class: "num" }, index.models[place].label));
    const rows = item.choices.map((choice, at) => {
      const right = choice === item.expected;
      const row = element("tr", right ? { class: "expected" } : {}, element("td", { dir: "auto" }, (right ? "✓ " : "") + choice));
      for (const [given] of shown) row.append(element("td", { class: "num" }, (100 * given.p[at]).toFixed(1) + "%"));
      return row;
    });
    return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Choices" }, element("table", { class: "choices" }, element("thead", {}, head), element("tbody", {}, ...rows)));
  }

  function answer(given, place, item) {
    const name = index.models[place].label;
    const made = element("div", { class: "answer" }, element("p", {}, element("strong", {}, name), " ", mark(given)));
    if (given.e) made.append(field("Unanswered, because"), text(given.e));
    (given.o || []).forEach((sample, at) => made.append(field(given.o.length > 1 ? `Answer ${at + 1}` : "Answer"), text(sample)));
    if (given.a !== undefined && !(given.o || []).includes(given.a) && given.a !== "") made.append(field(given.o ? "Read as" : "Answer"), text(given.a));
    if (given.w) made.append(field("Why"), text(given.w));
    const facts = [given.v === undefined ? "" : `${task().metric} ${number(given.v)}`, given.l === undefined ? "" : `log-probability ${given.l}`, given.t ? `${given.t} s` : ""];
    if (facts.some(Boolean)) made.append(field(facts.filter(Boolean).join(" · ")));
    return made;
  }

  async function choose(place, state, id) {
    const mine = ++turn;
    taskBox.value = String(place);
    part("count").textContent = "Unpacking …";
    try {
      const read = await unpack(place);
      if (mine !== turn) return;
      items = read;
    } catch (error) {
      items = [];
      part("count").textContent = `The items cannot be unpacked: ${error}. A browser of 2023 or later can.`;
      return;
    }
    if (state) modelBox.value = "-1";
    searchBox.value = id || "";
    if (state || id) stateBox.replaceChildren(element("option", { value: state || "all" }, ""));
    options();
    filter();
    if (id) {
      found.sort((a, b) => (b.id === id) - (a.id === id));
      show();
      const first = part("list").querySelector("details");
      if (first) first.open = true;
    }
  }

  // Part of the address as it was before it was encoded; one that nobody encoded stands for itself.
  function decoded(part) {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  }

  // Addresses of items: #items/TASK, #items/TASK/STATE, #items/TASK//ID.
  function follow() {
    const [place, name, state, ...id] = location.hash.slice(1).split("/");
    if (place !== "items" || !name) return false;
    const at = index.tasks.findIndex((one) => one.name === decoded(name));
    if (at < 0) return false;
    choose(at, state in STATES ? state : "", decoded(id.join("/")));
    const heading = document.getElementById("h-items");
    heading.scrollIntoView();
    heading.focus({ preventScroll: true });
    return true;
  }

  function start() {
    index.tasks.forEach((one, place) => taskBox.append(element("option", { value: place }, `${one.name}: ${one.title}`)));
    modelBox.append(element("option", { value: -1 }, index.models.length > 1 ? "any" : index.models[0].label));
    if (index.models.length > 1) index.models.forEach((one, place) => modelBox.append(element("option", { value: place }, one.label)));
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    taskBox.addEventListener("change", () => choose(Number(taskBox.value)));
    modelBox.addEventListener("change", () => { options(); filter(); });
    stateBox.addEventListener("change", filter);
    let waiting;
    searchBox.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 150); });
    const turnTo = (step) => { page += step; show(); document.getElementById("items").scrollIntoView(); };
    part("previous").addEventListener("click", () => turnTo(-1));
    part("next").addEventListener("click", () => turnTo(1));
    addEventListener("hashchange", follow);
    if (!follow() && index.tasks.length) choose(index.opens, index.difference ? "lost" : "");
  }

  // A link to something inside a closed part opens it.
  function open() {
    const aim = location.hash.length > 1 && document.getElementById(decoded(location.hash.slice(1)));
    for (let one = aim; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
  }
  addEventListener("hashchange", open);
  open();
  start();
})();
