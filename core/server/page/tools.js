// Tools: their editor, and the cards of calls with room for the results.

import { $, FieldError, button, element, indented, isObject, jsonOf, markField, remember, say } from "./dom.js";

const text = (description) => ({ type: "string", description });
const tool = (name, description, properties, required) => ({
  type: "function",
  function: { name, description, parameters: { type: "object", properties, required } },
});
const EXAMPLE = [
  tool("get_weather", "Get the current weather of a city",
    { city: text("Name of the city"), unit: { type: "string", enum: ["celsius", "fahrenheit"] } }, ["city"]),
  tool("calculator", "Evaluate an arithmetic expression", { expression: text("The expression") }, ["expression"]),
  tool("search", "Search the web", { query: text("What to search for") }, ["query"]),
];
const CHOICES = [["", "Default (auto)"], ["auto", "auto"], ["none", "none"], ["required", "required: at least one call"]];

export function buildTools() {
  remember($("tools"));
  remember($("parallel_tool_calls"));
  $("tools").addEventListener("input", check);
  $("tools-example").addEventListener("click", () => {
    if ($("tools").value.trim()) return say("Empty the list of tools first");
    $("tools").value = JSON.stringify(EXAMPLE, null, 1);
    $("tools").dispatchEvent(new Event("change"));
    check();
  });
  check();
}

function check() {
  let names = [], told = "None";
  try {
    names = declared().map((entry) => entry.function.name);
    if (names.length) told = `Valid: ${names.join(", ")}`;
    markField($("tools"), true);
  } catch (error) {
    told = error.message;
    markField($("tools"), false);
  }
  $("tools-state").textContent = told;
  const chosen = $("tool_choice").value;
  $("tool_choice").replaceChildren(
    ...CHOICES.map(([value, label]) => new Option(label, value)),
    ...names.map((name) => new Option(`a call of ${name}`, `=${name}`)),
  );
  $("tool_choice").value = chosen;
  if ($("tool_choice").selectedIndex < 0) $("tool_choice").value = "";
}

// The declared tools. Throws FieldError saying which is wrong.
function declared() {
  if (!$("tools").value.trim()) return [];
  const tools = jsonOf($("tools"), "The list of tools");
  const wrong = (why) => new FieldError($("tools"), why);
  if (!Array.isArray(tools)) throw wrong("Tools must be a JSON list");
  tools.forEach((entry, index) => {
    const made = entry?.function;
    if (entry?.type !== "function" || !isObject(made)) throw wrong(`Tool ${index + 1} is no {"type": "function", "function": {…}}`);
    if (typeof made.name !== "string" || !made.name) throw wrong(`Tool ${index + 1} has no name`);
    if (made.parameters !== undefined && !isObject(made.parameters)) throw wrong(`The parameters of ${made.name} are no JSON schema`);
  });
  const names = tools.map((entry) => entry.function.name);
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice) throw wrong(`There are two tools named ${twice}`);
  return tools;
}

// Fields of a chat completion. Throws FieldError.
export function readTools() {
  const tools = declared();
  if (!tools.length) return {};
  const body = { tools };
  const choice = $("tool_choice").value;
  if (choice.startsWith("=")) body.tool_choice = { type: "function", function: { name: choice.slice(1) } };
  else if (choice) body.tool_choice = choice;
  if ($("parallel_tool_calls").value) body.parallel_tool_calls = $("parallel_tool_calls").value === "true";
  return body;
}

export function isComplete(call) {
  try {
    return isObject(JSON.parse(call.function.arguments || "{}"));
  } catch {
    return false;
  }
}

// The calls of one answer. onResults takes the tool messages once the user sends them,
// and says whether they went.
export class CallCards {
  constructor(onResults) {
    this.root = element("div", "calls");
    this.onResults = onResults;
    this.cards = [];
    this.waiting = []; // calls without a result, each with its field
  }

  update(calls) {
    calls.forEach((call, index) => {
      if (!this.cards[index]) this.cards[index] = this.addCard(index);
      const { title, given } = this.cards[index];
      title.textContent = call.function.name;
      given.textContent = isComplete(call) ? indented(call.function.arguments || "{}") : call.function.arguments;
    });
  }

  addCard(index) {
    const root = element("section", "call");
    const title = element("h3");
    const given = element("pre");
    title.id = `call-${crypto.getRandomValues(new Uint32Array(1))[0]}-${index}`;
    root.setAttribute("aria-labelledby", title.id);
    root.append(element("span", "kind", "Tool call"), title, given);
    this.root.append(root);
    return { root, title, given };
  }

  // calls: all of the answer. Those that are whole wait for results now; gives them.
  finish(calls) {
    this.waiting = calls.flatMap((call, index) => {
      const { root, title } = this.cards[index];
      if (!isComplete(call)) {
        root.append(element("p", "note", "This call was cut; it is left out of the conversation."));
        return [];
      }
      const label = element("label", "", `Result of ${call.function.name}`);
      const result = element("textarea");
      result.id = label.htmlFor = `${title.id}-result`;
      result.rows = 2;
      result.spellcheck = false;
      result.placeholder = 'What the tool returns, such as {"temperature": 21}';
      result.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.send();
      });
      root.append(label, result);
      return [{ call, result }];
    });
    if (this.waiting.length) {
      this.button = button(this.waiting.length > 1 ? "Send the results" : "Send the result", () => this.send());
      this.root.append(this.button);
    }
    return this.waiting.map(({ call }) => call);
  }

  focus() {
    this.waiting[0].result.focus();
  }

  send() {
    if (!this.waiting.length) return;
    const messages = this.waiting.map(({ call, result }) => ({ role: "tool", tool_call_id: call.id, content: result.value }));
    if (!this.onResults(messages)) return;
    this.button.remove();
    for (const { result } of this.waiting) result.readOnly = true;
    this.waiting = [];
  }
}
