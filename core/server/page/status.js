// The live panel: what the server does right now. Asks once a second, and only while the panel can be seen.

import { $, element } from "./dom.js";
import { getJson } from "./api.js";
import { Plot } from "./plot.js";

const PERIOD_MS = 1000, PERIOD_AFTER_ERROR_MS = 5000;
const whole = (value) => Math.round(value).toLocaleString("en");
const percent = (ratio) => `${(ratio * 100).toFixed(1)} %`;

// Title, how to show it, its value in /v1/loads, the end of its scale.
const PLOTS = [
  ["Running requests", whole, (load) => load.num_running_reqs],
  ["Waiting requests", whole, (load) => load.num_waiting_reqs],
  ["Tokens per second", (value) => value.toFixed(1), (load) => load.gen_throughput],
  ["Prefix cache hits", percent, (load) => load.cache_hit_rate, 1],
  ["KV memory in use", percent, (load) => load.token_usage, 1],
];

export class ServerPanel {
  constructor() {
    this.plots = PLOTS.map(([title, shown, value, top]) => ({ value, plot: new Plot(title, shown, top) }));
    $("plots").append(...this.plots.map(({ plot }) => plot.root));
    this.timer = 0;
    this.asking = this.factsKnown = false;
    document.addEventListener("visibilitychange", () => this.update());
  }

  get seen() {
    return !$("server").hidden && document.visibilityState === "visible";
  }

  // Call when the panel was opened or closed, or when the key has changed.
  update() {
    clearTimeout(this.timer);
    if (this.seen && !this.asking) this.ask();
  }

  async ask() {
    this.asking = true;
    let next = PERIOD_MS;
    try {
      const load = (await getJson("v1/loads")).loads[0];
      const seconds = performance.now() / 1000;
      for (const { plot, value } of this.plots) plot.add(seconds, value(load));
      const { num_used_tokens: used, num_cached_tokens: cached, max_total_num_tokens: room } = load;
      $("kv").textContent = `KV memory: ${whole(used)} tokens in use and ${whole(cached)} cached, of ${whole(room)}.`;
      $("server-state").textContent = load.paused ? "The engine is paused." : "";
      if (!this.factsKnown) this.showFacts(await getJson("server_info"));
    } catch (error) {
      $("server-state").textContent = error.status === 401 ? "The API key is missing or wrong." : error.message;
      next = PERIOD_AFTER_ERROR_MS;
    }
    this.asking = false;
    if (this.seen) this.timer = setTimeout(() => this.update(), next);
  }

  showFacts(info) {
    this.factsKnown = true;
    const facts = {
      version: info.version,
      model: info.model.served_model_name,
      context: `${whole(info.model.context_length)} tokens`,
      "requests at once": info.engine.max_running_requests,
      ...info.engine.effective,
    };
    $("facts").replaceChildren(
      ...Object.entries(facts).flatMap(([name, value]) => [element("dt", "", name.replaceAll("_", " ")), element("dd", "", String(value))]),
    );
  }
}
