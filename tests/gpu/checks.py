"""CHECKS: what only real hardware can tell, one row per check."""

from __future__ import annotations

from tests.gpu import check_calls as calls
from tests.gpu import check_cost as cost
from tests.gpu import check_graphs as graphs
from tests.gpu import check_library as library
from tests.gpu import check_memory as memory
from tests.gpu import check_nvml as nvml
from tests.gpu import check_processes as processes
from tests.gpu import check_torch as torch
from tests.gpu.model import Check

# A table, kept as one: a row is a name, the claim that changes, the function, what it needs, the
# most seconds that it may take. The first ones need nothing but the driver.
# fmt: off
CHECKS: tuple[Check, ...] = (
    # --- the library ---------------------------------------------------------------------------
    Check("stubs", "every probed export is the 32-byte stub, probed at +10", library.stubs),
    Check("doctor", "doctor has nothing to say on a node with a GPU", library.doctor),
    Check("exports", "every export that launches, allocates, copies or waits is probed",
          library.unknown_exports),
    Check("pointers", "cuGetProcAddress hands out the probed exports", library.pointers),
    # --- counts --------------------------------------------------------------------------------
    Check("driver-api", "counts and bytes are exact, by the driver API", calls.driver_api),
    Check("which-gpu", "calls are credited to the GPU that they are made on", processes.which_gpu,
          seconds=120),
    Check("fork", "a forked user of the driver can't use it (error 3), nothing is credited",
          processes.fork),
    Check("late", "of what was there before the agent, nothing is credited wrongly",
          processes.late, seconds=120),
    # --- memory --------------------------------------------------------------------------------
    Check("live-bytes", "live bytes are what was asked for and not freed", memory.live),
    Check("unmapping", "virtual memory ends with cuMemRelease", memory.unmapping),
    Check("implicit-frees", "a destroyed context frees its memory", memory.implicit),
    Check("unattributed", "memory that no process is known to hold is never negative",
          memory.unattributed),
    # --- NVML ----------------------------------------------------------------------------------
    Check("nvml-timing", "NVML's calls are quick enough for a look each second", nvml.timing,
          seconds=90),
    Check("nvml-figures", "every figure of a GPU is there", nvml.device),
    Check("nvml-processes", "NVML has per-process memory and utilization", nvml.processes),
    Check("features", "MIG and GPM: whether they are there", nvml.features),
    # --- the CUDA runtime and frameworks -------------------------------------------------------
    Check("cudart", "the CUDA runtime's calls are counted exactly", calls.cudart, ("cudart",),
          simulated=False),
    Check("cuda-bindings", "NVIDIA's cuda-bindings are counted exactly",
          calls.CLIENTS["cuda_bindings"], ("cuda-bindings",)),
    Check("cuda-core", "cuda-core is counted exactly", calls.CLIENTS["cuda_core"], ("cuda-core",)),
    Check("numba", "numba-cuda is counted exactly", calls.CLIENTS["numba"], ("numba",)),
    Check("triton", "Triton is counted exactly", calls.CLIENTS["triton"], ("triton",), 120),
    Check("cupy", "CuPy is counted exactly", calls.cupy, ("cupy",), 120, simulated=False),
    Check("torch-eager", "PyTorch's launches are counted exactly", torch.eager, ("torch",), 180,
          simulated=False),
    Check("torch-graphs", "PyTorch's CUDA graphs: captures, replays and their kernels",
          torch.graphs, ("torch",), 180, simulated=False),
    Check("torch-memory", "PyTorch's allocators: device, virtual and pool memory",
          torch.allocators, ("torch",), 300, simulated=False),
    Check("torch-live", "live bytes are what PyTorch has reserved", memory.torch, ("torch",), 180,
          simulated=False),
    Check("torch-workers", "PyTorch's worker processes are counted", torch.processes, ("torch",),
          240, simulated=False),
    Check("torch-compile", "torch.compile's kernels are counted", torch.compiled,
          ("torch", "triton", "cc"), 240, simulated=False),
    Check("torch-two-gpus", "one process on two GPUs is told apart", torch.two_gpus,
          ("torch", "2 GPUs"), 180, simulated=False),
    Check("cupti", "launches and the kernels of graphs are what CUPTI saw run", graphs.cupti,
          ("cupti",), simulated=False),
    # --- cost: last, the agent comes and goes --------------------------------------------------
    Check("overhead", "what counting adds to a launch", cost.overhead, ("cc",), 180),
    Check("agent-cost", "the agent's CPU and memory with real NVML", cost.agent, seconds=120),
)
# fmt: on
