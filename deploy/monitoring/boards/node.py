"""The dashboard of a node's GPUs."""

# ruff: noqa: E501  prose in a table
from __future__ import annotations

from deploy.monitoring import panels as p
from deploy.monitoring.panels import (
    BY_GPU,
    GPU,
    OF_GPU,
    OF_NODE,
    STAT,
    TABLE,
    TIMESERIES,
    Board,
    Panel,
    Query,
    Row,
    where,
)


def _probed(group: str) -> str:
    return f"Nothing here: --probe {group} is off."


_UNSUPPORTED = (
    "Nothing here: the board or its driver doesn't tell it (gpubpf_gpu_missing_metrics says why)."
)
_PROCESSES = (p.TO_PROCESSES,)

NODE = Board(
    p.NODE,
    "gpubpf / Node",
    "The GPUs of the chosen nodes: what is wrong, what runs on them, and how they are.",
    ("cluster", "instance", "gpu"),
    (
        Row("Is anything wrong?", (
            Panel("What is wrong, and where", TABLE, p.COUNT, "GPUs that don't answer or want a reset, XIDs of the last hour, diagnoses, and agents that can't be scraped or can't read a source.",
                  "RUNBOOK.md has a section for each. A line without a GPU is of the node's agent.",
                  (Query(p.problems(OF_GPU, OF_NODE)),), width=12, links=_PROCESSES, empty="Nothing is wrong."),
            Panel("Diagnoses", TIMESERIES, p.COUNT, "1 while it holds.", "The README's table says what each means; RUNBOOK.md what to do.",
                  (Query(f"sum by (cluster, instance, gpu, diagnosis) (gpubpf_gpu_diagnosis{where(OF_GPU)} == 1)", BY_GPU + " {{diagnosis}}"),), width=6, links=_PROCESSES,
                  empty="No diagnosis holds."),
            Panel("Agent", TIMESERIES, p.COUNT, "Sources that can't be read; calls that could not be kept, in five minutes; copies of libcuda in use that aren't probed; functions that the driver hands out past their probes. 0 is well.", "The agent's front page says why, in one line; `gpubpf doctor` on the node says what to do.",
                  (Query(f"sum by (cluster, instance) (gpubpf_agent_source_up{where(OF_NODE)} == bool 0)", "{{instance}} sources down"),
                   Query(f"sum by (cluster, instance) (increase(gpubpf_agent_lost_total{where(OF_NODE)}[5m]))", "{{instance}} not kept"),
                   Query(p.total("gpubpf_agent_library_copies", "instance", OF_NODE + ',state!="attached"'), "{{instance}} not probed"),
                   Query(p.total("gpubpf_agent_pointers_elsewhere", "instance", OF_NODE), "{{instance}} past their probes")), p.ANY, width=6),
        )),
        Row("Who is here", (
            Panel("Jobs", TABLE, p.RATIO, "Jobs that hold these GPUs, with the share of the last five minutes in which each did something.", "Open the job.",
                  (Query(f"topk(50, sum by (cluster, instance, gpu, job_id) (rate(gpubpf_job_active_seconds_total{where(OF_GPU)}[5m])) and sum by (cluster, instance, gpu, job_id) (rate(gpubpf_job_held_seconds_total{where(OF_GPU)}[5m])) > 0)"),), width=12, links=(p.TO_JOB,),
                  empty="Nothing here: no job holds these GPUs, or the agent runs without --jobs."),
            Panel("Processes", STAT, p.COUNT, "That use a GPU of the node.", "Who they are: the process dashboard, or `gpubpf top` on the node.",
                  (Query(p.most("gpubpf_node_gpu_processes", "instance", OF_NODE), p.BY_NODE),), width=4, links=(p.Link(p.PROCESS, ("instance",)),)),
            Panel("Given by kubelet", TIMESERIES, p.COUNT, "Containers that a GPU was given to, and to how many it may be given.", "Given, and no kernels: the pod never called the driver. Fewer given than may be: free capacity.",
                  (Query(p.most("gpubpf_gpu_kubernetes_containers", GPU, OF_GPU), BY_GPU + " given"),
                   Query(p.most("gpubpf_gpu_kubernetes_slots", GPU, OF_GPU), BY_GPU + " may be")),
                  empty="Nothing here: needs --jobs kubernetes, and kubelet's pod-resources socket."),
        )),
        Row("What is asked of the GPUs", (
            Panel("Kernel launches", TIMESERIES, p.RATE, "Launched one by one.", "Thousands a second and few busy SMs: the GPU waits for the CPU. 0 and busy: it hangs.",
                  (Query(p.rate("gpubpf_gpu_kernel_launches_total", GPU, OF_GPU), BY_GPU),), links=_PROCESSES, empty=_probed("launch")),
            Panel("Kernels by graphs", TIMESERIES, p.RATE, "Run by graph launches.", "Together with the launches beside: all kernels.",
                  (Query(p.rate("gpubpf_gpu_graph_kernels_total", GPU, OF_GPU), BY_GPU),), links=_PROCESSES, empty=_probed("launch")),
            Panel("Time in waits", TIMESERIES, p.COUNT, "Threads that are blocked in synchronizing calls, on average.", "Near 0 with idle SMs: the host is late. High with busy SMs is well.",
                  (Query(p.rate("gpubpf_gpu_wait_seconds_total", GPU, OF_GPU), BY_GPU),), links=_PROCESSES, empty=_probed("wait")),
            Panel("Allocations", TIMESERIES, p.RATE, "Successful ones, by kind of memory.", "Hundreds a second, not from a pool: memory is allocated in an inner loop.",
                  (Query(p.rate("gpubpf_gpu_allocations_total", GPU + ", kind", OF_GPU), BY_GPU + " {{kind}}"),), links=_PROCESSES, empty=_probed("memory")),
            Panel("Copies", TIMESERIES, p.BYTES_PER_SECOND, "By direction.", "Much from the host: compare with the PCIe link below; pin memory, overlap.",
                  (Query(p.rate("gpubpf_gpu_copied_bytes_total", GPU + ", direction", OF_GPU), BY_GPU + " {{direction}}"),), links=_PROCESSES, empty=_probed("copy")),
            Panel("Failed calls", TIMESERIES, p.COUNT, "Since the agent's start, by function and error: each step is a new one.", "CUDA_ERROR_OUT_OF_MEMORY: caching allocators try it on purpose. Of which job: the job dashboard.",
                  (Query(p.total("gpubpf_call_errors_total", "instance, function, error", OF_NODE), "{{instance}} {{function}} {{error}}"),), links=(p.TO_NODE,),
                  empty="No call failed since the agent started."),
        )),
        Row("How busy they are", (
            Panel("Utilization", TIMESERIES, p.RATIO, "Share of time in which a kernel ran.", "1 says only that some kernel runs: compare with SM utilization and power.",
                  (Query(p.most("gpubpf_gpu_utilization_ratio", GPU, OF_GPU), BY_GPU),), "sm_utilization", True, links=_PROCESSES),
            Panel("SM utilization", TIMESERIES, p.RATIO, "Share of time in which a multiprocessor had a warp (GPM).", "Low: small batches, small kernels, or waiting for data or other ranks.",
                  (Query(p.most("gpubpf_gpu_sm_utilization_ratio", GPU, OF_GPU), BY_GPU),), "sm_utilization", True, links=_PROCESSES, empty=_UNSUPPORTED),
            Panel("Tensor cores", TIMESERIES, p.RATIO, "Share of cycles in which a tensor pipe was active (GPM).", "Low with busy SMs: the wrong precision, or memory-bound kernels.",
                  (Query(p.most("gpubpf_gpu_tensor_utilization_ratio", GPU, OF_GPU), BY_GPU),), links=_PROCESSES, empty=_UNSUPPORTED),
        )),
        Row("Memory", (
            Panel("In use", TIMESERIES, p.RATIO, "By the driver's count, as a share of the board's.", "Grows steadily: who grows is in Live memory, then in the job dashboard.",
                  (Query(f"{p.most('gpubpf_gpu_memory_used_bytes', GPU, OF_GPU)} / {p.most('gpubpf_gpu_memory_size_bytes', GPU, OF_GPU)}", BY_GPU),), width=6, links=_PROCESSES),
            Panel("Live memory", TIMESERIES, p.BYTES, "Requested by living processes and not freed, by kind.", "Less than in use: the rest is contexts, pools, and what was there before the agent.",
                  (Query(p.total("gpubpf_gpu_live_bytes", GPU + ", kind", OF_GPU), BY_GPU + " {{kind}}"),), width=6, links=_PROCESSES, empty=_probed("memory")),
            Panel("Fragmentation", TIMESERIES, p.RATIO, "Of the granules that live allocations touch, what isn't theirs.", "High: allocate large buffers first, use a pool.",
                  (Query(p.most("gpubpf_gpu_memory_fragmentation_ratio", GPU, OF_GPU), BY_GPU),), "fragmentation", width=6, links=_PROCESSES, empty=_probed("memory") + " Or nothing is allocated."),
            Panel("Of nobody", TIMESERIES, p.BYTES, "In use by the driver's count, and of no allocation that was seen.", "Contexts and the driver's own are normal; gigabytes are of a process from before the agent, or one that is gone.",
                  (Query(p.most("gpubpf_gpu_memory_unattributed_bytes", GPU, OF_GPU), BY_GPU),), width=6, links=_PROCESSES, empty=_probed("memory")),
        )),
        Row("Links", (
            Panel("PCIe", TIMESERIES, p.BYTES_PER_SECOND, "Throughput by direction.", "Compare with the copies above: the rest is peers, and the driver's own.",
                  (Query(p.most("gpubpf_gpu_pcie_throughput_bytes_per_second", GPU + ", direction", OF_GPU), BY_GPU + " {{direction}}"),), width=6, empty=_UNSUPPORTED),
            Panel("PCIe in use", TIMESERIES, p.RATIO, "As a share of what the link can.", "Full: pin host memory, overlap copies. Is the link as wide as it should be?",
                  (Query(p.most("gpubpf_gpu_pcie_utilization_ratio", GPU + ", direction", OF_GPU), BY_GPU + " {{direction}}"),), "link_utilization", width=6, empty=_UNSUPPORTED),
            Panel("NVLink in use", TIMESERIES, p.RATIO, "All links together, as a share of what they can.", "Full: the job is bound by its collectives.",
                  (Query(p.most("gpubpf_gpu_nvlink_utilization_ratio", GPU + ", direction", OF_GPU), BY_GPU + " {{direction}}"),), "link_utilization", width=6, empty=_UNSUPPORTED),
            Panel("NVLink errors", TIMESERIES, p.COUNT, "Replays and recoveries in fifteen minutes, by link.", "Always the same link: reseat or replace bridge, cable or board.",
                  (Query(f"sum by (cluster, instance, gpu, link, error) (increase(gpubpf_gpu_nvlink_link_errors_total{where(OF_GPU + ',error=~' + chr(34) + 'replay|recovery' + chr(34))}[15m]))", BY_GPU + " link {{link}} {{error}}"),), p.ANY, width=6, empty=_UNSUPPORTED),
        )),
        Row("Heat and power", (
            Panel("Temperature", TIMESERIES, p.CELSIUS, "Of the GPU.", "Fans, air flow, neighbours.",
                  (Query(p.most("gpubpf_gpu_temperature_celsius", GPU, OF_GPU), BY_GPU),), "temperature", width=6),
            Panel("Power", TIMESERIES, p.WATTS, "Drawn, and the limit.", "Busy with little power: a kernel that spins, as in a collective that hangs.",
                  (Query(p.most("gpubpf_gpu_power_watts", GPU, OF_GPU), BY_GPU),
                   Query(p.most("gpubpf_gpu_power_limit_watts", GPU, OF_GPU), BY_GPU + " limit")), width=6),
            Panel("Energy per kernel", TIMESERIES, p.JOULES, "Of the board, idle draw included.", "Compare with itself: it rises when kernels get larger, or when the GPU waits.",
                  (Query(f"{p.rate('gpubpf_gpu_energy_joules_total', GPU, OF_GPU)} / ({p.kernels('gpu', GPU, OF_GPU)} > 0)", BY_GPU),), width=6, empty="Nothing here: no kernel ran, or the board doesn't count energy."),
            Panel("Clocks held down", TIMESERIES, p.RATIO, "Share of time, by reason; reasons overlap.", "thermal: cooling. power_brake: the power supply. The power cap is normal under load.",
                  (Query(p.rate("gpubpf_gpu_throttled_seconds_total", GPU + ", reason", OF_GPU), BY_GPU + " {{reason}}"),), "throttled", width=6, empty=_UNSUPPORTED),
        )),
        Row("Faults", (
            Panel("XID errors", TIMESERIES, p.COUNT, "Since the agent's start, by code: each step is a new one.", "NVIDIA's list says which codes are a program's fault and which the board's.",
                  (Query(p.total("gpubpf_gpu_xid_errors_total", GPU + ", xid", OF_GPU), BY_GPU + " XID {{xid}}"),), width=6, empty="No XID since the agent started."),
            Panel("ECC errors", TIMESERIES, p.COUNT, "Since the driver was loaded: each step is new.", "Uncorrected: drain the node, reset the GPU. Corrected: watch whether they get more.",
                  (Query(p.total("gpubpf_gpu_ecc_errors_total", GPU + ", error", OF_GPU + ',counter="volatile"'), BY_GPU + " {{error}}"),), width=6, empty=_UNSUPPORTED),
            Panel("Bad memory", TIMESERIES, p.COUNT, "Rows that were remapped; 1 while a remapping waits for a reset, or has failed.", "Waits: reset the GPU when convenient. Failed: return the board.",
                  (Query(p.total("gpubpf_gpu_remapped_rows_total", GPU, OF_GPU), BY_GPU + " remapped"),
                   Query(p.most("gpubpf_gpu_row_remap_pending", GPU, OF_GPU), BY_GPU + " waits"),
                   Query(p.most("gpubpf_gpu_row_remap_failure", GPU, OF_GPU), BY_GPU + " failed")), width=6, empty=_UNSUPPORTED),
            Panel("PCIe replays", TIMESERIES, p.COUNT, "In fifteen minutes.", "Many: reseat the board; look at riser and slot.",
                  (Query(f"sum by (cluster, instance, gpu) (increase(gpubpf_gpu_pcie_replays_total{where(OF_GPU)}[15m]))", BY_GPU),), width=6, empty=_UNSUPPORTED),
        )),
        Row("The host", (
            Panel("Shared memory", TIMESERIES, p.RATIO, "Of the node's /dev/shm.", "Full: data loaders and NCCL end with a bus error.",
                  (Query(f"{p.most('gpubpf_node_shm_used_bytes', 'instance', OF_NODE)} / {p.most('gpubpf_node_shm_size_bytes', 'instance', OF_NODE)}", p.BY_NODE),), "shared_memory", width=4),
            Panel("… of containers", TIMESERIES, p.RATIO, "The fullest /dev/shm among containers with GPU processes.", "Give the pod a larger emptyDir of medium Memory at /dev/shm, or fewer workers.",
                  (Query(p.most("gpubpf_node_container_shm_fullest_ratio", "instance", OF_NODE), p.BY_NODE),), "shared_memory", width=4, empty="No GPU process is in a container with a /dev/shm of its own."),
            Panel("CPU of GPU processes", TIMESERIES, p.COUNT, "Cores.", "As many as the job was given: it is bound by its CPU.",
                  (Query(p.rate("gpubpf_node_gpu_process_cpu_seconds_total", "instance", OF_NODE), p.BY_NODE),), width=4),
            Panel("Memory of GPU processes", TIMESERIES, p.BYTES, "Resident host memory; pages that are shared count in each.", "Grows: data loaders, pinned memory.",
                  (Query(p.most("gpubpf_node_gpu_process_resident_bytes", "instance", OF_NODE), p.BY_NODE),), width=4),
            Panel("Pressure", TIMESERIES, p.RATIO, "Share of time in which some tasks of the node waited, by resource.", "cpu or io beside low SM utilization: the input pipeline is the bottleneck.",
                  (Query(p.rate("gpubpf_node_pressure_seconds_total", "instance, resource", OF_NODE + ',tasks="some"'), "{{instance}} {{resource}}"),), width=4, empty="Nothing here: the kernel has no pressure stall information."),
            Panel("Age of samples", TIMESERIES, p.SECONDS, "Of the newest figures, by class.", "Minutes: calls into the driver hang.",
                  (Query(p.most("gpubpf_agent_sample_age_seconds", "instance, class", OF_NODE), "{{instance}} {{class}}"),), width=4),
        )),
    ),
)  # fmt: skip
