"""Calls of a process on a MIG device count on that device, under its own UUID."""

from __future__ import annotations

from gpubpf import lanes
from gpubpf.attribution import Attribution
from gpubpf.join import Ledger, Readings, join
from gpubpf.metrics import present
from gpubpf.model import (
    Activity,
    Asked,
    Calls,
    Device,
    DeviceInfo,
    DeviceProcess,
    MigDevice,
    MigInfo,
    Owner,
    Part,
    Plane,
    Process,
    Reading,
)
from gpubpf.view import View
from tests.unit.test_attribution import HIDDEN

BOARD = "GPU-0d8b3f0c-0000-0000-0000-000000000001"
ONE = "MIG-11111111-0000-0000-0000-000000000001"
TWO = "MIG-22222222-0000-0000-0000-000000000002"
OWNER = Owner(4242, 7)
LAUNCHES = 1 << 64 * lanes.FIRST["kernel_launches"]


def plane(*processes: DeviceProcess) -> Plane:
    info = DeviceInfo(3, BOARD, "Simulated A100", "535.1", "00000000:3B:00.0", 3, True, (ONE, TWO))
    migs = tuple(MigDevice(MigInfo(uuid, "1g.5gb", n + 7, 0)) for n, uuid in enumerate((ONE, TWO)))
    return Plane((Device(info, {}, processes, migs),))


def launches(asked: dict[int, Asked], *processes: DeviceProcess) -> dict[tuple[str, ...], float]:
    """Kernel launches by (gpu, uuid), of a process that made 13 on its device 0."""
    said = plane(*processes)
    calls = Calls(
        {OWNER: Activity(0, {0: Part(13 * LAUNCHES, 0, 0)})}, {}, 0, {}, {}, {}, {},
        {OWNER: asked} if asked else {},
    )  # fmt: skip
    gpus = Attribution(lambda _: HIDDEN).look(calls, said.devices)
    snapshot = join(
        Readings(
            at=1.0,
            time=1.0,
            calls=Reading("bpf", 1.0, 0.0, calls),
            plane=Reading("nvml", 1.0, 0.0, said),
            processes={OWNER: Process(OWNER.pid, 0.0)},
            gpus=gpus,
            attached=(),
            discovery=None,
        ),
        Ledger(("cuLaunchKernel",)),
    )
    rows = {metric.name: dict(samples) for metric, samples in present(View(snapshot))}
    found = rows["gpubpf_gpu_kernel_launches"]
    return {labels: float(value) for labels, value in found.items() if value}  # type: ignore[arg-type]


def test_by_the_driver_s_list() -> None:
    assert launches({}, DeviceProcess(OWNER.pid, mig=TWO)) == {("3", TWO): 13}


def test_by_what_it_asked() -> None:
    asked = {0: Asked(bytes.fromhex(ONE.removeprefix("MIG-").replace("-", "")))}
    assert launches(asked) == {("3", ONE): 13}


def test_on_two_of_a_board_it_is_the_board_s() -> None:
    on_both = (DeviceProcess(OWNER.pid, mig=ONE), DeviceProcess(OWNER.pid, mig=TWO))
    assert launches({}, *on_both) == {("3", BOARD): 13}
