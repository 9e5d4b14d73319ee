// The server's half of the page: requests and server-sent events. No page elements here.

import { keep, kept } from "./dom.js";

let key = kept("sessionStorage", "api-key"); // of this tab, and never part of an address

export function setKey(value) {
  key = value;
  keep("sessionStorage", "api-key", value);
}

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // HTTP status, 0 if the server was not reached
  }
}

async function request(path, options = {}) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error instanceof TypeError && /headers|latin|ByteString/i.test(error.message)) {
      throw new ServerError("The API key has characters that cannot be sent.", 401);
    }
    throw new ServerError("The server cannot be reached.", 0);
  }
  if (reply.ok) return reply;
  const told = await reply.json().then((body) => body.error?.message, () => null);
  throw new ServerError(told || `The server answered ${reply.status}.`, reply.status);
}

export async function getJson(path, signal) {
  return (await request(path, { signal })).json();
}

// Yields the events of a chat completion as they come; throws ServerError, or AbortError once `signal` says so.
export async function* chatEvents(body, signal) {
  const reply = await request("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ServerError("The connection ended before the answer did.", 0);
    pending += value;
    for (let end = pending.indexOf("\n\n"); end >= 0; end = pending.indexOf("\n\n")) {
      const line = pending.slice(0, end);
      pending = pending.slice(end + 2);
      if (!line.startsWith("data: ")) continue;
      const data = line.slice(6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message, 200);
      yield event;
    }
  }
}
