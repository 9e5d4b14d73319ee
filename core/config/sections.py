"""The settings, one frozen pydantic section per component that uses them.

Flag names are the field names with dashes (`--max-running-requests`); `aliases` in `json_schema_extra` lists
spellings that users of other servers type. `None` means: decided from model and hardware, and recorded.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _aka(*names: str) -> dict[str, Any]:
    return {"aliases": list(names)}


class ModelSettings(Section):
    """Which checkpoint, and how it is read."""

    model: str | None = Field(
        None,
        description="Folder of a Hugging Face checkpoint, or the name of a bundled one. Default: the bundled default.",
        json_schema_extra=_aka("model-path"),
    )
    served_model_name: str | None = Field(None, description="Name in replies. Default: the model as given.")
    tokenizer: str | None = Field(
        None, description="Tokenizer folder. Default: the model's.", json_schema_extra=_aka("tokenizer-path")
    )
    chat_template: str | None = Field(None, description="File with a Jinja chat template. Default: the tokenizer's.")
    load_format: Literal["auto", "safetensors", "dummy"] = Field(
        "auto", description="dummy: random weights, nothing read but the configuration."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Compute type.")
    context_length: int | None = Field(
        None, ge=1, description="Most tokens of prompt plus output.", json_schema_extra=_aka("max-model-len")
    )
    model_plugin: str | None = Field(
        None,
        description="Which plugin of the architecture, as `distribution:name`. Default: the device's own.",
    )
    quantization: str | None = Field(None, description="Quantization plugin. Default: what the checkpoint states.")
    load_threads: int = Field(4, ge=1, le=64, description="Threads that read weight files.")
    task: Literal["auto", "generate", "embed", "classify", "score"] = Field(
        "auto",
        description="What the model does. embed: vectors alone, built without a language-model head. score: it ranks "
        "documents, by its head or, if it generates, by answering yes or no. auto: what architecture and checkpoint "
        "are for.",
    )
    is_embedding: bool = Field(False, description="Same as --task embed.")
    pooling: Literal["auto", "last", "mean", "first", "cls"] = Field(
        "auto",
        description="Which hidden states make a text's vector; cls is first. With a model that generates: it gives "
        "vectors too. auto: what the checkpoint states, else the architecture.",
    )
    normalize: Literal["auto", "on", "off"] = Field(
        "auto", description="Scale vectors to length 1. auto: what the checkpoint states, else on."
    )
    matryoshka: bool = Field(
        False, description="Let clients cut vectors to any `dimensions`, though the checkpoint does not say they may."
    )
    trust_remote_code: bool = Field(False, description="Let the tokenizer run code shipped with the checkpoint.")
    tool_call_parser: str | None = Field(
        None, description="Tool-call parser plugin; `none` is off. Default, and `auto`: the model's wish."
    )
    reasoning_parser: str | None = Field(
        None, description="Reasoning parser plugin; `none` is off. Default, and `auto`: the model's wish."
    )


class CacheSettings(Section):
    """Paged KV memory and the prefix cache."""

    page_size: int | None = Field(
        None, ge=1, le=1024, description="Tokens a KV page.", json_schema_extra=_aka("block-size")
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] = Field(
        "auto",
        description="Type of cached keys and values; fp8 is fp8_e4m3. auto: what the checkpoint asks for, where an "
        "attention plugin can, else the compute type.",
    )
    kv_scales_file: str | None = Field(
        None,
        description="JSON file of scales of cached keys and values, for a cache of fp8. Default: the checkpoint's "
        "scales, where it has some.",
        json_schema_extra=_aka("quantization-param-path"),
    )
    memory_fraction: float = Field(
        0.85,
        gt=0,
        le=1,
        description="Share of device memory for weights and KV cache.",
        json_schema_extra=_aka("mem-fraction-static", "gpu-memory-utilization"),
    )
    kv_cache_bytes: int | None = Field(None, ge=1, description="Bytes for the KV cache; overrides memory_fraction.")
    max_total_tokens: int | None = Field(None, ge=1, description="Most tokens the KV cache holds.")
    prefix_cache: str = Field("radix", description="Prefix cache plugin; `none` is off.")
    eviction_policy: Literal["lru", "lfu", "fifo", "priority"] = Field(
        "lru", description="Which cached prefix goes first.", json_schema_extra=_aka("radix-eviction-policy")
    )
    disable_radix_cache: bool = Field(
        False, description="Same as --prefix-cache none.", json_schema_extra=_aka("no-enable-prefix-caching")
    )


class SchedulerSettings(Section):
    """Which request gets how many tokens in the next step."""

    schedule_policy: str = Field(
        "fcfs", description="Schedule policy plugin: the order of waiting requests.",
        json_schema_extra=_aka("scheduling-policy"),
    )  # fmt: skip
    max_running_requests: int = Field(
        256, ge=1, le=65536, description="Most requests in one step.", json_schema_extra=_aka("max-num-seqs")
    )
    max_queued_requests: int = Field(1024, ge=1, description="Most waiting requests; more are answered 429.")
    chunked_prefill_size: int | None = Field(
        None,
        ge=1,
        description="Token budget of a step; longer prompts are cut.",
        json_schema_extra=_aka("max-num-batched-tokens"),
    )
    performance_mode: Literal["interactivity", "balanced", "throughput"] | None = Field(
        None,
        description="Token budget of a step where none is given: half, all or twice of what the device prefers. "
        "Larger steps are fewer; smaller ones keep running texts even. Default: balanced; throughput for `LLM`.",
    )
    max_queue_s: float | None = Field(
        None, gt=0, description="Most seconds that a request waits for its turn; then it is answered 503.",
        json_schema_extra=_aka("max-queue-seconds"),
    )  # fmt: skip
    priority_preemption: bool = Field(
        False, description="Waiting requests may take the place of running ones of lower priority.",
        json_schema_extra=_aka("enable-priority-scheduling"),
    )  # fmt: skip
    priority_preemption_threshold: int = Field(
        10, ge=1, description="By how much a priority must be higher for that.",
        json_schema_extra=_aka("priority-scheduling-preemption-threshold"),
    )  # fmt: skip
    schedule_low_priority_values_first: bool = Field(False, description="Lower values of `priority` are more urgent.")
    low_priority_share: int = Field(
        32, ge=0, description="After so many admissions of higher priorities, one of a lower one; 0: never."
    )


class EngineSettings(Section):
    """The loop, its process and its kernels."""

    device: str = Field("auto", description="Hardware plugin.")
    attention_backend: str = Field("auto", description="Attention plugin.")
    moe_backend: str = Field(
        "auto", description="Mixture-of-experts plugin.", json_schema_extra=_aka("moe-runner-backend")
    )
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        description="Ranks that share each layer, each a process with a device of its own.",
        json_schema_extra=_aka("tp-size", "tp"),
    )
    overlap: Literal["auto", "on", "off"] = Field(
        "auto", description="Schedule the next step while one runs. auto: where the device allows it."
    )
    cpu_threads: int | None = Field(
        None, ge=1, description="Compute threads on the CPU, of each rank. Default: all cores, shared by the ranks."
    )
    deterministic: bool = Field(
        False, description="Same bits for a request alone and in any batch; slower. Refused where a plugin cannot.",
        json_schema_extra=_aka("enable-deterministic-inference", "batch-invariant"),
    )  # fmt: skip
    random_seed: int | None = Field(None, description="Seed of dummy weights and of requests that give none.")
    on_engine_death: Literal["restart", "exit"] = Field("restart", description="What to do if the engine process dies.")
    hooks: tuple[str, ...] = Field(
        ("auto",), description="Hook plugins that listen. auto: all installed ones that work; none: no listener."
    )
    log_interval_s: float = Field(10.0, ge=0, description="Seconds between lines of the step log; 0 is off.")
    grammar_backend: str = Field(
        "auto",
        description="Grammar plugin for structured output. auto: the first installed one that works; none: off.",
        json_schema_extra=_aka("guided-decoding-backend", "structured-outputs-backend"),
    )
    grammar_timeout_s: float = Field(10.0, gt=0, description="Seconds that compiling one grammar may take.")
    grammar_cache_bytes: int = Field(64 << 20, ge=0, description="Most memory of compiled grammars that are kept.")
    max_grammar_bytes: int = Field(256 << 10, ge=1, description="Largest grammar or JSON schema of a request.")
    grammar_threads: int = Field(2, ge=1, le=64, description="Threads that compile grammars.")
    logit_processors: tuple[str, ...] = Field(
        (), description="Logit processor plugins that requests may name. Default: none.",
        json_schema_extra=_aka("logits-processors"),
    )  # fmt: skip
    device_core_dumps: str | None = Field(
        None, description="Folder for core dumps of the device, where it can write them. Default: none."
    )
    disable_plugins: tuple[str, ...] = Field(
        (), description="Plugins never to load: names, `distribution:name`, `kind/name` or whole distributions."
    )


class ServerSettings(Section):
    """HTTP."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(30000, ge=0, le=65535, description="Port; 0 picks a free one.")
    api_key: str | None = Field(None, description="Bearer token that /v1 and native routes require.")
    api_keys_file: str | None = Field(
        None, description="TOML file of keys, one tenant each, with weights and limits. Read again on SIGHUP."
    )
    cache_isolation: Literal["off", "key"] = Field(
        "off", description="key: tenants share no cached prefixes unless their entry in api_keys_file says so."
    )
    request_timeout_s: float | None = Field(
        None, gt=0, description="Most seconds a request may take; it can ask for less. Default: no limit."
    )
    admin_api_key: str | None = Field(None, description="Bearer token of the admin routes, apart from users' keys.")
    admin_routes: Literal["auto", "on", "off"] = Field(
        "auto",
        description="auto: with the admin key, or without one from this machine only. on: without an admin key from "
        "anywhere, with a user's key. off: there are none.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Log level.")
    log_format: Literal["text", "json"] = Field(
        "text", description="Log lines as text or JSON.", json_schema_extra=_aka("log-requests-format")
    )
    log_requests: bool = Field(
        False, description="Log every request at its start and end.", json_schema_extra=_aka("enable-log-requests")
    )
    log_requests_level: int = Field(
        0, ge=0, le=3, description="What of a request: 0 facts, 1 parameters, 2 texts cut at 2048 bytes, 3 whole texts."
    )
    metrics_aliases: Literal["none", "sglang", "vllm", "both"] = Field(
        "none", description="Expose the metrics under these servers' names too."
    )
    otlp_traces_endpoint: str | None = Field(
        None,
        description="OTLP/HTTP collector of OpenTelemetry traces, or `env`: the one in OTEL_EXPORTER_OTLP_*. "
        "Default: no traces.",
    )
    otlp_service_name: str = Field("core", description="Service name in traces; OTEL_SERVICE_NAME wins.")
    profile_dir: str | None = Field(None, description="Folder for traces of /start_profile. Default: no profiles.")
    stream_events_per_s: int = Field(
        1000, ge=0,
        description="While more than 8 answers are streamed, about so many events a second are sent in all, each with "
        "the tokens that came meanwhile; none waits longer than 50 ms. 0 sends every token at once.",
    )  # fmt: skip
    max_n: int = Field(16, ge=1, description="Most samples (`n`) a request may ask for.")
    max_body_bytes: int = Field(32 << 20, ge=1024, description="Largest request body.")
    unknown_fields: Literal["warn", "refuse"] = Field(
        "warn", description="Request fields that no route knows: answer and name them in a header, or answer 400."
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="After SIGTERM, seconds for running requests to finish.")
    cors_allow_origins: tuple[str, ...] = Field((), description="Origins that browsers may call from.")
    chat_page: bool = Field(True, description="Serve the chat page at /.")
    response_store: int = Field(
        0, ge=0,
        description="Most answers of /v1/responses kept in memory, for `previous_response_id`, `background` and GET; "
        "0 keeps none.",
    )  # fmt: skip
    response_store_bytes: int = Field(
        64 << 20, ge=1024, description="Most bytes of kept answers with their conversations; the oldest go first."
    )
    routes: tuple[str, ...] = Field((), description="Route plugins whose routes are served too.")


class Settings(Section):
    """All of it. `plugins`: one mapping per plugin name (`--set NAME.key=value`)."""

    model: ModelSettings = ModelSettings()
    cache: CacheSettings = CacheSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()
    plugins: dict[str, dict[str, Any]] = {}
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def source(self, dotted: str) -> str:
        """Who decided `section.name` or `plugins.NAME.key`, e.g. "flag --dtype"; "" if nobody did, or if these settings
        crossed a process boundary."""
        return self._sources.get(dotted, "")

    def for_throughput(self) -> Settings:
        """These, with steps as large as suits a program that waits for whole answers, unless they say otherwise."""
        if self.scheduler.performance_mode is not None:
            return self
        scheduler = self.scheduler.model_copy(update={"performance_mode": "throughput"})
        return self.model_copy(update={"scheduler": scheduler})
