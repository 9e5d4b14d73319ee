"""Which formats are served, and what is said of the others; modules that are left out; faults of checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fp8_cases import BLOCK, CHANNEL, FLOAT, GROUP, TENSOR, context, dense, fill, matrix, means, method, stored

from core.interfaces.errors import CheckpointError, ConfigError, WeightError
from core.interfaces.moe import ExpertWeights, MoeRunner
from core.interfaces.quant import QuantFacts
from core.interfaces.spec import ModelSpec
from core.layers.linear import MergedLinear, ReplicatedLinear
from core.layers.moe import Experts, TorchNativeMoe
from core.layers.unquantized import UnquantizedExperts, UnquantizedLinear
from plugin_fp8.config import Format, read, recognises
from plugin_fp8.settings import Options


def compressed(**changes: Any) -> dict[str, Any]:
    """CHANNEL with changes of its one group."""
    return {**CHANNEL, "config_groups": {"group_0": {**GROUP, **changes}}}


MODELOPT: dict[str, Any] = {
    "quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head", "model.layers.1.self_attn*"],
    "config_groups": {"group_0": {"input_activations": {"dynamic": False, "num_bits": 8, "type": "float"},
                                  "weights": {"dynamic": False, "num_bits": 8, "type": "float"}}},
    "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
}  # fmt: skip
OLD_MODELOPT: dict[str, Any] = {
    "quant_library": "modelopt",
    "quantization": {
        "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN", "kv_cache_quant_algo": "FP8", "exclude_modules": ["*.o_proj"],
    },
}  # fmt: skip
ONLY_CACHE: dict[str, Any] = {
    "quant_method": "compressed-tensors", "format": "dense", "config_groups": {},
    "kv_cache_scheme": {**FLOAT, "strategy": "tensor", "dynamic": False},
}  # fmt: skip
ONLY_ATTENTION: dict[str, Any] = {
    "quant_method": "compressed-tensors", "format": "dense",
    "config_groups": {"a": {"targets": ["LlamaAttention"], "weights": None,
                            "input_activations": {**FLOAT, "strategy": "attn_head", "dynamic": False}}},
}  # fmt: skip


def test_formats() -> None:
    assert read(None, Options()) == Format("channel", prequantized=False, skip=Options().skip, field="plugins.fp8.skip")
    assert read(TENSOR, Options()).weights == "tensor"
    found = read({**BLOCK, "modules_to_not_convert": ["lm_head"]}, Options())
    assert (found.weights, found.block, found.scale, found.skip) == (
        "block",
        (128, 128),
        "weight_scale_inv",
        ("lm_head",),
    )
    assert read({**TENSOR, "ignored_layers": ["a.b"]}, Options()).skip == ("a.b",)
    channel = read(CHANNEL, Options())
    assert (channel.weights, channel.static, channel.skip) == ("channel", False, ("lm_head",))
    static = read(compressed(input_activations={**FLOAT, "strategy": "tensor", "dynamic": False}), Options())
    assert static.static
    blocks = read(compressed(weights={**FLOAT, "strategy": "block", "block_structure": [64, 32]}), Options())
    assert blocks.block == (64, 32)


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (None, False), (TENSOR, True), (BLOCK, True), (CHANNEL, True), ({"quant_method": "compressed-tensors"}, False),
        (compressed(weights={"num_bits": 4, "type": "int", "strategy": "group"}), False),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": None}}, False), ({"quant_method": "awq"}, False),
        (MODELOPT, True), ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, False), (OLD_MODELOPT, True),
        (ONLY_CACHE, True), ({**ONLY_CACHE, "kv_cache_scheme": None}, False), (ONLY_ATTENTION, True),
        ({**ONLY_CACHE, "config_groups": {"a": {"weights": {"num_bits": 4, "type": "int"}}}}, False),
    ],
)  # fmt: skip
def test_what_is_recognised(config: Any, known: bool) -> None:
    assert recognises(config) is known


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({**TENSOR, "activation_scheme": "sometimes"}, "activation_scheme = 'sometimes'"),
        ({**TENSOR, "fmt": "e5m2"}, "fmt = 'e5m2'"),
        ({**BLOCK, "expert_dtype": "fp4"}, "expert_dtype = 'fp4'"),
        ({**BLOCK, "activation_scheme": "static"}, "activation_scheme = 'static'"),
        ({**BLOCK, "weight_block_size": [128]}, "weight_block_size = [128]"),
        ({**BLOCK, "weight_block_size": [128, 0]}, "weight_block_size = [128, 0]"),
        ({**BLOCK, "modules_to_not_convert": "lm_head"}, "modules_to_not_convert = 'lm_head'"),
        ({**CHANNEL, "format": "pack-quantized"}, "format = 'pack-quantized'"),
        ({**CHANNEL, "ignore": ["re:("]}, "ignore = 're:('"),
        ({**CHANNEL, "kv_cache_scheme": {"num_bits": 4, "type": "int"}}, "kv_cache_scheme"),
        ({**CHANNEL, "kv_cache_scheme": {**FLOAT, "dynamic": True}}, "kv_cache_scheme.dynamic = True"),
        ({**CHANNEL, "kv_cache_scheme": {**FLOAT, "symmetric": False}}, "kv_cache_scheme.symmetric = False"),
        ({**CHANNEL, "kv_cache_scheme": {**FLOAT, "strategy": "channel"}}, "kv_cache_scheme.strategy = 'channel'"),
        ({**TENSOR, "kv_cache_scheme": "sometimes"}, "kv_cache_scheme = 'sometimes'"),
        ({**MODELOPT, "kv_cache_scheme": None, "kv_cache_quant_algo": "NVFP4"}, "kv_cache_quant_algo = 'NVFP4'"),
        ({**MODELOPT, "quant_algo": "W4A8"}, "quant_algo = 'W4A8'"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "kv_cache_scheme": FLOAT}, "format"),
        (compressed(input_activations=None), "config_groups.group_0.input_activations = None"),
        (compressed(input_activations={"num_bits": 8, "type": "int"}), "config_groups.group_0.input_activations"),
        (compressed(input_activations={**FLOAT, "strategy": "token", "dynamic": False}), "input_activations.strategy"),
        (compressed(weights={**FLOAT, "strategy": "group"}), "weights.strategy = 'group'"),
        (compressed(weights={**FLOAT, "symmetric": False}), "config_groups.group_0.weights"),
        (
            {**CHANNEL, "config_groups": {"a": GROUP, "b": {**GROUP, "weights": {**FLOAT, "strategy": "tensor"}}}},
            "config_groups.b",
        ),
    ],
)
def test_what_cannot_be_served_names_field_and_way_out(config: Any, names: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(config, Options())
    assert names in caught.value.message
    assert caught.value.hint


def test_a_skip_list_of_ones_own_beside_a_quantized_checkpoint() -> None:
    with pytest.raises(ConfigError, match="states its own") as caught:
        method(BLOCK, skip=("lm_head",))
    assert caught.value.field == "plugins.fp8.skip"


def test_dtypes_that_it_does_not_compute_in() -> None:
    facts = QuantFacts(ModelSpec("A", 8, 8, (), (), 8), "float64", "cpu", 1, TorchNativeMoe)
    assert "choose one with --dtype" in str(method().rejects(facts))


def test_modules_are_left_out_by_whole_segments_and_by_regular_expressions() -> None:
    made = method({**CHANNEL, "ignore": ["lm_head", r"re:.*self_attn\.o_proj$"]})
    assert isinstance(made.linear("lm_head", ("lm_head",)), UnquantizedLinear)
    assert isinstance(made.linear("o", ("model.layers.1.self_attn.o_proj",)), UnquantizedLinear)
    assert not isinstance(made.linear("o", ("model.layers.1.self_attn.o_proj_b",)), UnquantizedLinear)
    with pytest.raises(ConfigError, match=r"leaves out a\.o_proj but not") as caught:
        method({**CHANNEL, "ignore": [r"re:a\.o_proj"]}).linear("x", ("a.o_proj", "a.q_proj"))
    assert caught.value.hint
    online = method()
    assert isinstance(online.linear("x", ("model.layers.0.mlp.gate",)), UnquantizedLinear)
    assert not isinstance(online.linear("x", ("model.layers.0.mlp.gate_proj",)), UnquantizedLinear)
    skipped = method({**BLOCK, "modules_to_not_convert": ["model.layers.0.mlp"]})
    assert isinstance(skipped.experts("e", ("model.layers.0.mlp.experts.{expert}.gate_proj",)), UnquantizedExperts)


def test_modelopt() -> None:
    made = read(MODELOPT, Options())
    assert (made.weights, made.static, made.kv_cache, made.field) == (
        "tensor",
        True,
        True,
        "quantization_config.ignore",
    )
    assert made.leaves_out("o", ["model.layers.1.self_attn.o_proj"])
    assert not made.leaves_out("o", ["model.layers.11.self_attn.o_proj"])
    assert made.leaves_out("lm_head", ["lm_head"])
    old = read(OLD_MODELOPT, Options())
    assert (old.weights, old.static, old.kv_cache) == ("channel", False, True)
    assert old.leaves_out("o", ["model.layers.11.self_attn.o_proj"])
    assert not read({**MODELOPT, "kv_cache_scheme": None}, Options()).kv_cache


@pytest.mark.parametrize("config", [ONLY_CACHE, ONLY_ATTENTION])
def test_checkpoints_that_quantize_the_cache_alone(config: Any) -> None:
    made = method(config)
    assert made.kv_cache_dtype() == "fp8_e4m3"
    assert isinstance(made.linear("q", ("model.layers.0.self_attn.q_proj",)), UnquantizedLinear)
    assert isinstance(made.experts("e", ("model.layers.0.mlp.experts.{expert}.gate_proj",)), UnquantizedExperts)


def test_attention_in_8_bits_beside_the_weights() -> None:
    both = read({**CHANNEL, "config_groups": {"w": GROUP, **ONLY_ATTENTION["config_groups"]}}, Options())
    assert (both.weights, both.kv_cache) == ("channel", True)


def test_a_wish_for_the_kv_cache() -> None:
    assert method(CHANNEL).kv_cache_dtype() is None
    wish = {**CHANNEL, "kv_cache_scheme": {**FLOAT, "strategy": "tensor", "dynamic": False}}
    assert method(wish).kv_cache_dtype() == "fp8_e4m3"


@pytest.mark.parametrize("config", [TENSOR, BLOCK, CHANNEL])
def test_a_module_that_is_not_quantized_though_no_list_says_so(config: Any) -> None:
    """As routers of checkpoints whose configuration has no list."""
    layer = ReplicatedLinear("mlp.gate", 96, 8, context(config), bias=False)
    weight = matrix(8, 96)
    fill(layer, {"weight": weight.bfloat16()})
    layer.finish()
    assert torch.equal(dense(layer), weight.bfloat16().double())
    x = matrix(3, 96, 5)
    torch.testing.assert_close(layer(x), x @ weight.bfloat16().float().t())


def test_parts_of_one_matrix_quantized_and_not() -> None:
    layer = MergedLinear("gate_up_proj", 96, {"gate": 16, "up": 16}, context(CHANNEL), bias=False)
    fill(layer, stored(matrix(16, 96), CHANNEL), "gate")
    fill(layer, {"weight": matrix(16, 96)}, "up")
    with pytest.raises(WeightError, match="part 'gate' is quantized and 'up' is not"):
        layer.finish()


@pytest.mark.parametrize("config", [TENSOR, BLOCK, CHANNEL])
def test_a_scale_that_is_missing(config: Any) -> None:
    layer = ReplicatedLinear("o_proj", 128, 64, context(config), bias=False)
    fill(layer, {"weight": stored(matrix(64, 128), config)["weight"]})
    with pytest.raises(WeightError, match=r"o_proj: weight_scale(_inv)? is missing"):
        layer.finish()


@pytest.mark.parametrize(
    ("config", "suffix", "tensor", "says"),
    [
        (TENSOR, "weight_scale", torch.ones(3), "expected 1 number"),
        (CHANNEL, "weight_scale", torch.ones(1), "expected 64 numbers"),
        (BLOCK, "weight_scale_inv", torch.ones(2, 1), "expected [1, 1]"),
        (BLOCK, "weight_scale", torch.ones(1, 1), "has no weight_scale"),
        (TENSOR, "weight", torch.zeros(64, 128, dtype=torch.float8_e5m2), "dtype float8_e5m2"),
        (TENSOR, "weight", torch.zeros(64, 120, dtype=torch.float8_e4m3fn), "shape [64, 120]"),
        ({**TENSOR, "activation_scheme": "static"}, "input_scale", torch.ones(2), "expected 1 number"),
        (TENSOR, "input_scale", torch.ones(1), "has no input_scale"),
    ],
)
def test_tensors_that_do_not_fit(config: Any, suffix: str, tensor: torch.Tensor, says: str) -> None:
    layer = ReplicatedLinear("o_proj", 128, 64, context(config), bias=False)
    with pytest.raises(WeightError) as caught:
        layer.load(suffix, "", tensor)
    assert says in caught.value.message


def test_known_scales_of_inputs_clamp_and_the_largest_of_parts_counts() -> None:
    config = {**TENSOR, "activation_scheme": "static"}
    layer = MergedLinear("gate_up_proj", 32, {"gate": 16, "up": 16}, context(config), bias=False)
    for part, limit in (("gate", 0.5), ("up", 2.0)):
        tensors = {**stored(matrix(16, 32), config), "input_scale": torch.tensor([limit / 448])}
        fill(layer, tensors, part)
    layer.finish()
    wide = torch.full((1, 32), 50.0)
    torch.testing.assert_close(layer(wide), layer(torch.full((1, 32), 2.0)), rtol=1e-6, atol=0)


def test_scales_as_bare_exponents() -> None:
    tensors = stored(matrix(128, 128), BLOCK)
    exponent = torch.tensor([[121]], dtype=torch.uint8)
    for scale in (exponent, torch.full((1, 1), 2.0**-6).to(torch.float8_e8m0fnu)):
        layer = ReplicatedLinear("o_proj", 128, 128, context(BLOCK), bias=False)
        fill(layer, {**tensors, "weight_scale_inv": scale})
        layer.finish()
        torch.testing.assert_close(dense(layer), tensors["weight"].double() * 2.0**-6)


class Fp8Runner(MoeRunner):
    """Knows one layout, and notes what it got."""

    formats = frozenset({"fp8_block128", "fp8_channel", "fp8_tensor"})
    got: ExpertWeights | None = None

    def run(self, x: torch.Tensor, weights: ExpertWeights, ids: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        type(self).got = weights
        return x


@pytest.mark.parametrize("config", [TENSOR, BLOCK, CHANNEL, None])
def test_experts_go_to_a_runner_that_knows_their_layout(config: Any) -> None:
    ctx = context(config)
    runner = Fp8Runner(ctx.quant.ctx)
    experts = Experts("mlp.experts", 2, 160, 192, ctx.replace(moe=runner))
    for part in ("gate", "up", "down"):
        for e in range(2):
            weight = matrix(160 if part == "down" else 192, 192 if part == "down" else 160, e)
            held = {"weight": weight} if config is None else stored(weight, config)
            for suffix, tensor in held.items():
                experts.load(suffix, part, tensor, e)
    experts.finish()
    experts(torch.zeros(1, 160), torch.tensor([[0]]), torch.ones(1, 1))
    got = Fp8Runner.got
    assert got is not None
    assert (got.gate_up.shape, got.down.shape) == ((2, 384, 160), (2, 160, 192))
    assert got.gate_up.dtype == got.down.dtype == torch.float8_e4m3fn
    shapes = {name: tuple(scale.shape) for name, scale in got.scales.items()}
    layouts = {
        "fp8_tensor": {"gate_up": (2, 2), "down": (2,)},
        "fp8_channel": {"gate_up": (2, 384), "down": (2, 160)},
        "fp8_block128": {"gate_up": (2, 4, 2), "down": (2, 2, 2)},
    }
    assert shapes == layouts[got.format]
    assert all(scale.dtype == torch.float32 and scale.is_contiguous() for scale in got.scales.values())


@pytest.mark.parametrize("config", [TENSOR, BLOCK, CHANNEL])
def test_experts_in_one_tensor(config: Any) -> None:
    """gate_up_proj [E, 2I, H] with gate_up_proj_scale, as transformers 5 keeps them."""
    ending = "_scale_inv" if config is BLOCK else "_scale"
    matrices = {"gate": matrix(128, 96, 1), "up": matrix(128, 96, 2), "down": matrix(96, 128, 3)}
    one = Experts("mlp.experts", 1, 96, 128, context(config))
    other = Experts("mlp.experts", 1, 96, 128, context(config))
    held = {part: stored(weight, config) for part, weight in matrices.items()}
    for part, tensors in held.items():
        for suffix, tensor in tensors.items():
            one.load(suffix, part, tensor, 0)
    if config is TENSOR:
        scale = torch.stack([held["gate"]["weight_scale"].view(()), held["up"]["weight_scale"].view(())]).view(1, 2, 1)
    else:
        scale = torch.cat([held[p][f"weight{ending}"] for p in ("gate", "up")]).unsqueeze(0)
    both = torch.cat([held[p]["weight"].view(torch.uint8) for p in ("gate", "up")]).view(torch.float8_e4m3fn)
    jobs = {
        "gate_up_proj": both.unsqueeze(0), f"gate_up_proj{ending}": scale,
        "down_proj": held["down"]["weight"].unsqueeze(0),
        f"down_proj{ending}": held["down"][f"weight{ending}"].unsqueeze(0),
    }  # fmt: skip
    covered = set()
    for suffix, tensor in jobs.items():
        covered |= other.covers(suffix, "")
        other.load(suffix, "", tensor)
    assert covered == other.expected()
    one.finish()
    other.finish()
    x, ids, weights = matrix(3, 96, 4), torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, 1)
    assert torch.equal(one(x, ids, weights), other(x, ids, weights))


def test_experts_in_other_blocks_are_refused_before_loading() -> None:
    with pytest.raises(ConfigError, match="only 128x128") as caught:
        Experts("mlp.experts", 2, 64, 64, context({**BLOCK, "weight_block_size": [64, 64]}))
    assert caught.value.hint


def test_experts_that_are_not_quantized_after_all() -> None:
    experts = Experts("mlp.experts", 2, 64, 64, context(BLOCK))
    with pytest.raises(WeightError, match="expected float8_e4m3fn") as caught:
        experts.load("weight", "gate", matrix(64, 64), 0)
    assert "name them" in str(caught.value.hint)


def test_other_block_sizes_of_linear_layers() -> None:
    config = {**BLOCK, "weight_block_size": [32, 48]}
    weight = matrix(70, 100)
    scale = torch.rand(3, 3) + 0.5
    layer = ReplicatedLinear("o_proj", 100, 70, context(config), bias=False)
    values = weight.to(torch.float8_e4m3fn)
    fill(layer, {"weight": values, "weight_scale_inv": scale})
    layer.finish()
    rows, cols = torch.arange(70) // 32, torch.arange(100) // 48
    torch.testing.assert_close(dense(layer), values.double() * scale.double()[rows][:, cols], rtol=1e-6, atol=0)


def test_means_is_what_the_layer_holds() -> None:
    for config in (TENSOR, BLOCK, CHANNEL):
        tensors = stored(matrix(64, 200), config)
        layer = ReplicatedLinear("o_proj", 200, 64, context(config), bias=False)
        fill(layer, tensors)
        layer.finish()
        torch.testing.assert_close(dense(layer), means(tensors), rtol=1e-6, atol=0)
