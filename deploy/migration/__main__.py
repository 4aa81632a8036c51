"""Writes deploy/MIGRATION.md, or checks that it is what the tables say."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from deploy.migration import tables
from deploy.migration.tables import DCGM, NVITOP, SMI
from gpubpf.compat import coverage

PROGRAM = "deploy.migration"

_HEAD = """\
# Beside other exporters, and in their place

Written by `.venv/bin/python -m deploy.migration --write deploy/MIGRATION.md` from the tables
there.

## On one node with others

gpubpf runs beside node_exporter, dcgm-exporter and the rest. It listens on one port, all its
names begin with `gpubpf_`, and it reads NVML, which any number of programs may read.

"""

_BESIDE = """
The tests run the real ones at once in a network of their own, each with its own default port and
one Prometheus that scrapes all. `go_`, `process_` and `promhttp_` are of the program itself:
several exporters have them, gpubpf doesn't.

**With node_exporter** the label `node` joins, which `deploy/prometheus` makes of the address;
give node_exporter's job the same rule. Both have pressure (`gpubpf_node_pressure_seconds_total`,
`node_pressure_…`) and neither needs the other.

"""

_DRIVER = """
**With DCGM.**

* Both read NVML. gpubpf changes nothing in the driver: no mode, no limit, no counter is set or
  reset.
* *Profiling.* Up to Ampere and Ada, DCGM's profiling metrics take a subsystem of the GPU that one
  program can have at a time; Nsight and CUPTI want it too, hence `dcgmi profile --pause`. gpubpf
  never takes it, so it needs no pause and makes none necessary; it has no `DCGM_FI_PROF_…` there.
  From Hopper on both use GPM: another subsystem, says a maintainer of DCGM (NVIDIA/DCGM issue
  62), on which metrics and profilers don't exclude each other; gpubpf keeps its samples itself.
  None of this could be tried: there was no GPU, and no DCGM.
* *Drivers and MIG.* Who upgrades a driver or divides a board stops `nv-hostengine` and
  dcgm-exporter first. `gpubpf release` lets the agent go on counting calls meanwhile; `gpubpf
  resume` takes the GPUs up again.
* *Names.* `--compat dcgm` gives names that dcgm-exporter gives, too: while both are scraped, any
  query that doesn't name a `job` counts every GPU twice. So have one of the two at a time, or
  drop the names of one: `metric_relabel_configs: [{source_labels: [__name__], regex: "DCGM_.+",
  action: drop}]`. With `--compat nvidia-smi` it is the same.

## From dcgm-exporter, in steps

1. **Beside.** Run gpubpf without `--compat`, as the [README](../README.md) says, and scrape both,
   under jobs of their own. With the rules of `deploy/prometheus` gpubpf's alerts are there from
   now on.
2. **Compare** for as long as you like; another metric with its row of [COVERAGE.md](COVERAGE.md).
   Of boards that are divided (MIG) dcgm-exporter has the instances: compare with `gpubpf_mig_…`.
"""

_SWITCH = """
3. **Switch.** Give gpubpf `--compat dcgm`, and stop scraping dcgm-exporter at the same moment
   (remove its job, or drop its names as above). Dashboards and rules that ask for `DCGM_…` go on,
   those that name a `job` once they name gpubpf's. What counts (energy, ECC, replays) goes on
   where the driver has it; as the series are others, `increase` misses what fell into the switch.
4. **Rename** dashboards and rules one by one, by the tables here; or take those of
   `deploy/grafana` and `deploy/prometheus`.
5. **End.** Take `--compat` away. Uninstall dcgm-exporter, and DCGM where nothing else uses it:
   health checks and diagnostics (`dcgmi health`, `dcgmi diag`), NVSwitches and CPUs are not in
   gpubpf.

From nvidia_gpu_exporter it is the same with `--compat nvidia-smi`. nvitop-exporter has no
`--compat`: rename at once.

## Units and rounding

gpubpf has base units: bytes, hertz, seconds, joules, and ratios from 0 to 1. So do most names of
nvidia_gpu_exporter; dcgm-exporter has MiB, MHz, nanoseconds, millijoules and percent, and cuts
fractions off, of MiB for example. [COVERAGE.md](COVERAGE.md) has the factor of each metric. What
a board doesn't have is absent here; a query with `or vector(0)` makes it 0, which is not the
same. `DCGM_FI_DEV_FB_USED` and `gpubpf_gpu_memory_used_bytes` are without what the driver
reserves.

"""

_QUERIES = """
## Queries before and after

The tests ask a real Prometheus both, at the same moment, of a simulated node where each returns
something, and get the same figures for the same GPUs (of XID errors the same GPUs). "Before" is
what `--compat` gives, not the other exporter itself, except nvitop-exporter, which runs. The last
column names the shipped alert for it.
"""

_JOBS = """
By pod or job nothing can be the same: dcgm-exporter puts the label of a pod on the board's figure,
gpubpf counts by process. What asked `DCGM_FI_DEV_GPU_UTIL{exported_pod="train-0"}` asks:

```promql
gpubpf_job_sm_utilization_ratio
  * on (instance, job_id) group_left (namespace, name) gpubpf_job_info{name="train-0"}
```

## Labels

"""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    head = [*head]
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n"


def _promql(*queries: str) -> str:
    return "```promql\n" + "\n\n".join(queries) + "\n```\n"


def document() -> str:
    return "".join(_parts())


def _parts() -> Iterator[str]:
    yield _HEAD
    yield from _table(
        ("program", "port", "its names begin with", "tried beside gpubpf"),
        (
            (row.program, ", ".join(map(str, row.ports)), row.names, row.tried)
            for row in tables.NEIGHBOURS
        ),
    )
    yield _BESIDE
    yield _promql(*(f"# {what}\n{query}" for what, query in tables.BESIDE))
    yield _DRIVER
    yield "\n" + _promql(tables.COMPARE, tables.MISSING)
    yield _SWITCH
    yield _QUERIES
    for exporter in (DCGM, SMI, NVITOP):
        yield f"\n### {exporter}\n\n"
        yield from _table(
            ("what", "before", "after", "see"),
            (
                (row.what, f"`{row.before}`", f"`{row.after}`", row.note)
                for row in tables.QUERIES
                if row.of == exporter
            ),
        )
    yield _JOBS
    yield from _table(("dcgm-exporter", "gpubpf", ""), tables.LABELS)
    yield "\n## Options\n\n"
    yield from _table(
        ("of", "there", "here", ""),
        ((row.of, row.theirs, row.ours, row.note) for row in tables.OPTIONS),
    )


if __name__ == "__main__":
    sys.exit(coverage.main(text=document, program=PROGRAM))
