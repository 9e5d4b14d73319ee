"""The parts of `python -m tests.gpu`: what each proves, its tests, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass, field

OWN = "tests/gpu"


@dataclass(frozen=True)
class Part:
    """arguments: of pytest. limit_s: hard. workers: processes that share its tests. alone: nothing runs beside it,
    because it times or takes all memory. gpus: that it needs. environment: beside the caller's."""

    name: str
    proves: str
    arguments: tuple[str, ...]
    limit_s: float
    workers: int = 1
    alone: bool = False
    gpus: int = 1
    environment: dict[str, str] = field(default_factory=dict)


INTERPRETED = "tests/plugins/triton/interpreted"
FA3 = ("tests/contracts/test_attention.py::TestFa3", "tests/plugins/fa3")
# Not those of stand-ins, nor those that need no device and would pass without the library.
ON_DEVICE = "(TestFa3 and not Plans or cuda) and not found_and_loaded and not read_by_core and not manifest"
# The longest first. Together the limits of those that run alone and the longest of the others stay under 8 minutes.
PARTS = (
    Part("triton", "every Triton kernel equals its reference", ("--contract-examples=0.4", INTERPRETED), 260, 9),
    Part("engine", "graphs, overlap, attention backends: same greedy tokens",
         (f"{OWN}/test_gpu_engine.py", "-k", "not flashinfer"), 220, 3),
    Part("flashinfer", "the same with FlashInfer, whose kernels are compiled first",
         (f"{OWN}/test_gpu_engine.py", f"{OWN}/test_gpu_steps.py", "tests/plugins/flashinfer", "-k",
          "flashinfer and (bfloat16 or cuda) and not Plans"), 240, environment={"MAX_JOBS": "8"}),
    Part("deterministic", "same bits alone and among 64", (f"{OWN}/test_gpu_deterministic.py",), 220, 2),
    Part("steps", "no hidden waits, one copy each way", (f"{OWN}/test_gpu_steps.py", "-k", "not flashinfer"), 200, 2),
    Part("fp8", "8-bit weights, experts and KV cache",
         (f"{OWN}/test_gpu_fp8.py", "tests/contracts/test_quant_fp8.py", "--contract-examples=0.3"), 200, 2),
    Part("sampling", "distribution, seeds, filters", (f"{OWN}/test_gpu_sampling.py", "-m", "not timed"), 200, 4),
    Part("nvidia", "graphs, pieces, memory plan of the device", ("tests/plugins/nvidia",), 120),
    Part("pieces", "prefills recorded in pieces equal launched ones", (f"{OWN}/test_pieces_gpu.py",), 200),
    Part("fa3", "FlashAttention-3 through the attention suite",
         ("--contract-examples=0.3", *FA3, "-k", f"{ON_DEVICE} and not latent"), 160, 2),
    Part("fa3-latent", "the same of latent attention, whose kernels not every build has",
         ("--contract-examples=0.3", *FA3, "-k", f"{ON_DEVICE} and latent"), 160),
    Part("memory", "a full KV cache fits; weights go straight to the device", (f"{OWN}/test_gpu_memory.py",), 110,
         alone=True),
    Part("times", "what filters cost", (f"{OWN}/test_gpu_sampling.py", "-m", "timed"), 80, alone=True),
    Part("ranks", "two and four GPUs answer as one", (f"{OWN}/test_gpu_ranks.py", "-k", "answers"), 230, gpus=2),
    Part("ranks-death", "a killed rank is an error, soon", (f"{OWN}/test_gpu_ranks.py", "-k", "killed"), 90, gpus=2),
)  # fmt: skip

# compute-sanitizer makes kernels ten to a hundred times slower: small examples, and what a tool can find.
_KERNELS = f"{INTERPRETED}/test_triton_ops_contract.py"
SANITIZER = tuple(
    Part(f"{tool}-{name}", f"{tool} finds nothing in {what}", arguments, limit_s, environment={"SANITIZER": tool})
    for tool, limit_s in (("memcheck", 170), ("racecheck", 170), ("synccheck", 120))
    for name, what, arguments in (
        ("ops", "operations", (_KERNELS, "--contract-examples=0.08", "-k", "gives_what and bfloat16")),
        ("products", "products of few rows", (f"{INTERPRETED}/test_triton_products.py",)),
        ("attention", "attention",
         (f"{INTERPRETED}/test_triton_attention.py", f"{INTERPRETED}/test_triton_attention_parts.py",
          "--contract-examples=0.05", "-k", "decodes_first or softcap or splits or shared or in_common")),
        ("moe", "experts", (f"{INTERPRETED}/test_triton_moe_kernels.py", "-k", "sorting or 8_bit or kind_of_tile")),
        ("fp8", "8-bit products", (f"{OWN}/test_gpu_fp8.py", "-k", "product or norm or bits")),
    )
)  # fmt: skip
