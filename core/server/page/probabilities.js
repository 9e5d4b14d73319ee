// Token probabilities: each token of an answer with its alternatives, for mouse, keyboard and screen readers.
//
// The tokens are one list box: one stop of the Tab key, arrow keys inside. Escape hides the alternatives.

import { $, element } from "./dom.js";

const LEVELS = [0.9, 0.5, 0.2, 0.05]; // classes p0 (likely) to p4 (unlikely)

const percent = (logprob) => {
  const p = Math.exp(logprob) * 100;
  return p > 0 && p < 0.01 ? "< 0.01 %" : `${p < 10 ? p.toFixed(2) : p.toFixed(1)} %`;
};
// White space and parts of characters, made visible.
const visible = (text) => (text === "" ? "(nothing)" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣"));

export class TokenStrip {
  constructor() {
    this.root = element("details", "tokens");
    this.root.open = true;
    this.summary = element("summary", "", "Token probabilities");
    this.list = element("div", "token-list");
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-label", "Tokens of the answer; arrow keys move");
    this.root.append(this.summary, this.list);
    this.decoder = new TextDecoder();
    this.entries = [];
    this.list.addEventListener("keydown", (event) => this.onKey(event));
    this.list.addEventListener("focusin", (event) => this.onFocus(event));
    this.list.addEventListener("focusout", hidePopup);
    this.list.addEventListener("scroll", hidePopup);
    this.list.addEventListener("mouseover", (event) => this.showOf(event.target));
    this.list.addEventListener("mouseleave", () => {
      if (!this.list.contains(document.activeElement)) hidePopup();
    });
  }

  // entries: of the API's logprobs.content.
  add(entries) {
    for (const entry of entries) {
      const token = element("span", `token p${level(entry.logprob)}`, this.textOf(entry));
      token.setAttribute("role", "option");
      token.setAttribute("aria-selected", "false");
      token.setAttribute("aria-label", described(entry));
      token.dataset.index = this.entries.length;
      token.tabIndex = this.entries.length ? -1 : 0;
      this.entries.push(entry);
      this.list.append(token);
    }
    this.summary.textContent = `Probabilities of ${this.entries.length} tokens`;
  }

  // A token may be a part of a character: its text shows where the character is whole.
  textOf(entry) {
    if (!entry.bytes?.length) return entry.token;
    const text = this.decoder.decode(new Uint8Array(entry.bytes), { stream: true });
    return text.replaceAll("\n", "↵\n") || "·";
  }

  onKey(event) {
    const at = Number(event.target.dataset.index);
    const last = this.entries.length - 1;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape" && !$("popup").hidden) {
      hidePopup();
      event.stopPropagation();
    } else if (to !== undefined) {
      event.preventDefault();
      this.list.children[Math.max(0, Math.min(last, to))].focus();
    }
  }

  onFocus(event) {
    for (const token of this.list.querySelectorAll("[tabindex='0']")) {
      token.tabIndex = -1;
      token.setAttribute("aria-selected", "false");
    }
    event.target.tabIndex = 0;
    event.target.setAttribute("aria-selected", "true");
    this.showOf(event.target);
  }

  showOf(token) {
    const entry = this.entries[token.dataset?.index];
    if (entry) showPopup(token, entry);
  }
}

function level(logprob) {
  const at = LEVELS.findIndex((limit) => Math.exp(logprob) >= limit);
  return at < 0 ? LEVELS.length : at;
}

function described(entry) {
  const others = (entry.top_logprobs || []).map((other) => `${visible(other.token)} ${percent(other.logprob)}`);
  const told = `${visible(entry.token)}, probability ${percent(entry.logprob)}`;
  return others.length ? `${told}; likeliest: ${others.join(", ")}` : told;
}

function showPopup(token, entry) {
  const popup = $("popup");
  const row = (text, logprob, chosen) => {
    const line = element("tr", chosen ? "chosen" : "");
    line.append(element("td", "", visible(text)), element("td", "", percent(logprob)));
    return line;
  };
  const top = entry.top_logprobs || [];
  const rows = top.map((other) => row(other.token, other.logprob, other.token === entry.token));
  if (!top.some((other) => other.token === entry.token)) rows.push(row(entry.token, entry.logprob, true));
  const table = element("table");
  table.append(...rows);
  popup.replaceChildren(table);
  popup.hidden = false;
  const place = token.getClientRects()[0] ?? token.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = popup;
  const below = place.bottom + 4 + height <= innerHeight;
  popup.style.left = `${Math.max(4, Math.min(place.left, document.documentElement.clientWidth - width - 4))}px`;
  popup.style.top = `${below ? place.bottom + 4 : Math.max(4, place.top - height - 4)}px`;
}

export function hidePopup() {
  $("popup").hidden = true;
}
