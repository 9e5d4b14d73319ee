"""The parts of `python -m tests.gpu`: what each proves, its tests, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

OWN = "tests/gpu"


@dataclass(frozen=True)
class Part:
    """arguments: of pytest. limit_s: hard. workers: processes that share its tests. alone: nothing runs beside it,
    because it times or takes all memory. gpus: that it needs. environment: beside the caller's.

    jobs: compilers that its tests start beside the workers; it goes before parts that have none. after: a part that
    compiles the same kernels, whose end it waits for. first: words of the tests that take longest, see `order`.
    by_name: only where --only names it, because it takes too long beside the others.
    """

    name: str
    proves: str
    arguments: tuple[str, ...]
    limit_s: float
    workers: int = 1
    alone: bool = False
    gpus: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    jobs: int = 0
    after: str = ""
    first: tuple[str, ...] = ()
    by_name: bool = False


INTERPRETED = "tests/plugins/triton/interpreted"
FA3 = ("tests/contracts/test_attention.py::TestFa3", "tests/plugins/fa3")
# Not those of stand-ins, nor those that need no device and would pass without the library.
ON_DEVICE = "(TestFa3 and not Plans or cuda) and not found_and_loaded and not read_by_core and not manifest"
# What compiles most, longest first: kernels of many sizes.
_MANY_KERNELS = (
    "random_steps", "every_claimed_head_dim", "every_claimed_page_size", "every_claimed_dtype", "query_heads_share",
    "every_claimed_kv_dtype", "rules_of_their_own", "every_page_holds", "sees_its_window", "sinks",
)  # fmt: skip
_FLASHINFER = "flashinfer and (bfloat16 or cuda) and not Plans"


def _attention(which: str, what: str, workers: int) -> Part:
    arguments = (f"{INTERPRETED}/test_triton_attention.py", "--contract-examples=0.25", "-k", which)
    return Part(f"attention-{what}", f"attention in Triton: {what}", arguments, 330, workers, first=_MANY_KERNELS)


# What takes longest first. Nearly all of it is compiling, so the cores decide how long all together take. Tests of the
# same kernels stand in one part, so that few compile the same at the same time. Together the limits of those that run
# alone and the longest of the others stay under 9 minutes.
PARTS = (
    Part("flashinfer", "engine, steps and pieces with FlashInfer, whose kernels are compiled first",
         (f"{OWN}/test_gpu_engine.py", f"{OWN}/test_gpu_steps.py", f"{OWN}/test_pieces_gpu.py",
          "tests/plugins/flashinfer", "-k", _FLASHINFER), 350, 3, environment={"MAX_JOBS": "5"}, jobs=4,
         first=("same_greedy_tokens[flashinfer-bfloat16-start", "replayed_steps_equal_the_reference[40-cuda]",
                "replayed_steps_equal_the_reference[None-cuda]")),
    _attention("not full and not mla_latent", "window", 3),
    _attention("full", "full", 3),
    Part("engine", "graphs, overlap, attention backends: same greedy tokens",
         (f"{OWN}/test_gpu_engine.py", "-k", "not flashinfer"), 280),
    Part("ops", "Triton operations equal their references",
         ("--contract-examples=0.3", f"{INTERPRETED}/test_triton_ops_contract.py"), 330, 2,
         first=("threshold", "qk_norm_rope", "fused_linear")),
    _attention("mla_latent", "latent", 2),
    Part("fp8", "8-bit weights, experts and KV cache",
         (f"{OWN}/test_gpu_fp8.py", "tests/contracts/test_quant_fp8.py", "--contract-examples=0.3"), 330, 2,
         first=("random_models_quantized", "checkpoints_in_blocks", "kv_cache_of_8_bits", "while_it_loads",
                "products")),
    Part("moe", "experts in Triton equal their reference",
         ("--contract-examples=0.4", f"{INTERPRETED}/test_triton_moe_contract.py",
          f"{INTERPRETED}/test_triton_moe_kernels.py"), 330, 2,
         first=("random_batches", "transformers", "every_format", "many_tokens", "kind_of_tile", "8_bit")),
    Part("splits", "long sequences in Triton: splits, common prefixes; products of few rows",
         (f"{INTERPRETED}/test_triton_attention_parts.py", f"{INTERPRETED}/test_triton_products.py"), 280, 1,
         first=("rows_share_prefixes", "other_rules")),
    Part("pieces", "prefills recorded in pieces equal launched ones",
         (f"{OWN}/test_pieces_gpu.py", "-k", "not flashinfer"), 300, 2,
         first=("launched_steps[dense-triton-float32-none]", "launched_steps[dense-triton-bfloat16-none]")),
    Part("deterministic", "same bits alone and among 64",
         (f"{OWN}/test_gpu_deterministic.py", f"{INTERPRETED}/test_triton_invariant.py", "-k",
          "bits_are_equal or bits_do_not"), 250),
    Part("sampling", "distribution, seeds, filters", (f"{OWN}/test_gpu_sampling.py", "-m", "not timed"), 250, 2),
    Part("fa3", "FlashAttention-3 through the attention suite",
         ("--contract-examples=0.3", *FA3, "-k", f"{ON_DEVICE} and not latent"), 200),
    Part("fa3-latent", "the same of latent attention, whose kernels not every build has",
         ("--contract-examples=0.3", *FA3, "-k", f"{ON_DEVICE} and latent"), 200, 2),  # a worker's death fails one test
    Part("nvidia", "graphs, pieces, memory plan of the device", ("tests/plugins/nvidia",), 120),
    Part("steps", "no hidden waits, one copy each way", (f"{OWN}/test_gpu_steps.py", "-k", "not flashinfer"), 250,
         after="engine"),
    Part("memory", "a full KV cache fits; weights go straight to the device", (f"{OWN}/test_gpu_memory.py",), 100,
         alone=True),
    Part("times", "what filters cost", (f"{OWN}/test_gpu_sampling.py", "-m", "timed"), 80, alone=True),
    Part("flashinfer-suite", "FlashInfer through the attention suite, each size and type of which compiles for minutes",
         ("tests/contracts/test_attention.py::TestFlashInfer", "--contract-examples=0.2"), 540, 4, alone=True,
         environment={"MAX_JOBS": "4"}, first=_MANY_KERNELS, by_name=True),
    Part("ranks", "two and four GPUs answer as one", (f"{OWN}/test_gpu_ranks.py", "-k", "answers"), 230, gpus=2),
    Part("ranks-death", "a killed rank is an error, soon", (f"{OWN}/test_gpu_ranks.py", "-k", "killed"), 90, gpus=2),
)  # fmt: skip

# compute-sanitizer makes kernels ten to a hundred times slower: small examples, and what a tool can find. The same
# examples are drawn each time, and first without a tool, which compiles the kernels.
_SEED = "--hypothesis-seed=0"
_FLOAT32 = ("gumbel_argmax", "sampling_threshold", "penalize", "mask_tokens")  # whose arguments are never bfloat16
_COMPILED = tuple(
    Part(name, f"{what} without a tool, which compiles them", (*arguments, _SEED), 170, 3,
         environment={"SANITIZER": ""})
    for name, what, arguments in (
        ("ops", "operations",
         (f"{INTERPRETED}/test_triton_ops_contract.py", "--contract-examples=0.08", "-k",
          "gives_what and (bfloat16 or " + " or ".join(f"float32-{op}" for op in _FLOAT32) + ")")),
        ("products", "products of few rows", (f"{INTERPRETED}/test_triton_products.py",)),
        ("attention", "attention",
         (f"{INTERPRETED}/test_triton_attention.py", f"{INTERPRETED}/test_triton_attention_parts.py",
          "--contract-examples=0.05", "-k", "decodes_first or softcap or splits or in_common")),
        ("moe", "experts", (f"{INTERPRETED}/test_triton_moe_kernels.py", "-k", "sorting or 8_bit or kind_of_tile")),
        ("fp8", "8-bit products",
         (f"{OWN}/test_gpu_fp8.py", "-k",
          "products and (72 or 1056 or 4096-4096-0) or norm_that or get_the_same_bits")),
    )
)  # fmt: skip
SANITIZER = _COMPILED + tuple(
    replace(
        part, name=f"{tool}-{part.name}", proves=f"{tool} finds nothing in {part.proves.partition(' without')[0]}",
        limit_s=300, workers=1, environment={"SANITIZER": tool}, after=part.name,
    )
    for tool in ("racecheck", "memcheck", "synccheck") for part in _COMPILED
)  # fmt: skip
