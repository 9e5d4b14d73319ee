// The parameter panel. What there is, its range and its default come from the server (page/parameters.json).

import { $, FieldError, element, isObject, jsonOf, markField, remember } from "./dom.js";
import { getJson } from "./api.js";

const FIRST = [
  "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "stop",
  "frequency_penalty", "presence_penalty", "repetition_penalty",
];
const HOW = {
  strings: " One a line; \\n stands for a line break.",
  integers: " Separated by commas.",
  object: " As a JSON object.",
};
let table = [];

const idOf = (name) => `param-${name}`;

export async function buildParameters() {
  table = (await getJson("page/parameters.json")).parameters;
  const rank = ({ name }) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
  for (const parameter of [...table].sort((a, b) => rank(a) - rank(b))) {
    $(FIRST.includes(parameter.name) ? "parameters" : "more-parameters").append(field(parameter));
  }
  for (const id of ["logprobs", "top_logprobs", "thinking", "reasoning_effort", "chat_template_kwargs"]) remember($(id));
}

function field(parameter) {
  const { name, kind, summary } = parameter;
  const box = element("div", "field");
  const label = element("label", "", name);
  const input = element(...(kind === "boolean" ? ["select"] : kind === "strings" || kind === "object" ? ["textarea"] : ["input"]));
  const hint = element("small", "", summary + (HOW[kind] || "") + range(parameter));
  input.id = label.htmlFor = idOf(name);
  hint.id = `${input.id}-hint`;
  input.setAttribute("aria-describedby", hint.id);
  if (kind === "boolean") {
    for (const [value, text] of [["", `Default (${parameter.default})`], ["true", "yes"], ["false", "no"]]) {
      input.append(new Option(text, value));
    }
  } else if (kind === "number" || kind === "integer") {
    input.type = "number";
    input.step = kind === "integer" ? 1 : "any";
    if (parameter.minimum !== undefined) input.min = parameter.minimum;
    if (parameter.maximum !== undefined) input.max = parameter.maximum;
  } else {
    input.spellcheck = false;
    input.rows = 2;
  }
  if (kind !== "boolean") showDefault(input, parameter.default);
  input.addEventListener("input", () => markField(input, true));
  remember(input);
  box.append(label, input, hint);
  return box;
}

function range({ minimum, maximum, exclusive_minimum: open }) {
  if (minimum === undefined) return "";
  const from = open ? `above ${minimum}` : `from ${minimum}`;
  if (maximum === undefined) return ` Range: ${from}.`;
  return Math.abs(maximum) >= 2 ** 53 - 1 ? "" : ` Range: ${from} to ${maximum}.`;
}

function showDefault(input, value) {
  input.placeholder = value === null || value === undefined || String(value) === "" ? "Default: none" : `Default: ${value}`;
}

// model: /model_info, whose checkpoint may recommend other defaults.
export function showModelDefaults(model) {
  for (const [name, value] of Object.entries(model.preferred_sampling_params || {})) {
    const input = $(idOf(name));
    if (input?.type === "number") input.placeholder = `Model's default: ${value}`;
  }
  $(idOf("max_tokens")).placeholder = `Up to the context of ${model.context_length}`;
}

// What the panel asks for, as fields of a chat completion. Throws FieldError.
export function readParameters() {
  const body = {};
  for (const parameter of table) {
    const value = read(parameter, $(idOf(parameter.name)));
    if (value !== undefined) body[parameter.name] = value;
  }
  if ($("logprobs").checked) {
    body.logprobs = true;
    body.top_logprobs = number($("top_logprobs"), { name: "top_logprobs" }) ?? 5;
  }
  const variables = $("chat_template_kwargs").value.trim() ? jsonOf($("chat_template_kwargs"), "chat_template_kwargs") : {};
  if (!isObject(variables)) throw new FieldError($("chat_template_kwargs"), "chat_template_kwargs must be a JSON object");
  if ($("thinking").value) {
    const on = $("thinking").value === "on";
    Object.assign(variables, { enable_thinking: on, thinking: on }); // templates differ in the name
  }
  if (Object.keys(variables).length) body.chat_template_kwargs = variables;
  if ($("reasoning_effort").value) body.reasoning_effort = $("reasoning_effort").value;
  return body;
}

function read(parameter, input) {
  const text = input.value;
  if (parameter.kind === "number" || parameter.kind === "integer") return number(input, parameter);
  if (text.trim() === "") return undefined;
  if (parameter.kind === "boolean") return text === "true";
  if (parameter.kind === "strings") return text.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
  if (parameter.kind === "integers") {
    const numbers = text.split(",").map((part) => Number(part));
    if (!numbers.every(Number.isSafeInteger)) throw new FieldError(input, `${parameter.name} must be whole numbers`);
    return numbers;
  }
  const value = jsonOf(input, parameter.name);
  if (!isObject(value)) throw new FieldError(input, `${parameter.name} must be a JSON object`);
  return value;
}

function number(input, { name, exclusive_minimum: open, minimum }) {
  if (!input.checkValidity()) throw new FieldError(input, `${name}: ${input.validationMessage}`);
  if (input.value === "") return undefined;
  const value = Number(input.value);
  if (open && value <= minimum) throw new FieldError(input, `${name} must be above ${minimum}`);
  return value;
}
