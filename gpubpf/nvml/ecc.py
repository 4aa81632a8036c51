"""The rows of FACTS about memory errors and what they cost, and the ways in which NVML is asked."""

from __future__ import annotations

from collections.abc import Mapping

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.model import MEMORY, Labels
from gpubpf.nvml.ask import COUNTER, GAUGE, INT, UINT, ULONG, Fact, Part, Query, Ways
from gpubpf.nvml.ways import by, call, field, one

_MODE = Query("nvmlDeviceGetEccMode", (INT, INT))
_HISTOGRAM = Query("nvmlDeviceGetRowRemapperHistogram", (pynvml.c_nvmlRowRemapperHistogramValues,))
_REMAPPED = Query("nvmlDeviceGetRemappedRows", (UINT, UINT, UINT, UINT))
_SRAM = Query(
    "nvmlDeviceGetSramEccErrorStatus",
    (pynvml.c_nvmlEccSramErrorStatus_v1_t,),
    version=pynvml.nvmlEccSramErrorStatus_v1,
)
_TYPES = {
    "corrected": (pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, "SBE"),
    "uncorrected": (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, "DBE"),
}
_COUNTERS = {"volatile": (0, "VOL"), "aggregate": (1, "AGG")}
_LOCATIONS = {  # NVML's name, and that in the names of its fields
    "l1_cache": ("L1_CACHE", "L1"),
    "l2_cache": ("L2_CACHE", "L2"),
    "device_memory": ("DEVICE_MEMORY", "DEV"),  # its DRAM is the same number
    "register_file": ("REGISTER_FILE", "REG"),
    "texture_memory": ("TEXTURE_MEMORY", "TEX"),
    "cbu": ("CBU", "CBU"),
    "sram": ("SRAM", ""),
}
_WITHOUT_FIELD = (("corrected", "cbu"), ("corrected", "sram"), ("uncorrected", "sram"))


def _totals() -> Mapping[Labels, Ways]:
    return {
        (error, counter): (
            call("nvmlDeviceGetTotalEccErrors", number, which, result=ULONG),
            field(f"ECC_{short}_{when}_TOTAL"),
        )
        for error, (number, short) in _TYPES.items()
        for counter, (which, when) in _COUNTERS.items()
    }


def _locations() -> Mapping[Labels, Ways]:
    ways: dict[Labels, Ways] = {}
    for error, (number, short) in _TYPES.items():
        for counter, (which, when) in _COUNTERS.items():
            for location, (name, place) in _LOCATIONS.items():
                where = getattr(pynvml, f"NVML_MEMORY_LOCATION_{name}")
                asked = call("nvmlDeviceGetMemoryErrorCounter", number, which, where, result=ULONG)
                has_field = (error, location) not in _WITHOUT_FIELD
                fields = (field(f"ECC_{short}_{when}_{place}"),) if has_field else ()
                ways[error, counter, location] = (*fields, asked)
    return ways


def _sram_errors() -> Mapping[Labels, Ways]:
    kinds = {"corrected": "Cor", "parity": "UncParity", "secded": "UncSecDed"}
    return {
        (counter, kind): (Part(_SRAM, f"{counter}{name}"),)
        for counter in _COUNTERS
        for kind, name in kinds.items()
    }


# fmt: off
FACTS = (
    Fact("ecc_enabled", GAUGE, "1 where ECC is on, else 0.",
         "", MEMORY, one(Part(_MODE))),
    Fact("ecc_enabled_after_reboot", GAUGE, "1 where ECC is on after the next reboot, else 0.",
         "", MEMORY, one(Part(_MODE, result=1))),
    Fact("ecc_errors", COUNTER,
         "ECC errors; volatile: since the driver was loaded, aggregate: in the board's life.",
         "", MEMORY, _totals(), ("error", "counter")),
    Fact("ecc_location_errors", COUNTER,
         "ECC errors, by where they were; sram: those of caches and registers together.",
         "", MEMORY, _locations(), ("error", "counter", "location")),
    Fact("ecc_sram_errors", COUNTER,
         "ECC errors in caches and registers; parity and secded: uncorrected, by what found them.",
         "", MEMORY, _sram_errors(), ("counter", "kind")),
    Fact("ecc_sram_uncorrected_errors", COUNTER,
         "Uncorrected ECC errors in caches and registers in the board's life, by where they were.",
         "", MEMORY, by({unit: Part(_SRAM, f"aggregateUncBucket{unit.capitalize()}")
                          for unit in ("l2", "sm", "pcie", "mcu", "other")}), ("unit",)),
    Fact("ecc_sram_threshold_exceeded", GAUGE,
         "1 where caches and registers had more uncorrected ECC errors than they may, else 0.",
         "", MEMORY, one(Part(_SRAM, "bThresholdExceeded"))),
    Fact("remapped_rows", COUNTER, "Rows of memory that were remapped, by what went before.",
         "", MEMORY, by({"correctable": Part(_REMAPPED),
                          "uncorrectable": Part(_REMAPPED, result=1)}), ("error",)),
    Fact("row_remap_pending", GAUGE, "1 where a row remapping waits for a reset, else 0.",
         "", MEMORY, one(Part(_REMAPPED, result=2))),
    Fact("row_remap_failure", GAUGE, "1 where a row could not be remapped, else 0.",
         "", MEMORY, one(Part(_REMAPPED, result=3))),
    Fact("row_remap_banks", GAUGE,
         "Memory banks, by how many spare rows they have left for remapping.",
         "", MEMORY,
         by({name: Part(_HISTOGRAM, name) for name in ("max", "high", "partial", "low", "none")}),
         ("spare",)),
    Fact("retired_pages", COUNTER, "Pages of memory that were retired, by why.",
         "", MEMORY, by({"single_bit": field("RETIRED_SBE"),
                          "double_bit": field("RETIRED_DBE")}), ("error",)),
    Fact("retired_pages_pending", GAUGE, "1 where a page waits for a reset to be retired, else 0.",
         "", MEMORY, one(call("nvmlDeviceGetRetiredPagesPendingStatus"),
                          field("RETIRED_PENDING"))),
)
# fmt: on
