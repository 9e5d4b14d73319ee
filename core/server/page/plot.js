// A line plot of the last two minutes, with the same in words.

import { element } from "./dom.js";

const SPAN_S = 120, WIDTH = 240, HEIGHT = 48;

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

export class Plot {
  // shown: number -> text. top: the scale's end, if it is fixed.
  constructor(title, shown, top = 0) {
    Object.assign(this, { title, shown, top, points: [] });
    this.root = element("div", "plot");
    this.now = element("span", "now", "–");
    const head = element("div", "plot-head");
    head.append(element("span", "", title), this.now);
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none" });
    this.line = svg("polyline", { class: "line" });
    this.picture.append(svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1, class: "base" }), this.line);
    this.root.append(head, this.picture);
    this.tell();
  }

  // seconds: of a clock that does not jump.
  add(seconds, value) {
    this.points.push([seconds, value]);
    while (this.points[0][0] < seconds - SPAN_S) this.points.shift();
    const top = this.top || Math.max(1, ...this.points.map(([, y]) => y));
    const place = ([at, y]) => {
      const x = WIDTH * (1 - (seconds - at) / SPAN_S);
      return `${x.toFixed(1)},${(HEIGHT - 2 - (HEIGHT - 4) * Math.min(1, y / top)).toFixed(1)}`;
    };
    this.line.setAttribute("points", this.points.map(place).join(" "));
    this.now.textContent = this.shown(value);
    this.tell();
  }

  tell() {
    const values = this.points.map(([, y]) => y);
    const range = values.length
      ? `now ${this.shown(values.at(-1))}, lowest ${this.shown(Math.min(...values))}, highest ${this.shown(Math.max(...values))}`
      : "nothing measured yet";
    this.picture.setAttribute("aria-label", `${this.title} in the last two minutes: ${range}`);
  }
}
