// The live view of the node, from the server's own /metrics.

import { metrics } from "./api.js";
import { byId, h, svg } from "./dom.js";

const EVERY = 2000; // ms
const HISTORY = 60;
const WIDTH = 120;
const HEIGHT = 28;

const CHARTS = [
  { name: "speed", label: "Output", unit: "tok/s", digits: 1 },
  { name: "running", label: "Running", unit: "answers" },
  { name: "waiting", label: "Queue", unit: "answers" },
  { name: "kv", label: "KV cache", unit: "%", top: 100, digits: 0 },
];

/** Sums of all samples by metric name, and by name and state for the engine's state. */
export function readMetrics(text) {
  const sums = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)/.exec(line);
    if (!found) continue;
    const value = Number(found[3]);
    if (!Number.isFinite(value)) continue;
    sums.set(found[1], (sums.get(found[1]) ?? 0) + value);
    const state = /(?:^|,)state="(\w+)"/.exec(found[2] ?? "");
    if (state) sums.set(`${found[1]}:${state[1]}`, (sums.get(`${found[1]}:${state[1]}`) ?? 0) + value);
  }
  return sums;
}

export class Node {
  constructor() {
    this.history = Object.fromEntries(CHARTS.map(({ name }) => [name, []]));
    this.element = byId("node");
    this.charts = CHARTS.map((chart) => this.chart(chart));
    this.more = h("dl", { class: "node-facts" });
    this.element.append(h("div", { class: "charts" }, ...this.charts.map((chart) => chart.element)), this.more);
    document.addEventListener("visibilitychange", () => this.plan(0));
    this.plan(0);
  }

  chart({ name, label, unit, top, digits = 0 }) {
    const value = h("span", { class: "chart-value", text: "–" });
    const line = svg("polyline", { class: "spark-line" });
    const area = svg("polygon", { class: "spark-area" });
    const element = h(
      "div",
      { class: "chart", "data-chart": name },
      h("span", { class: "chart-label", text: label }),
      h("span", {}, value, h("span", { class: "chart-unit", text: ` ${unit}` })),
      svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, area, line),
    );
    return { name, element, value, line, area, top, digits };
  }

  plan(delay) {
    clearTimeout(this.timer);
    if (document.hidden) return;
    this.timer = setTimeout(() => this.poll(), delay);
  }

  async poll() {
    let now = null;
    try {
      now = readMetrics(await metrics(AbortSignal.timeout(5000)));
    } catch {
      // Shown below as not reachable.
    }
    this.take(now, performance.now());
    this.plan(EVERY);
  }

  take(now, time) {
    if (!now) {
      this.last = null;
      this.status("down", "not reachable");
      return;
    }
    const get = (name) => now.get(`deepseek_engine_${name}`) ?? 0;
    const generated = get("generated_tokens_total");
    // Counters begin again when the engine is restarted.
    const speed =
      this.last && generated >= this.last.generated
        ? ((generated - this.last.generated) * 1000) / (time - this.last.time)
        : 0;
    this.last = { generated, time };
    const pages = get("kv_pages");
    const values = {
      speed,
      running: get("running"),
      waiting: get("waiting"),
      kv: pages ? (100 * (pages - get("kv_pages_free"))) / pages : 0,
    };
    for (const [name, value] of Object.entries(values)) {
      this.history[name].push(value);
      if (this.history[name].length > HISTORY) this.history[name].shift();
    }
    for (const chart of this.charts) this.draw(chart);
    this.facts(now, get);
    this.judge(now, values);
  }

  judge(now, { speed, running, waiting }) {
    const state =
      ["ready", "starting", "restarting", "failed", "stopped"].find(
        (name) => now.get(`deepseek_engine_state:${name}`) > 0,
      ) ?? "starting";
    if (state === "starting" || state === "restarting") this.status("starting", state);
    else if (state !== "ready") this.status("down", state);
    else if (running + waiting > 0)
      this.status("busy", `${speed.toFixed(0)} tok/s${waiting ? `, ${waiting} waiting` : ""}`);
    else this.status("ready", "ready");
  }

  status(state, text) {
    byId("status").querySelector(".dot").dataset.state = state;
    byId("status-text").textContent = text;
    byId("status").setAttribute("aria-label", `Node: ${text}`);
  }

  facts(now, get) {
    const prompts = get("prompt_tokens_total");
    const rows = [];
    if (prompts)
      rows.push(["Prompt tokens from cache", `${((100 * get("cached_prompt_tokens_total")) / prompts).toFixed(0)} %`]);
    const drafted = get("drafted_tokens_total");
    if (drafted)
      rows.push(["Guessed tokens accepted", `${((100 * get("accepted_tokens_total")) / drafted).toFixed(0)} %`]);
    rows.push(["Tokens generated", get("generated_tokens_total").toLocaleString("en")]);
    const restarts = get("restarts_total");
    if (restarts) rows.push(["Engine restarts", String(restarts)]);
    this.more.replaceChildren(...rows.flatMap(([name, value]) => [h("dt", { text: name }), h("dd", { text: value })]));
  }

  draw({ name, value, line, area, top, digits }) {
    const points = this.history[name];
    value.textContent = points.at(-1).toFixed(digits);
    const max = top ?? Math.max(1, ...points);
    const step = WIDTH / (HISTORY - 1);
    const start = WIDTH - (points.length - 1) * step;
    const place = points.map(
      (point, i) => `${(start + i * step).toFixed(1)},${(HEIGHT - 1.5 - (point / max) * (HEIGHT - 4)).toFixed(1)}`,
    );
    line.setAttribute("points", place.join(" "));
    area.setAttribute("points", `${start.toFixed(1)},${HEIGHT} ${place.join(" ")} ${WIDTH},${HEIGHT}`);
  }
}
