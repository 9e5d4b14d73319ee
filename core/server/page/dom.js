// Small helpers over the document. Text only ever enters the page through textContent and value, never as HTML.

export const $ = (id) => document.getElementById(id);

export function element(tag, className = "", text = undefined) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function button(label, action) {
  const made = element("button", "", label);
  made.type = "button";
  made.addEventListener("click", () => action(made));
  return made;
}

// Told in the header, and politely to screen readers.
export function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

// A setting that cannot be sent: which field, and why.
export class FieldError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

export function markField(field, valid) {
  if (valid) field.removeAttribute("aria-invalid");
  else field.setAttribute("aria-invalid", "true");
}

// A browser that keeps nothing for this page throws; the page works without.
export function kept(storage, name) {
  try {
    return window[storage].getItem(name) || "";
  } catch {
    return "";
  }
}

export function keep(storage, name, value) {
  try {
    if (value) window[storage].setItem(name, value);
    else window[storage].removeItem(name);
  } catch {
    // Nothing to do: it lives as long as the page.
  }
}

// The field's value outlives the page.
export function remember(field) {
  const name = `setting-${field.id}`;
  const value = kept("localStorage", name);
  if (field.type === "checkbox") field.checked = value === "on";
  else if (value) field.value = value;
  field.addEventListener("change", () => {
    keep("localStorage", name, field.type === "checkbox" ? (field.checked ? "on" : "") : field.value);
  });
}

export function jsonOf(field, what) {
  try {
    return JSON.parse(field.value);
  } catch (error) {
    throw new FieldError(field, `${what} is no JSON: ${error.message}`);
  }
}

export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

// Without the clipboard (it needs HTTPS or localhost) the text is left selected for the user to copy.
export async function copy(text, place) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    place?.select?.();
    return false;
  }
}

// JSON text with line breaks and indents. Works on the text: numbers and repeated keys stay as they were written.
export function indented(text) {
  let out = "", depth = 0, quoted = false, previous = "";
  const line = () => `\n${"  ".repeat(depth)}`;
  for (let at = 0; at < text.length; at += 1) {
    const c = text[at];
    if (quoted) {
      out += c;
      if (c === "\\") out += text[(at += 1)] ?? "";
      else if (c === '"') quoted = false;
      continue;
    }
    if (/\s/.test(c)) continue;
    if (c === "}" || c === "]") {
      depth -= 1;
      if (previous !== "{" && previous !== "[") out += line();
    } else if (previous === "{" || previous === "[") out += line();
    out += c;
    if (c === '"') quoted = true;
    else if (c === "{" || c === "[") depth += 1;
    else if (c === ",") out += line();
    else if (c === ":") out += " ";
    previous = c;
  }
  return out;
}
