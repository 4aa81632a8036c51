"""The NVML library: loading, initialising, and what is asked once."""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

from gpubpf.model import DeviceInfo
from gpubpf.nvml import codes
from gpubpf.nvml.codes import DEFAULT_LIBRARY, NvmlError

_ARCHITECTURES = {
    pynvml.NVML_DEVICE_ARCH_KEPLER: "Kepler",
    pynvml.NVML_DEVICE_ARCH_MAXWELL: "Maxwell",
    pynvml.NVML_DEVICE_ARCH_PASCAL: "Pascal",
    pynvml.NVML_DEVICE_ARCH_VOLTA: "Volta",
    pynvml.NVML_DEVICE_ARCH_TURING: "Turing",
    pynvml.NVML_DEVICE_ARCH_AMPERE: "Ampere",
    pynvml.NVML_DEVICE_ARCH_ADA: "Ada",
    pynvml.NVML_DEVICE_ARCH_HOPPER: "Hopper",
    pynvml.NVML_DEVICE_ARCH_BLACKWELL: "Blackwell",
}
_BRANDS = {
    value: name.removeprefix("NVML_BRAND_").replace("_", " ").title()
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_BRAND_") and not name.endswith(("COUNT", "UNKNOWN"))
}


class Library:
    """The NVML library at `path` (its soname if None); pynvml uses it too.

    pynvml has one library handle in a process: one Library at a time.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._library: Any = None
        self.initialised = False

    def init(self) -> None:
        """Raises NvmlError; where it fails there is nothing to shut down."""
        self._load()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise codes.error(int(error.value)) from None
        self.initialised = True

    def shutdown(self) -> None:
        """Lets go of the driver's device files, and of the library. Never raises.

        No thread may be in a call. The library goes too: with another driver comes another one, and
        the old one in memory would refuse it for ever.
        """
        if self.initialised:
            self.initialised = False
            with contextlib.suppress(pynvml.NVMLError):  # where the driver went first
                pynvml.nvmlShutdown()
        if self._library is not None:
            if pynvml.nvmlLib is self._library:
                pynvml.nvmlLib = None
                pynvml._nvmlGetFunctionPointer_cache.clear()
            _ctypes.dlclose(self._library._handle)
            self._library = None

    def _load(self) -> None:
        if self._library is None:
            path = self._path or DEFAULT_LIBRARY
            try:
                library = ctypes.CDLL(path)
            except OSError as error:
                if self._path is None:
                    raise codes.error(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND) from None
                message = " ".join(f"can't load the NVML library {path}: {error}".split())
                raise NvmlError(message, fatal=True) from None
            if not hasattr(library, "nvmlInitWithFlags"):
                message = f"{path} is not an NVML library: name a {DEFAULT_LIBRARY}"
                raise NvmlError(message, fatal=True)
            self._library = library
        if pynvml.nvmlLib is not self._library:  # pynvml has no argument for the path
            pynvml.nvmlLib = self._library
            pynvml._nvmlGetFunctionPointer_cache.clear()

    def function(self, *names: str) -> Any:
        """The first of these that the library has, or None."""
        for name in names:
            try:
                return self._library[name]
            except AttributeError:
                continue
        return None


def asked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What an optional pynvml call returns, None where it can't or isn't text."""
    try:
        return function(*arguments)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return None


def _text(function: Callable[..., Any], *arguments: Any) -> str:
    value = asked(function, *arguments)
    return "" if value is None else str(value)


def _hexadecimal(number: int) -> str:
    """As nvidia-smi writes it; "" for none."""
    return f"0x{number:08X}" if number else ""


def _pci_class(handle: Any) -> str:
    """As lspci writes it: "0302", the base class and the sub-class."""
    told = pynvml.nvmlPciInfoExt_v1_t(version=pynvml.nvmlPciInfoExt_v1)
    try:
        pynvml.nvmlDeviceGetPciInfoExt(handle, ctypes.byref(told))
    except pynvml.NVMLError:  # older drivers
        return ""
    return f"{told.baseClass:02x}{told.subClass:02x}"


