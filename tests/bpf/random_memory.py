"""What random programs do with memory of every kind, with copies, sets and waits; and calls that
must fail.
"""

from __future__ import annotations

from tests.bpf.random_rules import Rule, pick, usable_spot
from tests.bpf.random_world import Memory, NothingError, Physical, World

MIB = 1 << 20
EDGES = tuple(1 << bits for bits in (2, 9, 12, 16, 20, 21, 24, 27, 30))
NOT_TOUCHED = 64 << 10  # no more than this of an allocation is copied or set


def size(x: int, y: int) -> int:
    """Sizes at and beside the bounds between classes, and between granules."""
    return max(1, pick(EDGES, x) * (1 + y % 5 // 3 * 2) + y % 3 - 1)


def keep(w: World, number: int, kind: str, bytes_: int, device: int, owned: bool = True) -> None:
    context = w.current().base if owned else None
    w.memory.append(Memory(number, kind, bytes_, context, device))


def allocate(w: World, x: int, y: int, z: int) -> None:
    context = w.current()
    w.forbid(anyway=z % 16 == 15)
    number, bytes_ = w.new("address"), size(x, y)
    form = z % 6
    if form == 4:
        w.say("cuMemAllocPitch_v2", number, 1 + x % 700, 1 + y % 9)
        bytes_ = (1 + x % 700) * (1 + y % 9)
    elif form == 5:
        w.say("cuMemAllocManaged", number, bytes_)
    elif form == 3 and bytes_ < MIB:
        w.say("cuMemAlloc", number, bytes_)
    else:
        w.say("cuMemAlloc_v2", number, bytes_)
    keep(w, number, "managed" if form == 5 else "device", bytes_, context.device)


def allocate_in_stream(w: World, x: int, y: int, z: int) -> None:
    spot = usable_spot(w, y)
    number, bytes_, device = w.new("address"), size(x, z), spot.stream.context.device
    if spot.stream.capture:  # a node of the graph; freed by another
        w.say(f"cuMemAllocAsync{spot.ending}", number, bytes_, spot.text)
        w.say(f"cuMemFreeAsync{spot.ending}", number, spot.text)
        spot.stream.capture.memory = True
        w.note_work(spot.stream, set())
        return
    pools = [p for p in w.pools if p.alive and (p.device == device or w.strange)]
    if pools and z % 2:
        pool = pick(pools, z // 2)
        device = pool.device
        w.say(f"cuMemAllocFromPoolAsync{spot.ending}", number, bytes_, pool.number, spot.text)
    else:
        w.say(f"cuMemAllocAsync{spot.ending}", number, bytes_, spot.text)
    keep(w, number, "pool", bytes_, device, owned=False)


def allocate_host(w: World, x: int, y: int, z: int) -> None:
    context = w.current()
    w.forbid(anyway=False)
    number = w.new("host")
    if z % 2:
        w.say("cuMemHostAlloc", number, size(x % 6, y), 0)
    else:
        w.say("cuMemAllocHost_v2", number, size(x % 6, y))
    keep(w, number, "host", 1, context.device)


def create_array(w: World, x: int, y: int, z: int) -> None:
    context = w.current()
    w.forbid(anyway=False)
    if z % 3 == 2:
        number = w.new("mipmap")
        w.say("cuMipmappedArrayCreate", number, 1 + x, y % 40, y % 3, 8, 4, 0, 1 + z % 5)
    else:
        number = w.new("array")
        if z % 3:
            w.say("cuArray3DCreate_v2", number, 1 + x, y % 40, y % 3, 32, 4, z % 2)
        else:
            w.say("cuArrayCreate_v2", number, 1 + x * 8, y * 4, 32, 4)
    keep(w, number, "mipmap" if z % 3 == 2 else "array", 1, context.device)


def free(w: World, x: int, y: int, z: int) -> None:
    memory = pick([m for m in w.memory if m.alive and m.kind != "mapped"], x)
    w.current()
    name = str(memory.number)
    if memory.kind == "host":
        w.forbid(anyway=False)
        w.say("cuMemFreeHost", name)
    elif memory.kind in ("array", "mipmap"):
        w.say("cuArrayDestroy" if memory.kind == "array" else "cuMipmappedArrayDestroy", name)
    elif y % 3 and memory.kind != "managed":
        free_spots = [s for s in w.spots() if w.usable(s.stream) and not s.stream.capture]
        spot = pick(free_spots, z)
        w.say(f"cuMemFreeAsync{spot.ending}", name, spot.text)
    else:
        w.forbid(anyway=False)
        w.say("cuMemFree_v2", name)
    memory.alive = False


def get_pool(w: World, x: int, y: int, z: int) -> None:
    device = x % w.devices
    pool = Memory(w.new("pool"), "pool", y % 3, None, device)
    names = ("cuMemPoolCreate", "cuDeviceGetDefaultMemPool", "cuDeviceGetMemPool")
    w.say(names[y % 3], pool.number, device)
    w.pools.append(pool)


def destroy_pool(w: World, x: int, y: int, z: int) -> None:
    """Of those that were created; what came from it lives on."""
    pool = pick([p for p in w.pools if p.alive and not p.size], x)
    w.say("cuMemPoolDestroy", pool.number)
    pool.alive = False


# Virtual memory


def create_physical(w: World, x: int, y: int, z: int) -> None:
    physical = Physical(x % w.devices, (1 + y % 3) * 2 * MIB, [w.new("handle")])
    w.say("cuMemCreate", physical.handles[0], physical.size, physical.device)
    w.physical.append(physical)
    if z % 3:
        map_physical(w, len(w.physical) - 1, 0, z)


def map_physical(w: World, x: int, y: int, z: int) -> None:
    physical = pick([p for p in w.physical if p.handles], x)
    number = w.new("address")
    w.say("cuMemAddressReserve", number, physical.size)
    w.say("cuMemMap", number, physical.size, physical.handles[0])
    if z % 2:
        w.say("cuMemSetAccess", number, physical.size, physical.device)
    physical.mappings.append(number)


def release_physical(w: World, x: int, y: int, z: int) -> None:
    physical = pick([p for p in w.physical if p.handles], x)
    w.say("cuMemRelease", physical.handles.pop(y % len(physical.handles)))


def unmap_physical(w: World, x: int, y: int, z: int) -> None:
    physical = pick([p for p in w.physical if p.mappings], x)
    number = physical.mappings.pop(y % len(physical.mappings))
    w.say("cuMemUnmap", number, physical.size)
    if z % 2:
        w.say("cuMemAddressFree", number, physical.size)


def retain_physical(w: World, x: int, y: int, z: int) -> None:
    physical = pick([p for p in w.physical if p.mappings], x)
    number = w.new("handle")
    w.say("cuMemRetainAllocationHandle", number, pick(physical.mappings, y))
    physical.handles.append(number)


# Copies, sets and waits


def transfer(w: World, x: int, y: int, z: int) -> None:
    usable = [m for m in w.memory if m.alive and m.kind in ("device", "managed", "pool")]
    one, other = pick(usable, x), pick(usable, y)
    bytes_ = min(one.size, other.size, NOT_TOUCHED)
    bytes_ = max(1, bytes_ - z % 100)
    context = w.current()
    n, m = one.number, other.number
    spot = usable_spot(w, y)
    forms: tuple[tuple[object, ...], ...] = (
        ("cuMemcpyHtoDAsync_v2", n, bytes_),
        ("cuMemcpyDtoHAsync_v2", n, bytes_),
        ("cuMemcpyDtoDAsync_v2", n, m, bytes_),
        ("cuMemcpyAsync", n, m, bytes_),
        ("cuMemcpyPeerAsync", n, context.number, m, context.number, bytes_),
        ("cuMemcpy2DAsync_v2", n, "-", bytes_),
        ("cuMemcpy3DAsync_v2", "-", n, bytes_),
        ("cuMemsetD8Async", n, bytes_),
        ("cuMemsetD32Async", n, bytes_ // 4),
        ("cuMemsetD2D8Async", n, bytes_, bytes_, 1),
        ("cuMemcpyHtoD_v2", n, bytes_),
        ("cuMemcpyDtoH_v2", n, bytes_),
        ("cuMemcpyDtoD_v2", n, m, bytes_),
        ("cuMemcpy", n, m, bytes_),
        ("cuMemcpy3D_v2", n, m, bytes_),
        ("cuMemsetD8_v2", n, bytes_),
        ("cuMemsetD16_v2", n, bytes_ // 2),
        ("cuMemcpy2D_v2", n, m, bytes_),
        ("cuMemcpyPeer", n, context.number, m, context.number, bytes_),
    )
    name, *arguments = forms[z % len(forms)]
    if "Async" in str(name):
        w.say(f"{name}{spot.ending}", *arguments, spot.text)
        w.note_work(spot.stream, set())
        return
    own = z % 5 == 4
    stream = w.default(context, 2 if own else 0)
    if not w.usable(stream) or stream.capture:
        raise NothingError
    w.forbid(anyway=False)
    w.say(f"{name}{'_ptds' * own}", *arguments)


def transfer_array(w: World, x: int, y: int, z: int) -> None:
    array = pick([m for m in w.memory if m.alive and m.kind == "array"], x)
    w.current()
    spot = usable_spot(w, y)
    name = pick(("cuMemcpyHtoAAsync_v2", "cuMemcpyAtoHAsync_v2"), z)
    w.say(f"{name}{spot.ending}", array.number, z % 3, 1 + y % 5, spot.text)
    w.note_work(spot.stream, set())


def transfer_batch(w: World, x: int, y: int, z: int) -> None:
    usable = [m for m in w.memory if m.alive and m.kind in ("device", "managed", "pool")]
    one, other = pick(usable, x), pick(usable, y)
    spots = [s for s in w.spots() if w.usable(s.stream) and not s.stream.capture]
    spot = pick([s for s in spots if s.stream.number != 0], z)
    name = pick(("cuMemcpyBatchAsync", "cuMemcpyBatchAsync_v2"), z)
    bytes_ = min(one.size, other.size, NOT_TOUCHED)
    w.say(f"{name}{spot.ending}", one.number, other.number, bytes_, spot.text)


def wait(w: World, x: int, y: int, z: int) -> None:
    context = w.current()
    if y % 4 == 0:
        if any(c.origin.context.base is context.base for c in w.captures):
            raise NothingError
        w.say("cuCtxSynchronize")
    elif y % 4 == 1:
        event = pick([e for e in w.events if e.alive and e.recorded and not e.capture], x)
        w.say("cuEventSynchronize", event.number)
    else:
        spots = [s for s in w.spots() if w.usable(s.stream) and not s.stream.capture]
        spot = pick(spots, x)
        w.say(f"cuStreamSynchronize{spot.ending}", spot.text)


# What must fail


def fail(w: World, x: int, y: int, z: int) -> None:
    w.current()
    gone = [m for m in w.memory if not m.alive and m.kind in ("device", "pool", "managed")]
    form = x % 8
    if form == 0:
        w.say("cuMemAllocAsync", w.new("address"), 1 << 50, usable_spot(w, y).text)
    elif form == 1 and not w.in_the_way():
        w.say("cuMemFree_v2", "=0xdead0000")
    elif form == 2 and gone and not w.in_the_way():
        w.say("cuMemFree_v2", pick(gone, y).number)
    elif form == 3:
        w.say("cuMemRelease", "=4096")
    elif form == 4 and not w.in_the_way():
        w.say("cuArrayCreate_v2", w.new("array"), 0, 1, 8, 1)
    elif form == 5:
        w.say("cuCtxCreate_v2", w.new("context"), 0, 77)
    elif form == 6:
        w.say("cuStreamEndCapture", "=24", w.new("graph"))
    elif not w.in_the_way():
        w.say("cuMemAlloc_v2", w.new("address"), 1 << 50)


RULES: tuple[tuple[int, Rule], ...] = (
    (14, allocate),
    (10, allocate_in_stream),
    (3, allocate_host),
    (4, create_array),
    (12, free),
    (3, get_pool),
    (2, destroy_pool),
    (4, create_physical),
    (3, map_physical),
    (4, release_physical),
    (4, unmap_physical),
    (3, retain_physical),
    (14, transfer),
    (2, transfer_array),
    (2, transfer_batch),
    (6, wait),
    (4, fail),
)
