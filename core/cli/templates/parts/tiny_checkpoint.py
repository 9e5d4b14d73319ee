SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def write(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """config.json, tokenizer and float32 weights in Hugging Face layout. changes: over SIZES. Returns `folder`.
    The same arguments give the same weights."""
    vocab_size = write_tiny_tokenizer(folder)
    config = {
        "architectures": ["{{ architecture }}"],
        "model_type": "{{ snake }}",
        "dtype": "float32",
        "vocab_size": vocab_size,
        "eos_token_id": SPECIAL_TOKENS.index("<|im_end|>"),
        **SIZES,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes(config).items():
        noise = rng.standard_normal(shape)
        # Norms around 1, matrices so that activations and logits are of order 1.
        values = 1 + 0.1 * noise if len(shape) == 1 else noise * 1.2 / shape[1] ** 0.5
        weights[name] = values.astype(np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q_size = config["num_attention_heads"] * config["head_dim"]
    kv_size = config["num_key_value_heads"] * config["head_dim"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    if not config["tie_word_embeddings"]:
        found["lm_head"] = (config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        found[f"{layer}.input_layernorm"] = (hidden,)
        found[f"{layer}.post_attention_layernorm"] = (hidden,)
        found[f"{layer}.self_attn.q_proj"] = (q_size, hidden)
        found[f"{layer}.self_attn.k_proj"] = (kv_size, hidden)
        found[f"{layer}.self_attn.v_proj"] = (kv_size, hidden)
        found[f"{layer}.self_attn.o_proj"] = (hidden, q_size)
        found[f"{layer}.mlp.gate_proj"] = (inner, hidden)
        found[f"{layer}.mlp.up_proj"] = (inner, hidden)
        found[f"{layer}.mlp.down_proj"] = (hidden, inner)
    return {f"{name}.weight": shape for name, shape in found.items()}
