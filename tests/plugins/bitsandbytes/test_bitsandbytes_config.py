"""What is in effect, what is refused before anything is loaded, and what is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from pydantic import ValidationError
from quantized import EIGHT, context, four_bit, method

from core.config.sections import Settings
from core.interfaces.errors import CheckpointError, ConfigError
from core.interfaces.quant import QuantFacts
from core.layers.linear import ReplicatedLinear
from core.layers.moe import TorchNativeMoe
from core.layers.unquantized import UnquantizedExperts, UnquantizedLinear
from core.registry.catalog import Catalog
from core.registry.resolve import resolve
from plugin_bitsandbytes import devices
from plugin_bitsandbytes.linear import QuantizedLinear
from plugin_bitsandbytes.method import BitsAndBytes
from plugin_bitsandbytes.settings import Options
from plugin_demo import checkpoint

# As transformers 4.30 and 5.23 write it.
OLD = {"load_in_8bit": True, "llm_int8_threshold": 6.0, "llm_int8_skip_modules": None}
FULL = {
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": ["lm_head", "model.layers.1.mlp"],
    "llm_int8_threshold": 6.0,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "quant_method": "bitsandbytes",
}


def test_recognises() -> None:
    assert BitsAndBytes.recognises(FULL)
    assert BitsAndBytes.recognises(EIGHT)
    assert BitsAndBytes.recognises(OLD)
    assert not BitsAndBytes.recognises(None)
    assert not BitsAndBytes.recognises({"quant_method": "gptq", "bits": 4})
    assert not BitsAndBytes.recognises({"quant_method": "gptq", "load_in_4bit": True})
    assert not BitsAndBytes.recognises({"load_in_4bit": "yes"})


def test_formats() -> None:
    found = method(FULL).format
    assert (found.kind, found.nested, found.prequantized) == ("nf4", True, True)
    assert found.skip == ("lm_head", "model.layers.1.mlp")
    assert found.compute_dtype is None
    assert method(FULL, compute_dtype="checkpoint").format.compute_dtype == "bfloat16"
    assert method(FULL, compute_dtype="float16").format.compute_dtype == "float16"
    assert method({k: v for k, v in FULL.items() if k != "load_in_4bit"}).format.kind == "nf4"
    assert method(four_bit("fp4"), compute_dtype="checkpoint").format.compute_dtype == "float32"
    eight = method(OLD).format
    assert (eight.kind, eight.threshold, eight.skip) == ("int8", 6.0, ("lm_head",))
    made = method(None, format="fp4", nested=True, blocksize=128, skip=("a", "b.c")).format
    assert (made.kind, made.nested, made.block_size, made.skip) == ("fp4", True, 128, ("a", "b.c"))
    assert not made.prequantized


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"bnb_4bit_quant_type": "nf3"}, r"bnb_4bit_quant_type = 'nf3'.*\n.*nf4, fp4"),
        ({"bnb_4bit_quant_storage": "complex64"}, r"bnb_4bit_quant_storage = 'complex64'"),
        ({"load_in_8bit": True, "_load_in_8bit": True}, "load_in_4bit = True, but load_in_8bit is True"),
        ({"load_in_4bit": False, "_load_in_4bit": False}, "load_in_4bit = False, but load_in_8bit is False"),
        ({"load_in_4bit": "yes"}, "load_in_4bit = 'yes'"),
        ({"llm_int8_enable_fp32_cpu_offload": True}, r"llm_int8_enable_fp32_cpu_offload = True(.|\n)*set it to false"),
        ({"llm_int8_has_fp16_weight": True}, r"llm_int8_has_fp16_weight = True(.|\n)*save the checkpoint"),
        ({"llm_int8_threshold": -1.0}, "llm_int8_threshold = -1.0"),
        ({"llm_int8_threshold": float("nan")}, "llm_int8_threshold = nan"),
        ({"llm_int8_skip_modules": "lm_head"}, "llm_int8_skip_modules = 'lm_head'"),
    ],
)
def test_refused_checkpoints(change: dict[str, Any], wanted: str) -> None:
    with pytest.raises(CheckpointError, match=wanted) as caught:
        method({**FULL, **change})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("config", "options", "field"),
    [
        (FULL, {"format": "int8"}, "format"),
        (FULL, {"nested": False}, "nested"),
        (FULL, {"blocksize": 64}, "blocksize"),
        (FULL, {"skip": ()}, "skip"),
        (EIGHT, {"threshold": 3.0}, "threshold"),
        (EIGHT, {"compute_dtype": "float32"}, "compute_dtype"),
        (None, {"format": "int8", "nested": True}, "nested"),
        (None, {"format": "int8", "blocksize": 128}, "blocksize"),
        (None, {"format": "int8", "compute_dtype": "float32"}, "compute_dtype"),
        (None, {"format": "nf4", "threshold": 3.0}, "threshold"),
        (None, {"compute_dtype": "checkpoint"}, "compute_dtype"),
    ],
)
def test_settings_that_would_be_ignored(config: Any, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        method(config, **options)
    assert caught.value.field == f"plugins.bitsandbytes.{field}"
    assert caught.value.value == options[field]
    assert caught.value.hint


def test_a_compute_dtype_of_the_checkpoint_that_is_none() -> None:
    with pytest.raises(CheckpointError, match="bnb_4bit_compute_dtype = 'float64'"):
        method({**FULL, "bnb_4bit_compute_dtype": "float64"}, compute_dtype="checkpoint")


@pytest.mark.parametrize("wrong", [{"format": "nf3"}, {"blocksize": 48}, {"threshold": -1}, {"bits": 4}])
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**wrong)


def test_skipped_modules() -> None:
    made = method(None)
    assert isinstance(made.linear("lm_head", ["lm_head"]), UnquantizedLinear)
    assert isinstance(made.linear("layers.0.mlp.gate", ["model.layers.0.mlp.gate"]), UnquantizedLinear)
    assert isinstance(made.linear("layers.0.mlp.gate_up_proj", ["model.layers.0.mlp.gate_proj"]), QuantizedLinear)
    some = method(None, skip=("layers.1", "experts"))
    assert isinstance(some.linear("x", ["model.layers.1.self_attn.o_proj"]), UnquantizedLinear)
    assert isinstance(some.linear("x", ["model.layers.10.self_attn.o_proj"]), QuantizedLinear)
    assert isinstance(some.linear("lm_head", ["lm_head"]), QuantizedLinear)
    sources = [f"model.layers.0.mlp.experts.{{expert}}.{part}_proj" for part in ("gate", "up", "down")]
    assert isinstance(some.experts("layers.0.mlp.experts", sources), UnquantizedExperts)


@pytest.mark.parametrize("dtype", ["float64", "float8_e4m3fn"])
def test_refused_dtypes(dtype: str) -> None:
    facts: Any = QuantFacts(None, dtype, "cpu", 1, TorchNativeMoe)  # type: ignore[arg-type]
    why = method(None).rejects(facts)
    assert why is not None
    assert dtype in why
    assert "--dtype" in why
    for fine in ("float32", "bfloat16", "float16"):
        assert method(None).rejects(QuantFacts(None, fine, "cpu", 1, TorchNativeMoe)) is None  # type: ignore[arg-type]


def build_on(device: str, **options: Any) -> None:
    ctx = context(None, **options).replace(device=torch.device(device))
    ReplicatedLinear("layer", 64, 64, ctx, bias=False)


def test_a_device_without_kernels() -> None:
    with pytest.raises(ConfigError, match=r"device is 'vulkan'.*no kernels.*cpu.*cuda") as caught:
        build_on("vulkan")
    assert caught.value.field == "engine.device"


def test_the_library_says_which_devices_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    with pytest.raises(ConfigError, match=r"device is 'cpu'.*some for cuda"):
        build_on("cpu")


def test_a_library_that_did_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes import cextension

    monkeypatch.setattr(cextension, "lib", cextension.ErrorHandlerMockBNBNativeLibrary("no such file"))
    with pytest.raises(ConfigError, match=r"could not load its native library(.|\n)*python -m bitsandbytes"):
        build_on("cpu")


def test_old_gpus_have_no_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    device = torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"capability 7.5 for int8, and it has 7.0"):
        devices.check_device(device, "int8")
    devices.check_device(device, "nf4")


def write_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((Path(checkpoint()) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def resolved(folder: Path, plugins: dict[str, Any] | None = None, **model: Any) -> Any:
    settings = Settings.model_validate({"model": {"model": str(folder), **model}, "plugins": plugins or {}})
    return resolve(settings, Catalog.scan())


def test_the_registry_chooses_it(tmp_path: Path) -> None:
    found = resolved(write_config(tmp_path, quantization_config=FULL))
    assert found.quant.name == "bitsandbytes"
    asked = resolved(write_config(tmp_path), {"bitsandbytes": {"format": "int8"}}, quantization="bitsandbytes")
    assert asked.quant.target is BitsAndBytes
    assert resolved(write_config(tmp_path)).quant.name == "none"


def test_the_registry_refuses_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bnb_4bit_quant_type"):
        resolved(write_config(tmp_path, quantization_config={**FULL, "bnb_4bit_quant_type": "nf3"}))
    with pytest.raises(ConfigError, match=r"plugins.bitsandbytes.format is 'nf3'"):
        resolved(write_config(tmp_path), {"bitsandbytes": {"format": "nf3"}}, quantization="bitsandbytes")


def test_nothing_heavy_is_imported_to_be_asked() -> None:
    code = (
        "import sys; from plugin_bitsandbytes.method import BitsAndBytes; from core.interfaces.context import "
        "PluginContext; BitsAndBytes.recognises(None); BitsAndBytes(None, PluginContext()); "
        "sys.exit('bitsandbytes' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_library_downloads_nothing(tmp_path: Path) -> None:
    """It would fetch a kernel through the package `kernels` and run it."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('asked for a download')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import plugin_bitsandbytes.kernels; "
        "sys.exit('kernels' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
