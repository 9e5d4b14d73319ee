// One streamed answer: what has come so far, and its figures.

import { chatEvents } from "./api.js";

export class Answer {
  constructor(body) {
    this.body = { ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
    this.text = this.reasoning = this.note = "";
    this.calls = [];
    this.usage = null;
    this.start = performance.now();
    this.first = this.last = 0; // when tokens came
  }

  // onChange: called after each event, with the log-probabilities that it brought. Throws what chatEvents throws.
  async run(signal, onChange) {
    for await (const event of chatEvents(this.body, signal)) {
      const choice = event.choices[0];
      const counted = event.usage?.completion_tokens ?? 0;
      if (counted > this.tokens) {
        this.last = performance.now();
        this.first = this.first || this.last;
      }
      if (event.usage) this.usage = event.usage;
      if (!choice) continue;
      this.take(choice.delta);
      if (choice.finish_reason === "length") this.note = "cut at the token limit";
      onChange(choice.logprobs?.content || []);
    }
  }

  take(delta) {
    this.text += delta.content || "";
    this.reasoning += delta.reasoning_content || "";
    for (const piece of delta.tool_calls || []) {
      if (piece.id) this.calls[piece.index] = { id: piece.id, type: "function", function: { name: piece.function.name, arguments: "" } };
      this.calls[piece.index].function.arguments += piece.function.arguments || "";
    }
  }

  get tokens() {
    return this.usage?.completion_tokens ?? 0;
  }

  get reasoningTokens() {
    return this.usage?.completion_tokens_details?.reasoning_tokens ?? 0;
  }

  get speed() {
    const seconds = (this.last - this.first) / 1000;
    return this.tokens > 1 && seconds > 0 ? (this.tokens - 1) / seconds : 0;
  }

  figures() {
    const told = this.note ? [this.note] : [];
    if (this.usage) {
      const cached = this.usage.prompt_tokens_details?.cached_tokens ?? 0;
      told.push(`prompt ${this.usage.prompt_tokens} tokens, ${cached} cached`);
      told.push(`answer ${this.tokens} tokens${this.reasoningTokens ? `, ${this.reasoningTokens} reasoning` : ""}`);
    }
    if (this.first) told.push(`first token after ${((this.first - this.start) / 1000).toFixed(2)} s`);
    if (this.speed) told.push(`${this.speed.toFixed(1)} tokens/s`);
    return told.join(" · ");
  }
}
