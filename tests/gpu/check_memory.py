"""Memory: what was asked for, what the driver says is used, and what becomes of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.gpu.child import Child
from tests.gpu.model import Figure, Finding, Result, judged
from tests.gpu.pages import Expect, Page, judge
from tests.gpu.rig import Rig

MIB = 1 << 20
SIZE = 64 * MIB
USED = "gpubpf_gpu_memory_used_bytes"
LIVE = "gpubpf_process_live_bytes"


def live(rig: Rig) -> Result:
    """Live bytes by kind; the driver's free memory falls by as much, in granules."""
    client, uuid = _open(rig)
    findings: list[Finding] = []
    figures: dict[str, Figure] = {"the context itself": _held(rig.page(), client, uuid)}
    for kind in ("device", "virtual", "pool", "managed"):
        before, page = client.ask("memory"), rig.page()
        client.ask("allocate", kind=kind, size=SIZE, times=2)
        if kind == "managed":
            client.ask("touch", kind=kind)
        client.ask("wait")
        after, later = client.ask("memory"), rig.page()
        expected = [
            Expect("live_bytes", 2 * SIZE, {"kind": kind}, gauge=True),
            Expect("allocated_bytes", 2 * SIZE, {"kind": kind}),
        ]
        findings += judge(client.pid, page, later, expected)
        taken = before["free"] - after["free"]
        figures[f"{kind}: free memory fell by"] = mib(taken)
        figures[f"{kind}: NVML's used grew by"] = mib(_used(later, uuid) - _used(page, uuid))
        if kind in ("device", "virtual"):
            most = 2 * SIZE + 4 * max(after["granule"], 2 * MIB)
            figures[f"{kind}: granule"] = mib(after["granule"])
            fits = 2 * SIZE <= taken <= most
            text = f"{mib(2 * SIZE)} to {mib(most)}"
            findings.append(Finding(f"{kind}: free memory fell by", text, mib(taken), fits))
        client.ask("free", kind=kind, times=2)
        client.ask("wait")
        nothing = Expect("live_bytes", 0, {"kind": kind}, gauge=True, note=f"{kind}: live, freed")
        findings += judge(client.pid, later, rig.page(), [nothing])
    return judged(findings, figures)


def unmapping(rig: Rig) -> Result:
    """Virtual memory: whether used memory falls with cuMemRelease or with cuMemUnmap."""
    client, uuid = _open(rig)
    before = rig.page()
    client.ask("allocate", kind="virtual", size=SIZE)
    held = rig.page()
    client.ask("release")
    released = rig.page()
    client.ask("unmap")
    unmapped = _until(rig, lambda page: _used(page, uuid) <= _used(held, uuid) - SIZE)
    figures: dict[str, Figure] = {
        "used fell by, at release": mib(_used(held, uuid) - _used(released, uuid)),
        "used fell by, after unmap": mib(_used(held, uuid) - _used(unmapped, uuid)),
        "live bytes after release": _live(released, client),
        "live bytes after unmap": _live(unmapped, client),
    }
    expected = [
        Expect("allocated_bytes", SIZE, {"kind": "virtual"}),
        Expect("freed_bytes", SIZE, {"kind": "virtual"}),
        Expect("live_bytes", 0, {"kind": "virtual"}, gauge=True),
    ]
    findings = judge(client.pid, before, unmapped, expected)
    fell = _used(held, uuid) - _used(unmapped, uuid)
    findings.append(Finding("NVML's used fell by, at the end", mib(SIZE), mib(fell), fell >= SIZE))
    return judged(findings, figures)


def implicit(rig: Rig) -> Result:
    """A context that is destroyed, and a process that ends, take their memory with them."""
    client, uuid = _open(rig, own=True)
    client.ask("allocate", kind="device", size=SIZE, times=2)
    client.ask("wait")
    before = rig.page()
    client.ask("destroy")
    after = _until(rig, lambda page: _used(page, uuid) <= _used(before, uuid) - 2 * SIZE)
    expected = [
        Expect("implicit_frees", 2),
        Expect("implicitly_freed_bytes", 2 * SIZE),
        Expect("live_bytes", 0, gauge=True, note="live bytes after cuCtxDestroy"),
    ]
    findings = judge(client.pid, before, after, expected)
    fell = _used(before, uuid) - _used(after, uuid)
    findings.append(
        Finding("used fell by, at cuCtxDestroy", mib(2 * SIZE), mib(fell), fell >= 2 * SIZE)
    )
    other, uuid = _open(rig)
    other.ask("allocate", kind="device", size=SIZE)
    before = rig.page()
    other.process.kill()
    after = _until(rig, lambda page: _used(page, uuid) <= _used(before, uuid) - SIZE)
    fell = _used(before, uuid) - _used(after, uuid)
    findings.append(Finding("used fell by, at SIGKILL", mib(SIZE), mib(fell), fell >= SIZE))
    return judged(findings)


def unattributed(rig: Rig) -> Result:
    """What the driver has in use and no process is known to hold is never negative."""
    client, uuid = _open(rig)
    client.ask("allocate", kind="device", size=SIZE, times=2)
    page = rig.page()
    name = "gpubpf_gpu_memory_unattributed_bytes"
    if page.lacks(name, ()):
        return judged([Finding(name, "at least 0", None, False, f"absent: metric {name}")])
    found = page.by(name, "uuid")
    findings = [Finding(u, "at least 0", mib(value), value >= 0) for u, value in found.items()]
    figures: dict[str, Figure] = {f"unattributed on {u}": mib(v) for u, v in found.items()}
    figures["used"] = mib(_used(page, uuid))
    figures["held by the process, by NVML"] = _held(page, client, uuid)
    return judged(findings, figures)


def torch(rig: Rig) -> Result:
    """Live bytes are what PyTorch has reserved."""
    client = rig.client("torch_client")
    about = client.ask("open", seconds=150)
    page = rig.page()
    did = client.ask("allocate", size=37 * MIB, times=3)
    later = rig.page()
    grown = _live(later, client) - _live(page, client)
    absent = later.lacks(LIVE, ("kind",))
    finding = Finding(
        "live bytes grew by what was reserved",
        did["bytes"],
        None if absent else grown,
        not absent and grown == did["bytes"],
        f"absent: {absent}" if absent else "",
    )
    return judged([finding], {**about, "live in all": mib(_live(later, client))})


def _open(rig: Rig, own: bool = False) -> tuple[Child, str]:
    client = rig.client("driver_client")
    client.ask("open", own=own)
    return client, rig.page().uuid(client.ask("uuid", device=0))


def _used(page: Page, uuid: str) -> float:
    return page.total(USED, uuid=uuid) or 0


def _live(page: Page, client: Child) -> float:
    return page.total(LIVE, pid=str(client.pid)) or 0


def _held(page: Page, client: Child, uuid: str) -> str | None:
    """Of a process, by NVML."""
    name, pid = "gpubpf_process_memory_used_bytes", str(client.pid)
    rows = [has for has, _ in page.samples.get(name, ()) if has["pid"] == pid]
    return mib(page.total(name, pid=pid, uuid=uuid) or 0) if rows else None


def _until(rig: Rig, good: Callable[[Page], bool], seconds: float = 5.0) -> Page:
    """The driver takes memory back a moment later."""
    end = time.monotonic() + seconds
    while not good(page := rig.page()) and time.monotonic() < end:
        time.sleep(0.1)
    return page


def mib(size: float) -> str:
    return f"{size / MIB:,.1f} MiB"
