// The page: the conversation, and how the panels work together.

import { $, FieldError, button, copy, keep, kept, markField, remember, say } from "./dom.js";
import { ServerError, getJson, setKey } from "./api.js";
import { Answer } from "./answering.js";
import { MessageView } from "./message.js";
import { buildParameters, readParameters, showModelDefaults } from "./parameters.js";
import { hidePopup } from "./probabilities.js";
import { curl, python } from "./snippets.js";
import { ServerPanel } from "./status.js";
import { buildForm, judged, readForm } from "./structured.js";
import { buildTools, readTools } from "./tools.js";

const PANELS = ["settings", "server"];
const entries = []; // {message, view}: as the API takes it, and its place on the page; a tool's result has no view
let running = null; // AbortController of the answer that is being written
let panel = null; // ServerPanel
let built = false; // the parameter panel

// ---- asking

// What the panels say, as fields of a chat completion. Shows what is wrong and gives null if something is.
function settings() {
  try {
    return { ...readParameters(), ...readTools(), ...readForm() };
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    show("settings", true);
    for (let box = error.field.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    markField(error.field, false);
    error.field.focus();
    say(error.message);
    return null;
  }
}

function requestBody(asked) {
  const messages = entries.map((entry) => entry.message);
  const system = $("system").value.trim();
  if (system) messages.unshift({ role: "system", content: system });
  return { model: $("model").textContent, messages, ...asked };
}

function push(message, view = null) {
  entries.push({ message, view });
}

// Take the message of `view` and everything after it out of the conversation.
function cutFrom(view) {
  const at = entries.findIndex((entry) => entry.view === view);
  for (const entry of entries.splice(at < 0 ? entries.length : at)) entry.view?.remove();
  view.remove();
  $("empty").hidden = entries.length > 0;
}

function send() {
  const text = $("input").value.trim();
  if (!text || running) return;
  const open = entries.at(-1)?.view?.cards;
  if (open?.waiting.length) {
    say("First the result of the tool call");
    open.focus();
    return;
  }
  const asked = settings();
  if (!asked) return;
  $("input").value = "";
  grow();
  const view = new MessageView("user");
  view.setText(text);
  view.finish("", "", { Edit: () => edit(view, text) });
  push({ role: "user", content: text }, view);
  answer(asked);
}

function edit(view, text) {
  if (running) return;
  cutFrom(view);
  $("input").value = text;
  grow();
  $("input").focus();
  say("Change the message and send it again");
}

function sendResults(messages) {
  const asked = running ? null : settings();
  if (!asked) return false;
  for (const message of messages) push(message);
  answer(asked);
  return true;
}

function again(view) {
  const asked = running ? null : settings();
  if (!asked) return;
  cutFrom(view);
  answer(asked);
}

// ---- an answer

async function answer(asked) {
  const made = new Answer(requestBody(asked));
  const view = new MessageView("assistant", sendResults);
  view.root.classList.add("busy");
  follow(true);
  running = new AbortController();
  setBusy(true);
  const draw = atMostOncePerFrame(() => render(view, made));
  let failure = null;
  try {
    await made.run(running.signal, (logprobs) => {
      if (logprobs.length) view.addTokens(logprobs);
      draw();
    });
  } catch (error) {
    if (error.name === "AbortError") made.note = "stopped";
    else failure = error;
  }
  draw.cancel();
  running = null;
  settle(view, made, failure);
}

function render(view, made) {
  const near = nearEnd();
  view.setReasoning(made.reasoning, !made.text && !made.calls.length, made.reasoningTokens);
  view.setText(made.text);
  view.cards.update(made.calls);
  say("writing…"); // the figures change too often to be read out
  view.foot.textContent = made.speed ? `${made.tokens} tokens · ${made.speed.toFixed(0)} tokens/s` : "";
  follow(near);
}

// The answer is over: bring the page and the conversation to its end.
function settle(view, made, failure) {
  render(view, made);
  view.foot.replaceChildren();
  view.setReasoning(made.reasoning, false, made.reasoningTokens);
  view.root.classList.remove("busy");
  const calls = view.cards.finish(made.calls);
  const verdict = made.text && !calls.length ? judged(made.body, made.text) : null;
  if (verdict) view.setVerdict(verdict);
  const entry = { role: "assistant", content: made.text || null };
  if (calls.length) entry.tool_calls = calls;
  if (made.text || calls.length) push(entry, view);
  view.finish(made.text, made.figures(), failure ? {} : { Regenerate: () => again(view) });
  setBusy(false);
  say(failure ? "error" : calls.length ? "ready; a tool's result is asked for" : "ready");
  if (failure) showFailure(view, failure);
  else if (calls.length) view.cards.focus();
  else $("input").focus();
  follow(true);
}

function showFailure(view, error) {
  let told = error instanceof ServerError ? error.message : `Something went wrong: ${error.message}`;
  if (error.status === 401) {
    askForKey();
    told += " Enter it under Settings.";
  } else $("input").focus();
  view.showError(told, () => again(view));
}

function setBusy(busy) {
  $("send").hidden = busy;
  $("stop-button").hidden = !busy;
  $("new-chat").disabled = busy;
  $("messages").setAttribute("aria-busy", String(busy));
  document.body.classList.toggle("answering", busy);
  if (!busy) return;
  say("waiting…");
  $("input").focus(); // what had the focus is hidden or gone
}

function atMostOncePerFrame(action) {
  let frame = 0;
  const draw = () => {
    frame = frame || requestAnimationFrame(() => {
      frame = 0;
      action();
    });
  };
  draw.cancel = () => cancelAnimationFrame(frame);
  return draw;
}

function nearEnd() {
  const box = $("messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 80;
}

function follow(wasNear) {
  if (wasNear) $("messages").scrollTop = $("messages").scrollHeight;
}

// ---- the rest of the page

function grow() {
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight + 2}px`;
}

function show(name, open) {
  $(name).hidden = !open;
  $(`${name}-toggle`).setAttribute("aria-expanded", String(open));
  if (open && matchMedia("(max-width: 44rem)").matches) {
    for (const other of PANELS) if (other !== name) show(other, false);
  }
  if (name === "server") panel?.update();
}

function askForKey() {
  show("settings", true);
  $("connection").open = true;
  $("api-key").focus();
}

function showCode(write, name) {
  const asked = settings();
  if (!asked) return;
  const body = requestBody(asked);
  const text = $("input").value.trim();
  if (text) body.messages.push({ role: "user", content: text });
  $("code").value = write(body);
  $("code-box").hidden = false;
  copy($("code").value, $("code")).then((done) => say(done ? `${name} copied` : `${name} is selected; copy it from there`));
}

async function connect() {
  try {
    if (!built) {
      await buildParameters();
      built = true;
    }
    const name = (await getJson("v1/models")).data[0].id;
    $("model").textContent = name;
    document.title = `Chat with ${name}`;
    showModelDefaults(await getJson("model_info"));
    say("ready");
    panel.update();
  } catch (error) {
    say(error.status === 401 ? "API key needed" : error.message);
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
$("messages").addEventListener("scroll", hidePopup);
$("stop-button").addEventListener("click", () => running?.abort());
$("new-chat").addEventListener("click", () => {
  entries.length = 0;
  $("messages").replaceChildren($("empty"));
  $("empty").hidden = false;
  hidePopup();
  say("ready");
  $("input").focus();
});
for (const name of PANELS) $(`${name}-toggle`).addEventListener("click", () => show(name, $(name).hidden));
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  keep("localStorage", "theme", root.dataset.theme);
});
$("key-form").addEventListener("submit", (event) => event.preventDefault()); // Enter in the field changes it
$("api-key").addEventListener("change", () => {
  setKey($("api-key").value.trim());
  connect();
});
$("code-buttons").append(
  button("Copy as curl", () => showCode(curl, "The command")),
  button("Copy as Python", () => showCode(python, "The code")),
);
if (kept("localStorage", "theme")) document.documentElement.dataset.theme = kept("localStorage", "theme");
remember($("system"));
buildTools();
buildForm();
panel = new ServerPanel();
connect();
