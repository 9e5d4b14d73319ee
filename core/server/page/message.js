// One message of the conversation on the page. What a model writes is only ever put into it as text.

import { $, button, copy, element, say } from "./dom.js";
import { TokenStrip } from "./probabilities.js";
import { CallCards } from "./tools.js";

export class MessageView {
  constructor(role, onResults) {
    this.root = element("article", `message ${role}`);
    this.who = element("h2", "who", role === "user" ? "You" : $("model").textContent);
    this.body = element("div", "text");
    this.cards = new CallCards(onResults);
    this.verdict = element("p", "verdict");
    this.foot = element("div", "foot");
    this.verdict.hidden = true;
    this.root.append(this.who, this.body, this.verdict, this.cards.root, this.foot);
    this.reasoning = this.tokens = null;
    $("empty").hidden = true;
    $("messages").append(this.root);
  }

  setText(text) {
    // Fenced code becomes a <pre>; the rest stays as it was written.
    const parts = text.split(/```[^\n`]*\n?/);
    this.body.replaceChildren(
      ...parts.map((part, i) => {
        if (i % 2) return element("pre", "", part.replace(/\n$/, ""));
        const before = i + 1 < parts.length ? part.replace(/\n+$/, "") : part; // the block has a margin of its own
        return document.createTextNode(i ? before.replace(/^\n+/, "") : before);
      }),
    );
  }

  setReasoning(text, open, tokens) {
    if (!text) return;
    if (!this.reasoning) {
      this.reasoning = element("details", "reasoning");
      this.reasoning.append(element("summary"), element("div", "text"));
      this.root.insertBefore(this.reasoning, this.body);
    }
    const count = tokens ? ` · ${tokens} tokens` : "";
    this.reasoning.firstChild.textContent = (open ? "Thinking…" : "Thoughts") + count;
    this.reasoning.lastChild.textContent = text;
  }

  addTokens(entries) {
    if (!this.tokens) {
      this.tokens = new TokenStrip();
      this.root.insertBefore(this.tokens.root, this.foot);
    }
    this.tokens.add(entries);
  }

  // verdict: of structured.judged.
  setVerdict({ valid, told, text }) {
    this.verdict.hidden = false;
    this.verdict.textContent = `${valid ? "✓" : "✗"} ${told}`;
    this.verdict.classList.add(valid ? "valid" : "invalid");
    if (valid) this.body.replaceChildren(element("pre", "", text));
  }

  // actions: label -> function, beside copying.
  finish(text, figures, actions) {
    if (figures) this.foot.append(element("span", "figures", figures));
    if (text) {
      this.foot.append(button("Copy", async (made) => {
        const done = await copy(text);
        made.textContent = done ? "Copied" : "Copying is not allowed here";
        if (done) say("copied");
      }));
    }
    for (const [label, action] of Object.entries(actions)) this.foot.append(button(label, action));
  }

  showError(message, retry) {
    const box = element("div", "error");
    box.setAttribute("role", "alert");
    box.append(element("p", "", message), button("Try again", retry));
    this.root.append(box);
  }

  remove() {
    this.root.remove();
  }
}
