"""ALERTS: one row per alert, from which the rule files, their switches and the runbook are made.

Expressions name thresholds in braces: {sm_utilization} is the value of that row of THRESHOLDS. Of a
job's diagnosis there is one alert, not one per GPU and one per job: the GPU's where jobs are off.
"""

# ruff: noqa: E501, S108  prose in a table
from __future__ import annotations

from typing import NamedTuple

from deploy.monitoring.thresholds import THRESHOLDS
from deploy.monitoring.told import GPU_DOWN, SOURCE_DOWN, measured
from gpubpf.diagnosis import DIAGNOSES

CRITICAL, WARNING, INFO, NONE = "critical", "warning", "info", "none"

_HELD_DOWN = '".*thermal.*|hw_power_brake.*|reliability|board_limit"'


class Alert(NamedTuple):
    name: str  # without "Gpubpf"
    group: str  # the file's part that it is in
    severity: str
    expr: str
    lasting: str  # a duration, or the name of a threshold that has it
    summary: str
    description: str  # with the value
    means: str  # for the runbook: what it says
    do: str  # and what to do

    @property
    def full_name(self) -> str:
        return f"Gpubpf{self.name}"

    @property
    def duration(self) -> str:
        return THRESHOLDS[self.lasting].lasting if self.lasting in THRESHOLDS else self.lasting

    @property
    def query(self) -> str:
        return self.expr.format_map({name: f"{row.value:g}" for name, row in THRESHOLDS.items()})


_GPU = "GPU {{ $labels.gpu }} of {{ $labels.instance }}"
_PERCENT = "{{ $value | humanizePercentage }}"


