// The chat page. What a model writes is only ever put into the page as text, never as HTML.

import { ServerError, chatEvents, modelName } from "/page/stream.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["system", "temperature", "top_p", "max_tokens", "seed", "tools"];
const conversation = []; // messages as the API takes them
let running = null; // AbortController of the answer that is being written
let apiKey = sessionStorage.getItem("api-key") || "";

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// ---- one message on the page

class MessageView {
  constructor(role) {
    this.root = element("article", `message ${role}`);
    this.root.append(element("div", "who", role === "user" ? "You" : $("model").textContent));
    this.reasoning = null;
    this.body = element("div", "text");
    this.calls = element("div");
    this.foot = element("div", "foot");
    this.root.append(this.body, this.calls, this.foot);
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

  setReasoning(text, open) {
    if (!text) return;
    if (!this.reasoning) {
      this.reasoning = element("details");
      this.reasoning.append(element("summary"), element("div", "text"));
      this.root.insertBefore(this.reasoning, this.body);
    }
    this.reasoning.firstChild.textContent = open ? "Thinking…" : "Thoughts";
    this.reasoning.lastChild.textContent = text;
  }

  setCalls(calls) {
    this.calls.replaceChildren(
      ...calls.map((call) => element("div", "call", `${call.function.name}(${call.function.arguments})`)),
    );
  }

  addButton(label, action) {
    const button = element("button", "", label);
    button.type = "button";
    button.addEventListener("click", () => action(button));
    this.foot.append(button);
  }

  finish(text, figures) {
    if (figures) this.foot.append(element("span", "", figures));
    if (text) {
      this.addButton("Copy", async (button) => {
        await navigator.clipboard.writeText(text).then(
          () => (button.textContent = "Copied"),
          () => (button.textContent = "Copying is not allowed here"),
        );
      });
    }
  }

  showError(message, retry) {
    const box = element("div", "error");
    box.setAttribute("role", "alert");
    box.append(element("p", "", message));
    const button = element("button", "", "Try again");
    button.type = "button";
    button.addEventListener("click", retry);
    box.append(button);
    this.root.append(box);
  }
}

function nearEnd() {
  const box = $("messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 80;
}

function follow(wasNear) {
  if (wasNear) $("messages").scrollTop = $("messages").scrollHeight;
}

// ---- asking

function requestBody() {
  const body = { messages: [...conversation], stream: true, stream_options: { include_usage: true } };
  const system = $("system").value.trim();
  if (system) body.messages.unshift({ role: "system", content: system });
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if ($(name).value !== "") body[name] = Number($(name).value);
  }
  const tools = $("tools").value.trim();
  if (tools) body.tools = JSON.parse(tools);
  return body;
}

function figures(start, first, end, tokens, stopped) {
  const told = [];
  if (stopped) told.push(stopped);
  if (first) told.push(`first token after ${((first - start) / 1000).toFixed(2)} s`);
  if (tokens > 1 && end > first) told.push(`${(((tokens - 1) * 1000) / (end - first)).toFixed(1)} tokens/s`);
  if (tokens) told.push(`${tokens} tokens`);
  return told.join(" · ");
}

async function answer() {
  const view = new MessageView("assistant");
  view.root.classList.add("busy");
  follow(true);
  running = new AbortController();
  setBusy(true);
  const start = performance.now();
  const made = { text: "", reasoning: "", calls: [] };
  let first = 0, last = 0, tokens = 0, note = "", failure = null;
  try {
    for await (const event of chatEvents(requestBody(), apiKey, running.signal)) {
      if (event.usage) tokens = event.usage.completion_tokens;
      const choice = event.choices[0];
      if (!choice) continue;
      const delta = choice.delta;
      if (delta.content || delta.reasoning_content || delta.tool_calls) {
        last = performance.now();
        first = first || last;
        if (!event.usage) tokens += 1; // exact once the usage comes
      }
      take(made, delta);
      const near = nearEnd();
      view.setReasoning(made.reasoning, !made.text);
      view.setText(made.text);
      view.setCalls(made.calls);
      $("status").textContent = tokens > 1 && last > first ? `${(((tokens - 1) * 1000) / (last - first)).toFixed(0)} tokens/s` : "writing…";
      follow(near);
      if (choice.finish_reason === "length") note = "cut at the token limit";
    }
  } catch (error) {
    if (error.name === "AbortError") note = "stopped";
    else failure = error;
  }
  running = null;
  setBusy(false);
  view.root.classList.remove("busy");
  view.setReasoning(made.reasoning, false);
  const kept = made.text || made.calls.length;
  if (kept) {
    const message = { role: "assistant", content: made.text || null };
    if (made.calls.length) message.tool_calls = made.calls;
    conversation.push(message);
  }
  view.finish(made.text, figures(start, first, last, tokens, note));
  $("status").textContent = failure ? "error" : "ready";
  if (failure) showFailure(view, failure, kept);
  follow(true);
}

function take(made, delta) {
  made.text += delta.content || "";
  made.reasoning += delta.reasoning_content || "";
  for (const piece of delta.tool_calls || []) {
    if (piece.id) made.calls[piece.index] = { id: piece.id, type: "function", function: { name: piece.function.name, arguments: "" } };
    made.calls[piece.index].function.arguments += piece.function.arguments || "";
  }
}

function showFailure(view, error, kept) {
  let told = error instanceof ServerError ? error.message : `Something went wrong: ${error.message}`;
  if (error.status === 401) {
    askForKey();
    told += " Enter it under Settings.";
  }
  view.showError(told, () => {
    if (kept) conversation.pop();
    view.root.remove();
    answer();
  });
}

function setBusy(busy) {
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("new-chat").disabled = busy;
  $("messages").setAttribute("aria-busy", String(busy));
  if (busy) $("status").textContent = "waiting…";
  $("input").focus();
}

function toolsAreValid() {
  let valid = true;
  const text = $("tools").value.trim();
  if (text) {
    try {
      valid = Array.isArray(JSON.parse(text));
    } catch {
      valid = false;
    }
  }
  $("tools").setAttribute("aria-invalid", String(!valid));
  if (!valid) {
    showSettings(true);
    $("tools").focus();
    $("status").textContent = "Tools must be a JSON list";
  }
  return valid;
}

function send() {
  const text = $("input").value.trim();
  if (!text || running || !toolsAreValid()) return;
  $("input").value = "";
  grow();
  conversation.push({ role: "user", content: text });
  new MessageView("user").setText(text);
  answer();
}

// ---- the rest of the page

function grow() {
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight + 2}px`;
}

function showSettings(open) {
  $("settings").hidden = !open;
  $("settings-toggle").setAttribute("aria-expanded", String(open));
}

function askForKey() {
  $("key-field").hidden = false;
  showSettings(true);
  $("api-key").focus();
}

async function connect() {
  try {
    const name = await modelName(apiKey);
    $("model").textContent = name;
    document.title = `Chat with ${name}`;
    $("status").textContent = "ready";
  } catch (error) {
    $("status").textContent = error.status === 401 ? "API key needed" : error.message;
    if (error.status === 401) askForKey();
    else if (error.status === 503 || error.status === 0) setTimeout(connect, 1000); // still loading
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("input").addEventListener("input", grow);
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("new-chat").addEventListener("click", () => {
  conversation.length = 0;
  $("messages").replaceChildren($("empty"));
  $("empty").hidden = false;
  $("status").textContent = "ready";
  $("input").focus();
});
$("settings-toggle").addEventListener("click", () => showSettings($("settings").hidden));
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});
$("api-key").addEventListener("change", () => {
  apiKey = $("api-key").value;
  sessionStorage.setItem("api-key", apiKey);
  connect();
});
for (const name of SETTINGS) {
  $(name).value = localStorage.getItem(`setting-${name}`) || "";
  $(name).addEventListener("change", () => localStorage.setItem(`setting-${name}`, $(name).value));
}
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
connect();
