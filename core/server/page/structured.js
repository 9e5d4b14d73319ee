// The form of the answer: its editor, and what became of it.

import { $, FieldError, indented, isObject, jsonOf, markField, remember, say } from "./dom.js";

const SCHEMA = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 }, country: { type: "string", maxLength: 20 }, large: { type: "boolean" } },
  required: ["city", "country", "large"],
  additionalProperties: false,
};
const KINDS = {
  text: null,
  json_object: null,
  json_schema: { label: "JSON schema", example: JSON.stringify(SCHEMA, null, 1) },
  regex: { label: "Regular expression that the whole answer matches", example: "[A-Z][a-z]{2,12}" },
  choice: { label: "The answer is one of these, one a line", example: "yes\nno\nmaybe" },
  ebnf: { label: "Grammar (GBNF) with a rule root", example: 'root ::= "yes" | "no"' },
};

export function buildForm() {
  remember($("form-kind"));
  remember($("form-text"));
  $("form-kind").addEventListener("change", show);
  $("form-text").addEventListener("input", () => markField($("form-text"), true));
  $("form-example").addEventListener("click", () => {
    if ($("form-text").value.trim()) return say("Empty the field first");
    $("form-text").value = KINDS[$("form-kind").value].example;
    $("form-text").dispatchEvent(new Event("change"));
  });
  show();
}

function show() {
  const kind = KINDS[$("form-kind").value];
  $("form-box").hidden = !kind;
  if (kind) $("form-label").textContent = kind.label;
  markField($("form-text"), true);
}

// Fields of a chat completion. Throws FieldError.
export function readForm() {
  const kind = $("form-kind").value, field = $("form-text");
  if (kind === "text") return {};
  if (kind === "json_object") return { response_format: { type: "json_object" } };
  if (!field.value.trim()) throw new FieldError(field, `${KINDS[kind].label}: the field is empty`);
  if (kind === "regex") return { regex: field.value };
  if (kind === "ebnf") return { ebnf: field.value };
  if (kind === "choice") return { guided_choice: field.value.split("\n").filter(Boolean) };
  const schema = jsonOf(field, "The JSON schema");
  if (!isObject(schema)) throw new FieldError(field, "The JSON schema must be an object");
  return { response_format: { type: "json_schema", json_schema: { name: "answer", strict: true, schema } } };
}

// What to say of an answer: {valid, told, text}, or null where no form was asked for. body: of the request.
export function judged(body, answer) {
  if (body.response_format) {
    try {
      JSON.parse(answer);
    } catch (error) {
      return { valid: false, told: `Not valid JSON: ${error.message}`, text: answer };
    }
    return { valid: true, told: "Valid JSON", text: indented(answer) };
  }
  if (body.guided_choice) {
    const valid = body.guided_choice.includes(answer);
    return { valid, told: valid ? "One of the choices" : "None of the choices", text: answer };
  }
  return null;
}
