"""The public surface of the settings, frozen: a change here is a change for users and belongs in the changelog."""

from __future__ import annotations

from core.config.fields import by_name, nearest_setting, section_names, setting_fields
from core.config.sections import Settings

SURFACE = """
model.model --model --model-path CORE_MODEL text None
model.served_model_name --served-model-name CORE_SERVED_MODEL_NAME text None
model.tokenizer --tokenizer --tokenizer-path CORE_TOKENIZER text None
model.chat_template --chat-template CORE_CHAT_TEMPLATE text None
model.load_format --load-format CORE_LOAD_FORMAT text 'auto'
model.dtype --dtype CORE_DTYPE text 'auto'
model.context_length --context-length --max-model-len CORE_CONTEXT_LENGTH integer None
model.model_plugin --model-plugin CORE_MODEL_PLUGIN text None
model.quantization --quantization CORE_QUANTIZATION text None
model.load_threads --load-threads CORE_LOAD_THREADS integer 4
model.task --task CORE_TASK text 'auto'
model.is_embedding --is-embedding CORE_IS_EMBEDDING boolean False
model.pooling --pooling CORE_POOLING text 'auto'
model.normalize --normalize CORE_NORMALIZE text 'auto'
model.matryoshka --matryoshka CORE_MATRYOSHKA boolean False
model.trust_remote_code --trust-remote-code CORE_TRUST_REMOTE_CODE boolean False
model.tool_call_parser --tool-call-parser CORE_TOOL_CALL_PARSER text None
model.reasoning_parser --reasoning-parser CORE_REASONING_PARSER text None
cache.page_size --page-size --block-size CORE_PAGE_SIZE integer None
cache.kv_cache_dtype --kv-cache-dtype CORE_KV_CACHE_DTYPE text 'auto'
cache.kv_scales_file --kv-scales-file --quantization-param-path CORE_KV_SCALES_FILE text None
cache.memory_fraction --memory-fraction --mem-fraction-static --gpu-memory-utilization CORE_MEMORY_FRACTION number 0.85
cache.kv_cache_bytes --kv-cache-bytes CORE_KV_CACHE_BYTES integer None
cache.max_total_tokens --max-total-tokens CORE_MAX_TOTAL_TOKENS integer None
cache.prefix_cache --prefix-cache CORE_PREFIX_CACHE text 'radix'
cache.eviction_policy --eviction-policy --radix-eviction-policy CORE_EVICTION_POLICY text 'lru'
cache.disable_radix_cache --disable-radix-cache --no-enable-prefix-caching CORE_DISABLE_RADIX_CACHE boolean False
scheduler.schedule_policy --schedule-policy --scheduling-policy CORE_SCHEDULE_POLICY text 'fcfs'
scheduler.max_running_requests --max-running-requests --max-num-seqs CORE_MAX_RUNNING_REQUESTS integer 256
scheduler.max_queued_requests --max-queued-requests CORE_MAX_QUEUED_REQUESTS integer 1024
scheduler.chunked_prefill_size --chunked-prefill-size --max-num-batched-tokens CORE_CHUNKED_PREFILL_SIZE integer None
scheduler.performance_mode --performance-mode CORE_PERFORMANCE_MODE text None
scheduler.max_queue_s --max-queue-s --max-queue-seconds CORE_MAX_QUEUE_S number None
scheduler.priority_preemption --priority-preemption --enable-priority-scheduling CORE_PRIORITY_PREEMPTION boolean False
scheduler.priority_preemption_threshold --priority-preemption-threshold --priority-scheduling-preemption-threshold \
CORE_PRIORITY_PREEMPTION_THRESHOLD integer 10
scheduler.schedule_low_priority_values_first --schedule-low-priority-values-first \
CORE_SCHEDULE_LOW_PRIORITY_VALUES_FIRST boolean False
scheduler.low_priority_share --low-priority-share CORE_LOW_PRIORITY_SHARE integer 32
engine.device --device CORE_DEVICE text 'auto'
engine.attention_backend --attention-backend CORE_ATTENTION_BACKEND text 'auto'
engine.moe_backend --moe-backend --moe-runner-backend CORE_MOE_BACKEND text 'auto'
engine.tensor_parallel_size --tensor-parallel-size --tp-size --tp CORE_TENSOR_PARALLEL_SIZE integer 1
engine.overlap --overlap CORE_OVERLAP text 'auto'
engine.cpu_threads --cpu-threads CORE_CPU_THREADS integer None
engine.deterministic --deterministic --enable-deterministic-inference --batch-invariant CORE_DETERMINISTIC boolean False
engine.random_seed --random-seed CORE_RANDOM_SEED integer None
engine.on_engine_death --on-engine-death CORE_ON_ENGINE_DEATH text 'restart'
engine.hooks --hooks CORE_HOOKS list ('auto',)
engine.log_interval_s --log-interval-s CORE_LOG_INTERVAL_S number 10.0
engine.grammar_backend --grammar-backend --guided-decoding-backend --structured-outputs-backend CORE_GRAMMAR_BACKEND text 'auto'
engine.grammar_timeout_s --grammar-timeout-s CORE_GRAMMAR_TIMEOUT_S number 10.0
engine.grammar_cache_bytes --grammar-cache-bytes CORE_GRAMMAR_CACHE_BYTES integer 67108864
engine.max_grammar_bytes --max-grammar-bytes CORE_MAX_GRAMMAR_BYTES integer 262144
engine.grammar_threads --grammar-threads CORE_GRAMMAR_THREADS integer 2
engine.logit_processors --logit-processors --logits-processors CORE_LOGIT_PROCESSORS list ()
engine.device_core_dumps --device-core-dumps CORE_DEVICE_CORE_DUMPS text None
engine.disable_plugins --disable-plugins CORE_DISABLE_PLUGINS list ()
server.host --host CORE_HOST text '127.0.0.1'
server.port --port CORE_PORT integer 30000
server.api_key --api-key CORE_API_KEY text None
server.api_keys_file --api-keys-file CORE_API_KEYS_FILE text None
server.cache_isolation --cache-isolation CORE_CACHE_ISOLATION text 'off'
server.request_timeout_s --request-timeout-s CORE_REQUEST_TIMEOUT_S number None
server.admin_api_key --admin-api-key CORE_ADMIN_API_KEY text None
server.admin_routes --admin-routes CORE_ADMIN_ROUTES text 'auto'
server.log_level --log-level CORE_LOG_LEVEL text 'info'
server.log_format --log-format --log-requests-format CORE_LOG_FORMAT text 'text'
server.log_requests --log-requests --enable-log-requests CORE_LOG_REQUESTS boolean False
server.log_requests_level --log-requests-level CORE_LOG_REQUESTS_LEVEL integer 0
server.metrics_aliases --metrics-aliases CORE_METRICS_ALIASES text 'none'
server.otlp_traces_endpoint --otlp-traces-endpoint CORE_OTLP_TRACES_ENDPOINT text None
server.otlp_service_name --otlp-service-name CORE_OTLP_SERVICE_NAME text 'core'
server.profile_dir --profile-dir CORE_PROFILE_DIR text None
server.stream_events_per_s --stream-events-per-s CORE_STREAM_EVENTS_PER_S integer 1000
server.max_n --max-n CORE_MAX_N integer 16
server.max_body_bytes --max-body-bytes CORE_MAX_BODY_BYTES integer 33554432
server.unknown_fields --unknown-fields CORE_UNKNOWN_FIELDS text 'warn'
server.drain_timeout_s --drain-timeout-s CORE_DRAIN_TIMEOUT_S number 30.0
server.cors_allow_origins --cors-allow-origins CORE_CORS_ALLOW_ORIGINS list ()
server.chat_page --chat-page CORE_CHAT_PAGE boolean True
server.response_store --response-store CORE_RESPONSE_STORE integer 0
server.response_store_bytes --response-store-bytes CORE_RESPONSE_STORE_BYTES integer 67108864
server.routes --routes CORE_ROUTES list ()
"""  # noqa: E501


def test_frozen() -> None:
    lines = [
        " ".join([f.dotted, f.flag, *("--" + a for a in f.aliases), f.env, f.type_name, repr(f.default)])
        for f in setting_fields()
    ]
    assert "\n".join(lines) == SURFACE.strip()


def test_names_and_aliases_are_unique() -> None:
    spelled = [name.replace("-", "_") for f in setting_fields() for name in (f.name, *f.aliases)]
    assert len(spelled) == len(set(spelled)) == len(by_name())
    # A flat YAML key must not read as a section; `model` may, being text there and a mapping as a section.
    assert set(spelled) & {*section_names(), "plugins"} == {"model"}


def test_every_field_is_documented_and_checked() -> None:
    for f in setting_fields():
        assert f.description.endswith("."), f.dotted
        assert f.allowed, f.dotted
    assert section_names() == tuple(name for name in Settings.model_fields if name != "plugins")


def test_nearest() -> None:
    found = nearest_setting("gpu-memory-utilisation")
    assert found is not None
    assert found.name == "memory_fraction"
    assert nearest_setting("qqqqqq") is None
