"""What random programs do: a rule takes three numbers, and picks by them what there is. Contexts,
streams, captures and launches; random_more.py has graphs, memory and copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.bpf.random_world import (
    RELAXED,
    Capture,
    Context,
    Event,
    Executable,
    Graph,
    Lives,
    NothingError,
    Spot,
    Stream,
    World,
)

T = TypeVar("T")
Rule = Callable[[World, int, int, int], None]
KERNEL = 1  # the number of the CUkernel, which fits every context


def pick(things: Sequence[T], number: int) -> T:
    if not things:
        raise NothingError
    return things[number % len(things)]


# Contexts


def retain(w: World, x: int, y: int, z: int) -> None:
    device = x % w.devices
    w.say("cuDevicePrimaryCtxRetain", device + 1, device)
    w.retain(device)
    if y % 2:
        set_current(w, device, 0, z)


def create_context(w: World, x: int, y: int, z: int) -> None:
    if sum(c.alive and not c.root for c in w.contexts) >= 4:
        raise NothingError
    context = Context(w.new("context"), y % w.devices)
    name = pick(("cuCtxCreate_v2", "cuCtxCreate_v2", "cuCtxCreate_v3", "cuCtxCreate_v4"), x)
    w.say(name, context.number, 0, context.device)
    w.contexts.append(context)
    w.put_current(context, push=True)


def set_current(w: World, x: int, y: int, z: int) -> None:
    push = y % 3 == 2
    if x % 23 == 22 and not push:
        w.say("cuCtxSetCurrent", 0)
        del w.stacks[w.thread][-1:]
        return
    context = pick(w.living_contexts(), x)
    if context.green and any(
        stack and stack[-1][0] is context for stack in w.stacks if stack is not w.stacks[w.thread]
    ):
        raise NothingError  # "current to only one thread at a time"
    name = pick(("cuCtxPushCurrent_v2", "cuCtxPushCurrent"), z) if push else "cuCtxSetCurrent"
    w.say(name, context.number)
    w.put_current(context, push)


def pop_current(w: World, x: int, y: int, z: int) -> None:
    w.say(pick(("cuCtxPopCurrent_v2", "cuCtxPopCurrent"), x))
    del w.stacks[w.thread][-1:]


def destroy_context(w: World, x: int, y: int, z: int) -> None:
    context = pick([c for c in w.contexts if c.alive and not c.root], x)
    if w.busy(context) and not w.strange:
        raise NothingError
    w.say("cuCtxDestroy_v2", context.number)
    stack = w.stacks[w.thread]
    if stack and stack[-1][0] is context:
        stack.pop()
    w.end_context(context)


def attach_context(w: World, x: int, y: int, z: int) -> None:
    """And the end of it: with the last use the context goes."""
    if x % 2:
        context = w.current()
        if context.primary or context.root:
            raise NothingError
        w.say("cuCtxAttach", w.new("context"))
        context.uses += 1
        return
    context = pick([c for c in w.contexts if c.alive and not c.root and not w.busy(c)], y)
    w.say("cuCtxDetach", context.number)
    context.uses -= 1
    if not context.uses:
        stack = w.stacks[w.thread]
        if stack and stack[-1][0] is context:
            stack.pop()
        w.end_context(context)


def release_primary(w: World, x: int, y: int, z: int) -> None:
    device = x % w.devices
    if not w.references[device] or (w.busy(w.primary[device]) and not w.strange):
        raise NothingError
    if y % 3:
        w.say("cuDevicePrimaryCtxRelease_v2", device)
        w.release(device)
    elif not any(c.root is w.primary[device] and c.alive for c in w.contexts):
        w.say("cuDevicePrimaryCtxReset_v2", device)
        w.end_context(w.primary[device])


def create_green(w: World, x: int, y: int, z: int) -> None:
    device = x % w.devices
    number, description = w.new("green"), w.new("description")
    context = Context(w.new("context"), device, root=w.primary[device], green=number)
    retain(w, device, 0, 0)  # advised, and then there is a name for it
    w.say("cuDeviceGetDevResource", device, device + 1)
    w.say("cuDevResourceGenerateDesc", description, device + 1)
    w.say("cuGreenCtxCreate", number, description, device)
    w.say("cuCtxFromGreenCtx", context.number, number)
    w.retain(device)
    w.contexts.append(context)
    green_stream(w, -1, y, z)


def green_stream(w: World, x: int, y: int, z: int) -> None:
    context = pick([c for c in w.contexts if c.green and c.alive], x)
    stream = Stream(w.new("stream"), context, blocking=False)
    w.say("cuGreenCtxStreamCreate", stream.number, context.green, 0)
    w.streams.append(stream)


def destroy_green(w: World, x: int, y: int, z: int) -> None:
    context = pick([c for c in w.contexts if c.green and c.alive], x)
    if w.busy(context) or w.busy(w.primary[context.device]):
        raise NothingError
    w.say("cuGreenCtxDestroy", context.green)
    w.end_context(context)
    w.release(context.device)


def end_thread(w: World, x: int, y: int, z: int) -> None:
    if any(c.thread == w.thread or c.origin.thread == w.thread for c in w.captures):
        raise NothingError
    w.lines.append(f"{w.thread} exit")
    w.stacks[w.thread] = []
    for key in [key for key in w.defaults if key[1] == w.thread]:
        del w.defaults[key]


def ask(w: World, x: int, y: int, z: int) -> None:
    """What a process asks of its contexts and devices changes nothing."""
    name = pick(("cuDeviceGetUuid", "cuDeviceGetUuid_v2", "cuDeviceGetPCIBusId"), x)
    if y % 2:
        w.say(name, z % w.devices)
    else:
        w.say(pick(("cuCtxGetCurrent", "cuCtxGetDevice"), z))


# Streams and events


def create_stream(w: World, x: int, y: int, z: int) -> None:
    context = w.current()
    stream = Stream(w.new("stream"), context, blocking=x % 4 == 0)
    if y % 3:
        w.say("cuStreamCreate", stream.number, int(not stream.blocking))
    else:
        w.say("cuStreamCreateWithPriority", stream.number, int(not stream.blocking), 0)
    w.streams.append(stream)


def destroy_stream(w: World, x: int, y: int, z: int) -> None:
    w.current()
    stream = pick([s for s in w.streams if s.alive], x)
    if stream.capture and not w.strange:
        raise NothingError
    w.say("cuStreamDestroy_v2", stream.number)
    w.end_stream(stream)


def event_of(w: World, context: Context, x: int) -> Event:
    """An event that can be recorded in a context; one is made where there is none."""
    events = [e for e in w.events if e.alive and e.context is context.base]
    if events and x % 3:
        return pick(events, x)
    event = Event(w.new("event"), context.base)
    here = w.stacks[w.thread] and w.stacks[w.thread][-1][0].base is context.base
    if not here:
        w.say("cuCtxPushCurrent_v2", context.base.number)
    w.say("cuEventCreate", event.number, x % 2 * 2)
    if not here:
        w.say("cuCtxPopCurrent_v2")
    w.events.append(event)
    return event


def spot_for(w: World, stream: Stream) -> Spot:
    return pick([spot for spot in w.spots() if spot.stream is stream], 0)


def usable_spot(w: World, x: int) -> Spot:
    """A stream to work in, rather one that is being captured."""
    spots = [spot for spot in w.spots() if w.usable(spot.stream)]
    captured = [spot for spot in spots if spot.stream.capture]
    return pick(captured if captured and x % 3 else spots, x // 3)


def link(w: World, source: Stream, target: Stream, x: int) -> None:
    """Records an event in one stream and lets another wait for it."""
    one, other = spot_for(w, source), spot_for(w, target)
    event = event_of(w, source.context, x)
    if x % 4:
        w.say(f"cuEventRecord{one.ending}", event.number, one.text)
    else:
        w.say(f"cuEventRecordWithFlags{one.ending}", event.number, one.text, 0)
    w.say(f"cuStreamWaitEvent{other.ending}", other.text, event.number, 0)
    event.recorded, event.capture = True, source.capture


def order_streams(w: World, x: int, y: int, z: int) -> None:
    """Outside of captures."""
    free = [s.stream for s in w.spots() if w.usable(s.stream) and not s.stream.capture]
    link(w, pick(free, x), pick(free, y), z)


def wait_again(w: World, x: int, y: int, z: int) -> None:
    """For an event as it is: recorded before, by a node, in a capture that is over, or never."""
    spots = [s for s in w.spots() if w.usable(s.stream) and not s.stream.capture]
    events = [e for e in w.events if e.alive and e.capture not in w.captures]
    spot = pick(spots, x)
    w.say(f"cuStreamWaitEvent{spot.ending}", spot.text, pick(events, y).number, 0)


def record_external(w: World, x: int, y: int, z: int) -> None:
    """While captured: a node that records, or waits, and joins nothing."""
    spot = pick([s for s in w.spots() if s.stream.capture and w.usable(s.stream)], x)
    event = event_of(w, spot.stream.context, y)
    if z % 2:
        w.say(f"cuEventRecordWithFlags{spot.ending}", event.number, spot.text, 1)
        free = [s for s in w.spots() if w.usable(s.stream) and not s.stream.capture]
        if free and event.capture not in w.captures:
            other = pick(free, x)
            w.say(f"cuStreamWaitEvent{other.ending}", other.text, event.number, 0)
            w.say(f"cuLaunchKernel{other.ending}", KERNEL, other.text)
    else:
        w.say(f"cuStreamWaitEvent{spot.ending}", spot.text, event.number, 1)


# Captures


def begin_capture(w: World, x: int, y: int, z: int) -> None:
    if len(w.captures) >= 3:
        raise NothingError
    free = [s for s in w.spots() if not s.stream.capture and s.stream.number != 0]
    spot = pick(free, x)
    capture = Capture(spot.stream, w.thread, pick((RELAXED,) * 5 + (0, 1), y))
    graphs = [g for g in w.graphs if g.alive and not g.capturing and not g.parent]
    if z % 3 == 0 and graphs:
        graph = capture.graph = pick(graphs, z // 3)
        after = pick([str(n.number) for n in graph.nodes] or ["-"], z // 7)
        name = f"cuStreamBeginCaptureToGraph{spot.ending}"
        w.say(name, spot.text, graph.number, after if z % 2 else "-", capture.mode)
        graph.capturing = True
    else:
        w.say(f"cuStreamBeginCapture_v2{spot.ending}", spot.text, capture.mode)
    spot.stream.capture = capture
    w.captures.append(capture)


def fork_capture(w: World, x: int, y: int, z: int) -> None:
    capture = pick([c for c in w.captures if not c.invalid], x)
    named = [s.stream for s in w.spots()]
    source = pick([s for s in w.members(capture) if s in named], y)
    free = [s for s in named if not s.capture and s.number != 0]
    far = [s for s in free if s.context.device != source.context.device]
    target = pick(far if far and x % 2 else free, z)
    link(w, source, target, x)
    target.capture = capture


def join(w: World, capture: Capture, x: int) -> None:
    for stream in tuple(capture.unjoined):
        link(w, stream, capture.origin, x)
        capture.unjoined.remove(stream)


def join_capture(w: World, x: int, y: int, z: int) -> None:
    join(w, pick([c for c in w.captures if c.unjoined and not c.invalid], x), y)


def end_capture(w: World, x: int, y: int, z: int) -> None:
    mine = [c for c in w.captures if c.mode == RELAXED or c.thread == w.thread]
    capture = pick(mine, x)
    spot = spot_for(w, capture.origin)
    if y % 8 and not capture.invalid:
        join(w, capture, z)
    number = w.new("graph")
    w.say(f"cuStreamEndCapture{spot.ending}", spot.text, number)
    good = not capture.invalid and not capture.unjoined
    w.end_capture(capture)
    if capture.graph and not good:
        capture.graph.alive = False  # what of the capture is in it isn't documented
    if good and capture.graph:
        capture.graph.add(capture.lives)
        capture.graph.memory |= capture.memory
    elif good:
        w.graphs.append(Graph(number, lives=capture.lives, memory=capture.memory))
        if z % 4:
            instantiate(w, w.graphs[-1], "cuGraphInstantiateWithFlags")


def instantiate(w: World, graph: Graph, name: str) -> None:
    w.current()
    made = Executable(w.new("exec"), graph, list(graph.nodes), set(graph.lives), graph.memory)
    w.say(name, made.number, graph.number, *([0] if name.endswith("Flags") else []))
    w.executables.append(made)


# Launches


def lives_of(context: Context) -> Lives:
    return {(context.base, context.base.life)}


def launch(w: World, x: int, y: int, z: int) -> None:
    spot = usable_spot(w, x)
    context = spot.stream.context.base
    mine = [n for n, owner, life in w.functions if owner is context and life is context.life]
    function = pick(mine, z) if mine and z % 3 == 0 else KERNEL
    form = y % 8
    for _ in range(1 + z % 3):
        if form == 5 and not spot.ending:
            w.say("cuLaunchGridAsync", function, spot.text)
        elif form == 6 and not spot.ending and spot.text == "0":
            w.say(pick(("cuLaunch", "cuLaunchGrid"), z), function)
        elif form == 7:
            w.say(f"cuLaunchKernelEx{spot.ending}", spot.text, function)
        elif form == 4:
            w.say(f"cuLaunchCooperativeKernel{spot.ending}", function, spot.text)
        else:
            w.say(f"cuLaunchKernel{spot.ending}", function, spot.text)
    w.note_work(spot.stream, lives_of(context))


def launch_on_several(w: World, x: int, y: int, z: int) -> None:
    w.current()
    free = [s for s in w.streams if s.alive and not s.capture]
    first = pick(free, x)
    second = pick([s for s in free if s.context.device != first.context.device], y)
    streams = f"{first.number},{second.number}"
    w.say("cuLaunchCooperativeKernelMultiDevice", KERNEL, streams)


def launch_host(w: World, x: int, y: int, z: int) -> None:
    spot = usable_spot(w, x)
    w.say(f"cuLaunchHostFunc{spot.ending}", spot.text)
    w.note_work(spot.stream, set())


def load_module(w: World, x: int, y: int, z: int) -> None:
    context = w.current().base
    module, function = w.new("module"), w.new("function")
    w.say("cuModuleLoadData", module)
    w.say("cuModuleGetFunction", function, module)
    w.functions.append((function, context, context.life))


RULES: tuple[tuple[int, Rule], ...] = (
    (5, retain),
    (4, create_context),
    (12, set_current),
    (4, pop_current),
    (4, destroy_context),
    (2, attach_context),
    (4, release_primary),
    (5, create_green),
    (6, green_stream),
    (1, destroy_green),
    (2, end_thread),
    (2, ask),
    (10, create_stream),
    (2, destroy_stream),
    (4, order_streams),
    (5, record_external),
    (3, wait_again),
    (12, begin_capture),
    (12, fork_capture),
    (5, join_capture),
    (12, end_capture),
    (24, launch),
    (2, launch_on_several),
    (4, launch_host),
    (3, load_module),
)