def _platform(handle: Any) -> dict[str, Any]:
    """Where the board is in a rack, as far as known: by field of DeviceInfo."""
    told = pynvml.c_nvmlPlatformInfo_v2_t()
    try:
        pynvml.nvmlDeviceGetPlatformInfo(handle, ctypes.byref(told))
    except pynvml.NVMLError:  # older drivers, and boards in no rack
        return {}
    raw = bytes(told)  # pynvml declares what are numbers as characters
    slot, tray, host, _, module = ("" if byte == 0xFF else str(byte) for byte in raw[36:41])
    return {
        "fabric_guid": f"0x{raw[4:12].hex().upper()}" if any(raw[4:12]) else "",
        "chassis_serial": raw[20:36].split(b"\0")[0].decode("ascii", "replace"),
        "slot": slot,
        "tray": tray,
        "host_id": host,
        "module_id": module,
    }


def peers(uuid: str, handles: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """What the driver says of NVLink between a device and each other one, by its UUID."""
    index = pynvml.NVML_P2P_CAPS_INDEX_NVLINK
    told = (
        (other, asked(pynvml.nvmlDeviceGetP2PStatus, handles[uuid], handle, index))
        for other, handle in handles.items()
        if other != uuid
    )
    return tuple((other, status) for other, status in told if status is not None)


class System:
    """What is asked once of the driver."""

    def __init__(self) -> None:
        self.driver = _text(pynvml.nvmlSystemGetDriverVersion)
        self.nvml = _text(pynvml.nvmlSystemGetNVMLVersion)
        cuda = asked(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        self.cuda = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None

    def device(self, index: int, uuid: str, handle: Any) -> DeviceInfo:
        """What doesn't change of a device while the driver is loaded."""
        pci = asked(pynvml.nvmlDeviceGetPciInfo, handle)
        capability = asked(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        inforom = pynvml.nvmlDeviceGetInforomVersion
        return DeviceInfo(
            index=index,
            uuid=uuid,
            name=_text(pynvml.nvmlDeviceGetName, handle),
            driver_version=self.driver,
            nvml_version=self.nvml,
            cuda_version=self.cuda,
            pci_bus_id=pci and str(pci.busId),
            minor=asked(pynvml.nvmlDeviceGetMinorNumber, handle),
            mig=divided(handle),
            serial=_text(pynvml.nvmlDeviceGetSerial, handle),
            part_number=_text(pynvml.nvmlDeviceGetBoardPartNumber, handle),
            vbios_version=_text(pynvml.nvmlDeviceGetVbiosVersion, handle),
            inforom_version=_text(pynvml.nvmlDeviceGetInforomImageVersion, handle),
            inforom_oem_version=_text(inforom, handle, pynvml.NVML_INFOROM_OEM),
            inforom_ecc_version=_text(inforom, handle, pynvml.NVML_INFOROM_ECC),
            inforom_power_version=_text(inforom, handle, pynvml.NVML_INFOROM_POWER),
            pci_device_id=_hexadecimal(pci.pciDeviceId) if pci else "",
            pci_subsystem_id=_hexadecimal(pci.pciSubSystemId) if pci else "",
            pci_class=_pci_class(handle),
            architecture=_ARCHITECTURES.get(asked(pynvml.nvmlDeviceGetArchitecture, handle), ""),
            brand=_BRANDS.get(asked(pynvml.nvmlDeviceGetBrand, handle), ""),
            compute_capability="{}.{}".format(*capability) if capability else "",
            **_platform(handle),
        )


def divided(handle: Any) -> bool:
    """Whether the board is divided into MIG devices; where that can't be told, it may be."""
    try:
        return any(pynvml.nvmlDeviceGetMigMode(handle))
    except pynvml.NVMLError as error:
        return bool(error.value != pynvml.NVML_ERROR_NOT_SUPPORTED)
