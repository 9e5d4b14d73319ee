// The next request as a command line and as Python. Keys are never in them: they come from the environment.

const NOT_OPENAI = new Set([
  "top_k", "min_p", "min_tokens", "repetition_penalty", "stop_token_ids", "ignore_eos", "include_stop_str_in_output",
  "no_stop_trim", "skip_special_tokens", "chat_template_kwargs", "regex", "guided_choice", "ebnf",
]);

export function curl(body) {
  const text = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return [
    `curl '${address("v1/chat/completions")}' \\`,
    "  -H 'Content-Type: application/json' \\",
    '  -H "Authorization: Bearer $CORE_API_KEY" \\',
    `  -d '${text}'`,
  ].join("\n");
}

export function python(body) {
  const arguments_ = [], extra = {};
  for (const [name, value] of Object.entries(body)) {
    if (NOT_OPENAI.has(name)) extra[name] = value;
    else arguments_.push(`    ${name}=${literal(value, 1)},`);
  }
  if (Object.keys(extra).length) arguments_.push(`    extra_body=${literal(extra, 1)},`);
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(address("v1"))}, api_key=os.environ.get("CORE_API_KEY", "none"))`,
    "answer = client.chat.completions.create(",
    ...arguments_,
    ")",
    "print(answer.choices[0].message)",
  ].join("\n");
}

function address(path) {
  return new URL(path, document.baseURI).href.replaceAll("'", "%27");
}

// A JSON value in Python's spelling. JSON strings are Python strings.
function literal(value, depth = 0) {
  const inner = "    ".repeat(depth + 1), end = `\n${"    ".repeat(depth)}`;
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) {
    return value.length ? `[\n${value.map((item) => inner + literal(item, depth + 1)).join(",\n")},${end}]` : "[]";
  }
  if (typeof value !== "object") return JSON.stringify(value);
  const rows = Object.entries(value).map(([name, item]) => `${inner}${JSON.stringify(name)}: ${literal(item, depth + 1)}`);
  return rows.length ? `{\n${rows.join(",\n")},${end}}` : "{}";
}
