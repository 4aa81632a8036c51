"""The rows of FACTS about what NVLink switches and chip-to-chip links make of several boards."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.model import LINKS, Labels
from gpubpf.nvml.ask import GAUGE, Fact, Part, Query, Ways
from gpubpf.nvml.ways import by, one

_TROUBLES = {  # of two bits: 0 not supported, 1 there is, 2 there isn't
    "degraded_bandwidth": pynvml.NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_DEGRADED_BW,
    "route_recovery": pynvml.NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_ROUTE_RECOVERY,
    "route_unhealthy": pynvml.NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_ROUTE_UNHEALTHY,
    "access_timeout_recovery": pynvml.NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_ACCESS_TIMEOUT_RECOVERY,
}
_CONFIGURATION = pynvml.NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_INCORRECT_CONFIGURATION


class _Fabric(ctypes.Structure):
    """What NVML says of how a registration ended is only true once it has ended."""

    state: int
    status: int
    cliqueId: int  # noqa: N815 (NVML's name)

    @property
    def ended(self) -> int | None:
        return self.status if self.state == pynvml.NVML_GPU_FABRIC_STATE_COMPLETED else None

    @property
    def clique(self) -> int | None:
        return self.cliqueId if self.ended == 0 else None


class _Fabric1(_Fabric):
    _fields_ = pynvml.c_nvmlGpuFabricInfo_t._fields_


class _Fabric2(_Fabric):
    _fields_ = pynvml.c_nvmlGpuFabricInfo_v2_t._fields_
    healthMask: int  # noqa: N815 (NVML's name)

    def __getattr__(self, name: str) -> int | None:
        """A trouble: 1, 0, or None where it isn't looked for."""
        return {1: 1, 2: 0}.get(self.healthMask >> _TROUBLES[name] & 3)

    @property
    def configuration(self) -> int | None:
        """0: correct, else what is wrong; NVML's numbers begin with "not supported"."""
        number = self.healthMask >> _CONFIGURATION & 0xF
        return number - 1 if number else None


_NEWER = Query("nvmlDeviceGetGpuFabricInfoV", (_Fabric2,), version=pynvml.nvmlGpuFabricInfo_v2)
_OLDER = Query("nvmlDeviceGetGpuFabricInfo", (_Fabric1,))  # before driver 550


def _fabric(attribute: str) -> Mapping[Labels, Ways]:
    return one(Part(_NEWER, attribute), Part(_OLDER, attribute))


# fmt: off
FACTS = (
    Fact("fabric_state", GAUGE,
         "Registration with the NVLink fabric: 0 none, 1 not started, 2 in progress, 3 completed.",
         "", LINKS, _fabric("state")),
    Fact("fabric_status", GAUGE,
         "How the registration with the NVLink fabric ended: 0 well, else an error code of NVML.",
         "", LINKS, _fabric("ended")),
    Fact("fabric_clique", GAUGE, "Clique of the NVLink fabric that the GPU belongs to.",
         "", LINKS, _fabric("clique")),
    Fact("fabric_trouble", GAUGE, "1 where the NVLink fabric of the GPU has this trouble, else 0.",
         "", LINKS, by({name: Part(_NEWER, name) for name in _TROUBLES}), ("trouble",)),
    Fact("fabric_configuration_error", GAUGE,
         "What is wrong with the configuration of the NVLink fabric: 0 nothing, 1 system GUID, 2 "
         "chassis serial number, 3 no partition, 4 too few NVLinks, 5 GPU firmware, 6 location, 7 "
         "state of the GPU.",
         "", LINKS, one(Part(_NEWER, "configuration"))),
    Fact("c2c_enabled", GAUGE, "1 where the chip-to-chip link to the CPU is on, else 0.",
         "", LINKS, one(Part(Query("nvmlDeviceGetC2cModeInfoV", (pynvml.c_nvmlC2cModeInfo_v1_t,)),
                             "isC2cEnabled"))),
)
# fmt: on