def _diagnosis(name: str, severity: str, summary: str, means: str, do: str, *more: str) -> Alert:
    """By job where there are jobs, else by GPU. `more`: inputs that it doesn't need, and looks at."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    job = f'gpubpf_job_diagnosis{{{{diagnosis="{name}"}}}}'
    gpu = f'gpubpf_gpu_diagnosis{{{{diagnosis="{name}"}}}}'
    return Alert(
        camel,
        "diagnoses",
        severity,
        f"{job} == 1\nor\n({gpu} == 1 unless on (cluster, instance, gpu) {job} == 1)",
        "1m",
        f"{summary}: {{{{ with $labels.job_id }}}}job {{{{ . }}}} on {{{{ end }}}}{_GPU}",
        f"{means} {', '.join(map(measured, (*DIAGNOSES[name].needs, *more)))}.",
        means,
        do,
    )


ALERTS: tuple[Alert, ...] = (
    # --- the agent --------------------------------------------------------------------------------
    Alert(
        "AgentDown", "agent", CRITICAL,
        'up{{job=~".*gpubpf.*"}} == 0',
        "5m",
        "gpubpf on {{ $labels.instance }} can't be scraped",
        "Prometheus has had no answer of {{ $labels.instance }} for 5 minutes: nothing is known of "
        "its GPUs.",
        "The agent is down, its node is, or Prometheus may not reach it. Alerts of its GPUs and jobs end "
        "with its series, before this one is told: that they end says nothing of their causes.",
        "Look at the pod or the unit (`kubectl describe pod`, `systemctl status gpubpf`), and at its "
        "log: the last line says why it ended. `gpubpf doctor` on the node says what is missing.",
    ),
    Alert(
        "NotScraped", "agent", WARNING,
        # Nodes with GPUs may be none for a time, where they come and go.
        'absent(up{{job=~".*gpubpf.*"}})\n'
        'unless sum(kube_daemonset_status_desired_number_scheduled{{daemonset=~".*gpubpf.*"}}) == 0',
        "15m",
        "no gpubpf is scraped",
        "Where these rules are asked there is no target whose job has gpubpf in its name: nothing is "
        "known of any GPU.",
        "Nothing is scraped, or by a job of another name: alerts and dashboards look for `gpubpf`. One "
        "store of several clusters says so only when all are gone; one of several Prometheus servers "
        "that share the rules, when the targets are another's: leave this alert out there.",
        "Look at the targets' page. With the Prometheus operator: does it select monitors by a label "
        "that this one hasn't (`podMonitor.labels`)? Call the job so that its name has gpubpf in it.",
    ),
    Alert(
        "PodsMissing", "agent", WARNING,
        # Not the series' own labels: they are of the pod of kube-state-metrics, which may change.
        "max by (cluster, namespace, daemonset) (\n"
        '  kube_daemonset_status_number_unavailable{{daemonset=~".*gpubpf.*"}}) > 0\n'
        # An update that goes on has always some that don't run.
        "unless max by (cluster, namespace, daemonset) (changes(\n"
        '  kube_daemonset_status_updated_number_scheduled{{daemonset=~".*gpubpf.*"}}[10m])) > 0',
        "15m",
        "gpubpf doesn't run on all nodes that it is meant for",
        "{{ $value }} pods of the DaemonSet {{ $labels.namespace }}/{{ $labels.daemonset }} are not "
        "ready.",
        "Pods of the DaemonSet don't start or don't get ready, and no update goes on: a pod that never "
        "was has no series that could be down. By kube-state-metrics; without it this alert is silent.",
        "`kubectl get pods -o wide` says which nodes, `kubectl describe pod` why: no image, no room, "
        "not admitted, or the agent ends and its log says why.",
    ),
    Alert(
        "SourceDown", "agent", WARNING,
        'gpubpf_agent_source_up{{source!~"bpf|nvml"}} == 0',
        "10m",
        "gpubpf on {{ $labels.instance }} can't read {{ $labels.source }}",
        "The source {{ $labels.source }} has failed for 10 minutes; what it tells is absent or old: "
        f"{SOURCE_DOWN}.",
        "Names of pods, the state file, the web configuration, the node's figures or the search for "
        "libraries fail.",
        "The agent's front page, http://node:10440/ (https with TLS), says why in one line.",
    ),
    Alert(
        "NothingCounted", "agent", CRITICAL,
        'gpubpf_agent_source_up{{source=~"bpf|nvml"}} == 0',
        "10m",
        "gpubpf on {{ $labels.instance }} can't read {{ $labels.source }}",
        "The source {{ $labels.source }} has failed for 10 minutes, and half of what gpubpf tells is "
        f"missing: {SOURCE_DOWN}.",
        "BPF's counters, or the driver by NVML, can't be read.",
        "The agent's front page says why. nvml: is the driver loaded, did a GPU fall off the bus "
        "(`dmesg | grep -i xid`)? bpf: was the agent's file system or capability set changed?",
    ),
    Alert(
        "ProbesDetached", "agent", WARNING,
        "sum by (cluster, instance) (gpubpf_agent_library_copies{{state!=\"attached\"}}) > 0",
        "10m",
        "gpubpf on {{ $labels.instance }} doesn't probe every libcuda in use",
        "{{ $value }} copies of libcuda are in use and not probed: calls through them are not "
        "counted.",
        "More copies are in use than may be probed, or a user's own program serves one (FUSE).",
        "`gpubpf_agent_library_copies` says which; `gpubpf doctor` lists the files.",
    ),
    Alert(
        "PointersElsewhere", "agent", WARNING,
        "gpubpf_agent_pointers_elsewhere > 0",
        "10m",
        "the driver of {{ $labels.instance }} hands out functions past their probes",
        "{{ $value }} functions of the driver have pointers that are not the probed exports: their "
        "calls are missed.",
        "A newer driver hands out other entry points than the ones that gpubpf probes.",
        "`gpubpf doctor` names them; update gpubpf.",
    ),
    Alert(
        "CountsLost", "agent", WARNING,
        "sum by (cluster, instance, map) (increase(gpubpf_agent_lost_total[15m])) > 0",
        "0s",
        "gpubpf on {{ $labels.instance }} could not keep everything ({{ $labels.map }})",
        "{{ $value | humanize }} entries were not kept in the last 15 minutes: {{ $labels.map }}.",
        "A BPF map was full. Calls are still counted on the node; what they were for may not be.",
        "Compare `gpubpf_agent_map_entries` with `gpubpf_agent_map_capacity`.",
    ),
    Alert(
        "JobsShareOther", "agent", WARNING,
        'gpubpf_agent_jobs{{state="other"}} > 0',
        "15m",
        "more jobs on {{ $labels.instance }} than have series",
        "{{ $value }} jobs share job_id=\"other\": all --max-jobs are taken.",
        "The bound on series was reached. Nothing is lost: the jobs are counted together.",
        "Raise --max-jobs (`gpubpf doctor` says what that costs), or shorten --job-retention.",
    ),
    Alert(
        "SnapshotsOld", "agent", WARNING,
        "gpubpf_agent_sample_age_seconds > 300",
        "5m",
        "figures of class {{ $labels.class }} on {{ $labels.instance }} are old",
        "The newest sample is {{ $value | humanizeDuration }} old.",
        "Calls into the driver hang, or take very long.",
        "Look at `gpubpf_agent_source_read_seconds` and at the node's kernel log.",
    ),
    # --- the boards -------------------------------------------------------------------------------
    Alert(
        "GpuDown", "boards", CRITICAL,
        "gpubpf_gpu_up == 0",
        "2m",
        f"{_GPU} doesn't answer",
        f"Every call of NVML about the GPU fails: {GPU_DOWN}.",
        "The GPU fell off the bus, its calls hang, or it was released for a reset.",
        "`dmesg | grep -i xid`; drain the node; reset the GPU or reboot.",
    ),
    Alert(
        "Xid", "boards", WARNING,
        # By when it was: an old one isn't new after a gap, or to a new server.
        "max by (cluster, instance, gpu, uuid, xid) (gpubpf_gpu_xid_errors_total\n"
        "  and on (cluster, instance, gpu, uuid, xid)\n"
        "    time() - gpubpf_gpu_xid_last_timestamp_seconds < 600)",
        "0s",
        f"XID {{{{ $labels.xid }}}} on {_GPU}",
        "In the last 10 minutes; {{ $value | humanize }} of this code since the agent's start.",
        "The driver reported an error of the GPU or of a program on it. NVIDIA's list of XIDs says "
        "which codes are a program's fault (13, 31, 43, 45) and which the board's (48, 63, 64, 74, "
        "79, 94, 95).",
        "A program's: tell its owner. The board's: drain the node, reset the GPU, run a diagnostic.",
    ),
    Alert(
        "EccUncorrected", "boards", CRITICAL,
        "sum by (cluster, instance, gpu, uuid) (increase(\n"
        '  gpubpf_gpu_ecc_errors_total{{error="uncorrected",counter="volatile"}}[10m])) > 0',
        "0s",
        f"uncorrected ECC errors on {_GPU}",
        "{{ $value | humanize }} in 10 minutes.",
        "Memory of the GPU lost data; what was computed with it may be wrong, or its program ended.",
        "Drain the node and reset the GPU; return the board if it comes again.",
    ),
    Alert(
        "RowRemapPending", "boards", WARNING,
        "gpubpf_gpu_row_remap_pending == 1 or gpubpf_gpu_retired_pages_pending == 1",
        "5m",
        f"{_GPU} needs a reset to put bad memory aside",
        "A row of memory waits to be remapped, or a page to be retired.",
        "The GPU found bad memory and can put it aside only at a reset.",
        "Drain the node when convenient, and reset the GPU.",
    ),
    Alert(
        "RowRemapFailed", "boards", CRITICAL,
        "gpubpf_gpu_row_remap_failure == 1",
        "0s",
        f"{_GPU} has no spare memory left where it went bad",
        "A row of memory could not be remapped.",
        "The board is worn or broken.",
        "Drain the node, and return the board.",
    ),
    Alert(
        "RecoveryNeeded", "boards", CRITICAL,
        "gpubpf_gpu_recovery_action > 0",
        "2m",
        f"the driver wants {_GPU} to be recovered",
        "Action {{ $value }}: 1 reset it, 2 reboot the node, 3 and 4 drain it first.",
        "The driver says that the GPU can't go on as it is.",
        "Do what the driver asks for.",
    ),
    Alert(
        "NvlinkErrors", "boards", WARNING,
        'sum by (cluster, instance, gpu, uuid, link) (\n'
        '  increase(gpubpf_gpu_nvlink_link_errors_total{{error=~"replay|recovery"}}[15m])) > 0',
        "0s",
        f"NVLink {{{{ $labels.link }}}} of {_GPU} has errors",
        "{{ $value | humanize }} replays or recoveries in 15 minutes.",
        "A link sends again what arrived broken; collectives get slow.",
        "Look whether it is always the same link; reseat or replace bridge, cable or board.",
    ),
    Alert(
        "TooHot", "boards", WARNING,
        "gpubpf_gpu_temperature_celsius > {temperature}",
        "temperature",
        f"{_GPU} is hot",
        "{{ $value }} °C.",
        "The GPU is near the temperature at which it slows itself down.",
        "Look at fans, air flow and neighbours; compare with gpubpf_gpu_temperature_threshold_celsius.",
    ),
    Alert(
        "Throttled", "boards", WARNING,
        "sum by (cluster, instance, gpu, uuid, reason) (\n"
        f"  rate(gpubpf_gpu_throttled_seconds_total{{{{reason=~{_HELD_DOWN}}}}}[10m])) > {{throttled}}",
        "throttled",
        f"the clocks of {_GPU} are held down: {{{{ $labels.reason }}}}",
        f"{_PERCENT} of the time.",
        "Heat, power supply or an external brake holds the GPU's clocks down. Drawing its power limit "
        "is normal under load, and isn't in this.",
        "Thermal: cooling. Power brake: the node's power supply or the rack's.",
    ),
    # --- links and memory -------------------------------------------------------------------------
    Alert(
        "LinkSaturated", "use", INFO,
        "max by (cluster, instance, gpu, uuid) (gpubpf_gpu_nvlink_utilization_ratio) > {link_utilization}\n"
        "or\nmax by (cluster, instance, gpu, uuid) (gpubpf_gpu_pcie_utilization_ratio) > {link_utilization}",
        "link_utilization",
        f"a link of {_GPU} is full",
        f"{_PERCENT} of what it can carry.",
        "The job waits for NVLink or PCIe.",
        "Compare gpubpf_gpu_nvlink_utilization_ratio and gpubpf_gpu_pcie_utilization_ratio; pin host "
        "memory, overlap copies, or place the ranks closer together.",
    ),
    Alert(
        "Fragmented", "use", INFO,
        "gpubpf_gpu_memory_fragmentation_ratio > {fragmentation}",
        "fragmentation",
        f"memory of {_GPU} is fragmented",
        f"{_PERCENT} of the memory that live allocations touch is not theirs.",
        "Large allocations may fail though there is memory.",
        "Allocate large buffers first, use a pool, or PyTorch's expandable segments.",
    ),
    Alert(
        "MemoryRunsOut", "use", WARNING,
        "predict_linear(gpubpf_gpu_memory_used_bytes[30m], {memory_runs_out})\n"
        "  > gpubpf_gpu_memory_size_bytes\n"
        # In each part of the time: a job that starts and takes what it needs is no trend.
        "and deriv(gpubpf_gpu_memory_used_bytes[10m]) > 0\n"
        "and deriv(gpubpf_gpu_memory_used_bytes[10m] offset 10m) > 0\n"
        "and deriv(gpubpf_gpu_memory_used_bytes[10m] offset 20m) > 0",
        "memory_runs_out",
        f"{_GPU} will be out of memory within 30 minutes",
        "As it has grown for half an hour it will be {{ $value | humanize1024 }}B in 30 minutes.",
        "Memory in use grows, and the board's own size is near.",
        "Which job grows: gpubpf_job_live_bytes. A leak, or a cache without bound?",
    ),
    Alert(
        "AllocationsFail", "use", WARNING,
        # The first one of a function makes its series.
        "sum by (cluster, instance, error) (\n"
        '  increase(gpubpf_call_errors_total{{error="CUDA_ERROR_OUT_OF_MEMORY"}}[10m])\n'
        '  or (gpubpf_call_errors_total{{error="CUDA_ERROR_OUT_OF_MEMORY"}}\n'
        '      unless gpubpf_call_errors_total{{error="CUDA_ERROR_OUT_OF_MEMORY"}} offset 10m)) > 0',
        "0s",
        "allocations on {{ $labels.instance }} fail",
        "{{ $value | printf `%.0f` }} in 10 minutes found no memory.",
        "A program asked for more device memory than there was. Caching allocators try it on purpose.",
        "gpubpf_job_call_errors_total says which job (where jobs are on). If that one fails by it: a "
        "smaller batch, or look for who else holds memory of that GPU.",
    ),
    Alert(
        "SharedMemoryFull", "use", WARNING,
        "gpubpf_node_shm_used_bytes / gpubpf_node_shm_size_bytes > {shared_memory}\n"
        "or gpubpf_node_container_shm_fullest_ratio > {shared_memory}",
        "shared_memory",
        "/dev/shm on {{ $labels.instance }} is nearly full",
        f"{_PERCENT} is used.",
        "Data loaders and NCCL use shared memory; they end with a bus error where there is none.",
        "Give the pod a larger emptyDir of medium Memory at /dev/shm, or fewer workers.",
    ),
    Alert(
        "LowUtilization", "use", WARNING,
        "avg_over_time(instance_gpu:gpubpf_sm_utilization:ratio[30m]) < {sm_utilization}\n"
        "and on (cluster, instance, gpu)\n"
        "  gpubpf_gpu_memory_used_bytes / gpubpf_gpu_memory_size_bytes > {held_memory}",
        "sm_utilization",
        f"{_GPU} is held and little used",
        f"{_PERCENT} on average over half an hour.",
        "Somebody holds the GPU's memory and uses less than a third of it.",
        "Input pipeline, small batches, many small kernels (launch-bound), waiting for other ranks? "
        "The job dashboard shows launches, copies and waits beside each other.",
    ),
    # --- what only both sides together say --------------------------------------------------------
    _diagnosis(
        "idle_holder", WARNING, "memory is held and nothing runs",
        "Memory is held, and nothing was launched for a while.",
        "Ask the job's owner; a forgotten notebook is the usual case. GPU-hours lost so far: "
        "gpubpf_job_idle_seconds_total.",
        "utilization_ratio",
    ),
    _diagnosis(
        "stalled", CRITICAL, "it hangs",
        "Launches stopped, and a kernel runs on: most often a collective that waits for a rank.",
        "Look for a rank that died or lags (its launches stopped first), and for XIDs and NVLink "
        "errors. `py-spy dump` of a rank says where its host code waits.",
    ),
    _diagnosis(
        "launch_bound", INFO, "the GPU waits for the CPU",
        "Many small launches, little work on the SMs, and no thread waits for the GPU.",
        "CUDA graphs, torch.compile, larger batches, fewer and larger kernels.",
    ),
    _diagnosis(
        "memory_churn", INFO, "memory is allocated all the time",
        "Allocations and frees in the inner loop, past any pool.",
        "Use a caching allocator or cudaMallocAsync; allocate outside of the loop.",
    ),
    _diagnosis(
        "memory_growth", WARNING, "memory only grows",
        "Live bytes only grew for a while: a leak, or a warm-up that goes on.",
        "Compare with the step: does it grow each step? Look for tensors kept alive (losses that are "
        "summed up with their graph).",
    ),
    _diagnosis(
        "near_full", INFO, "memory is nearly full",
        "Little device memory is left.",
        "Fine where a framework takes all it can on purpose; else smaller batches, or a larger board.",
    ),
    # --- against the job's own past ---------------------------------------------------------------
    Alert(
        "SlowerThanBefore", "trends", WARNING,
        "job:gpubpf_launches:rate5m\n"
        "  < {trend} * (avg_over_time(job:gpubpf_launches:rate5m[1h] offset 15m) > 1)\n"
        'and on (cluster, job_id) job:gpubpf_gpus:count{{job_id!~"none|other"}} > 0',
        "trend",
        "job {{ $labels.job_id }} launches less than it did",
        "{{ $value | humanize }} launches a second, less than half of its own past hour.",
        "The job lost pace, whatever its pace is: data, stragglers, checkpoints, throttling.",
        "Compare its step time, copies, waits, clocks and the node's pressure with an hour ago.",
    ),
    Alert(
        "QuietPhase", "trends", NONE,
        'max by (cluster, job_id) (training_phase{{phase=~"warmup|evaluation|validation|checkpoint"}}) == 1',
        "0s",
        "job {{ $labels.job_id }} is in a phase of its own",
        "It says so itself, by training_phase: minor alerts of it are silenced.",
        "Not an alert: Alertmanager's inhibition needs it. The job exports training_phase{phase=…}, "
        "or a recording rule makes it of what the job exports.",
        "Nothing.",
    ),
    Alert(
        "StepsSlower", "trends", WARNING,
        "job:gpubpf_step_seconds:avg5m\n"
        "  > {step_time} * avg_over_time(job:gpubpf_step_seconds:avg5m[1h] offset 15m)",
        "step_time",
        "steps of job {{ $labels.job_id }} take longer than they did",
        "{{ $value | humanizeDuration }} a step.",
        "The job's own step time rose. Launch rate fell as well: the host feeds the GPU slower (data, "
        "CPU). It stayed: each step does more, or waits for other ranks.",
        "The job dashboard shows step time, launch rate and SM utilization beside each other.",
    ),
)  # fmt: skip
"""`StepsSlower` needs the job's own histogram: see `deploy.monitoring.rules`."""
