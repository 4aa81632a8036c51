"""What random programs do with graphs: by hand, and with those that were captured."""

from __future__ import annotations

from tests.bpf.random_rules import (
    KERNEL,
    Rule,
    begin_capture,
    fork_capture,
    instantiate,
    join,
    lives_of,
    pick,
    spot_for,
)
from tests.bpf.random_world import (
    Capture,
    Executable,
    Graph,
    Node,
    NothingError,
    Stream,
    World,
    living,
)

INSTANTIATE = (
    "cuGraphInstantiateWithFlags",
    "cuGraphInstantiateWithParams",
    "cuGraphInstantiate",
    "cuGraphInstantiate_v2",
)
MOST_DEPTH = 3


def open_graphs(w: World) -> list[Graph]:
    """Those that can be changed."""
    return [g for g in w.graphs if g.alive and not g.capturing and living(g.lives)]


def whole_graphs(w: World) -> list[Graph]:
    """Those that can be copied; graphs with memory in them can't."""
    return [g for g in open_graphs(w) if not g.memory]


def rather(graphs: list[Graph], x: int) -> Graph:
    """One of them, rather one with kernels in it."""
    full = [g for g in graphs if g.lives]
    return pick(full if full and x % 4 else graphs, x // 4)


def after(graph: Graph, x: int) -> str:
    nodes = [str(node.number) for node in graph.nodes]
    return pick(("-", ",".join(nodes[-2:]) or "-", nodes[x % len(nodes)] if nodes else "-"), x)


def create_graph(w: World, x: int, y: int, z: int) -> None:
    graph = Graph(w.new("graph"))
    w.say("cuGraphCreate", graph.number)
    w.graphs.append(graph)


def add_kernel(w: World, x: int, y: int, z: int) -> None:
    graph = pick(open_graphs(w), x)
    contexts = w.living_contexts()
    context = pick(contexts, z) if y % 2 else w.current()
    named = context.number if y % 2 else 0
    node = Node(w.new("node"), graph, kernel=True)
    form = y % 7
    if form < 2:
        context = w.current()
        w.say("cuGraphAddKernelNode", node.number, graph.number, after(graph, z), KERNEL)
    elif form < 4:
        arguments = (node.number, graph.number, after(graph, z), KERNEL, named)
        w.say("cuGraphAddKernelNode_v2", *arguments)
    else:
        name = pick(("cuGraphAddNode", "cuGraphAddNode_v2"), z)
        w.say(name, node.number, graph.number, after(graph, z), "kernel", KERNEL, named)
    graph.nodes.append(node)
    graph.add(lives_of(context))


def add_other(w: World, x: int, y: int, z: int) -> None:
    graph = pick(open_graphs(w), x)
    node = Node(w.new("node"), graph, kernel=False)
    where = (node.number, graph.number, after(graph, z))
    if y % 6 == 0:
        w.say("cuGraphAddHostNode", *where)
    elif y % 6 == 1:
        w.say("cuGraphAddNode", *where, "empty")
    elif y % 6 == 2:
        event = pick([e for e in w.events if e.alive], z)
        w.say(
            pick(("cuGraphAddEventRecordNode", "cuGraphAddEventWaitNode"), z), *where, event.number
        )
    elif y % 6 == 4:
        usable = [m for m in w.memory if m.alive and m.kind == "device"]
        one, other = pick(usable, y), pick(usable, z)
        context = w.current()
        w.say("cuGraphAddMemcpyNode", *where, one.number, other.number, 1, context.number)
    elif y % 6 == 3:
        memory = pick([m for m in w.memory if m.alive and m.kind == "device"], z)
        context = w.current()
        w.say("cuGraphAddMemsetNode", *where, memory.number, 1, context.number)
    else:
        w.say("cuGraphAddEmptyNode", *where)
    graph.nodes.append(node)


def depth(graph: Graph) -> int:
    return 1 + max((depth(node.child) for node in graph.nodes if node.child), default=0)


def add_child(w: World, x: int, y: int, z: int) -> None:
    graph = pick(whole_graphs(w), x)
    child = rather([g for g in whole_graphs(w) if g is not graph], y)
    level, parent = depth(child), graph.parent
    while parent:
        level, parent = level + 1, parent.parent
    if level >= MOST_DEPTH or child.parent is graph or graph.parent is child:
        raise NothingError
    node = Node(w.new("node"), graph, kernel=False)
    where = (node.number, graph.number, after(graph, z))
    if z % 2:
        w.say("cuGraphAddChildGraphNode", *where, child.number)
    else:
        w.say("cuGraphAddNode", *where, "child", child.number)
    graph.nodes.append(node)
    graph.add(child.lives)
    if z % 3 == 0:  # else what is embedded stays out of reach
        node.child = Graph(w.new("graph"), lives=set(child.lives), parent=graph)
        w.say("cuGraphChildGraphNodeGetGraph", node.number, node.child.number)
        w.graphs.append(node.child)


def clone(w: World, x: int, y: int, z: int) -> None:
    graph = rather(whole_graphs(w), x)
    made = Graph(w.new("graph"), lives=set(graph.lives))
    w.say("cuGraphClone", made.number, graph.number)
    w.graphs.append(made)


def make_executable(w: World, x: int, y: int, z: int) -> None:
    graph = rather([g for g in open_graphs(w) if not g.parent], x)
    if graph.memory and any(e.alive and e.graph is graph for e in w.executables):
        raise NothingError  # "at most one executable graph in existence"
    instantiate(w, graph, pick(INSTANTIATE, y))


def update(w: World, x: int, y: int, z: int) -> None:
    executable = pick([e for e in w.executables if e.alive and living(e.lives)], x)
    if y % 4:
        graph = executable.graph
        if not graph.alive or graph.capturing:
            raise NothingError
    else:
        graph = rather(whole_graphs(w), z)
    w.say(pick(("cuGraphExecUpdate_v2", "cuGraphExecUpdate"), z), executable.number, graph.number)


def known_nodes(executable: Executable) -> list[Node]:
    """Those of the graph it was made of that are there yet; a graph's end is its nodes' too."""
    graph = executable.graph
    return [n for n in executable.nodes if n in graph.nodes] if graph.alive else []


def enable(w: World, x: int, y: int, z: int) -> None:
    executable = pick([e for e in w.executables if e.alive], x)
    nodes = [n for n in known_nodes(executable) if n.kernel]
    for _ in range(1 + z % 2):
        w.say("cuGraphNodeSetEnabled", executable.number, pick(nodes, y).number, z // 2 % 2)


def set_kernel(w: World, x: int, y: int, z: int) -> None:
    """To the kernel that it has: no other one would be allowed in another context."""
    executable = pick([e for e in w.executables if e.alive and living(e.lives)], x)
    nodes = [n for n in known_nodes(executable) if n.kernel]
    w.current()
    w.say("cuGraphExecKernelNodeSetParams", executable.number, pick(nodes, y).number, KERNEL)


def launch_graph(w: World, x: int, y: int, z: int) -> None:
    usable = [e for e in w.executables if e.alive and living(e.lives)]
    full = [e for e in usable if e.lives]
    executable = pick(full if full and x % 4 else usable, x // 4)
    spots = [s for s in w.spots() if w.usable(s.stream)]
    spot = pick([s for s in spots if not s.stream.capture] if y % 3 else spots, y // 3)
    if spot.stream.capture and executable.memory:
        raise NothingError
    for _ in range(1 + z % 3):
        w.say(f"cuGraphLaunch{spot.ending}", executable.number, spot.text)
    w.note_work(spot.stream, executable.lives)


def replace_child(w: World, x: int, y: int, z: int) -> None:
    """By a graph of the same shape."""
    executable = pick([e for e in w.executables if e.alive and living(e.lives)], x)
    nodes = [n for n in known_nodes(executable) if n.child]
    child = pick(nodes, y).child
    assert child is not None
    w.say(
        "cuGraphExecChildGraphNodeSetParams", executable.number, pick(nodes, y).number, child.number
    )


def add_to_capture(w: World, x: int, y: int, z: int) -> None:
    """A node by hand in a graph that is still being captured."""
    spot = pick([s for s in w.spots() if s.stream.capture and w.usable(s.stream)], x)
    if not w.strange or spot.stream.number == 0:
        raise NothingError
    graph, node = w.new("graph"), w.new("node")
    w.say(f"cuStreamGetCaptureInfo_v2{spot.ending}", spot.text, graph)
    w.say("cuGraphAddKernelNode", node, graph, "-", KERNEL)
    w.say(f"cuStreamUpdateCaptureDependencies{spot.ending}", spot.text, node, y % 2)
    w.note_work(spot.stream, lives_of(w.current()))


def whole_story(w: World, x: int, y: int, z: int) -> None:
    """A capture with all that belongs to it, begun and ended by one thread."""
    before = set(w.captures)
    begin_capture(w, x, y, z)
    capture = next(c for c in w.captures if c not in before)
    launch_in(w, capture.origin, y)
    for turn in range(1 + y % 2):
        try:
            fork_capture(w, w.captures.index(capture), z + turn, x + turn)
        except NothingError:
            break
        launch_in(w, pick(w.members(capture), z + turn), x + turn)
    if x % 5:
        join(w, capture, y)
        w.say(f"cuStreamEndCapture{spot_for(w, capture.origin).ending}", *ended(w, capture))
        if w.graphs:
            instantiate(w, capture.graph or w.graphs[-1], pick(INSTANTIATE, z))
            launch_graph(w, len(w.executables) - 1, y, z)


def launch_in(w: World, stream: Stream, x: int) -> None:
    spot = spot_for(w, stream)
    w.say(f"cuLaunchKernel{spot.ending}", KERNEL, spot.text)
    w.note_work(stream, lives_of(stream.context))


def ended(w: World, capture: Capture) -> tuple[str, int]:
    text, number = spot_for(w, capture.origin).text, w.new("graph")
    w.end_capture(capture)
    if capture.graph:
        capture.graph.add(capture.lives)
    else:
        w.graphs.append(Graph(number, lives=capture.lives))
    return text, number


def destroy_node(w: World, x: int, y: int, z: int) -> None:
    graph = pick([g for g in whole_graphs(w) if g.nodes], x)
    node = pick([n for n in graph.nodes if not n.child or not n.child.nodes], y)
    w.say("cuGraphDestroyNode", node.number)
    graph.nodes.remove(node)
    if node.child:
        node.child.alive = False


def list_nodes(w: World, x: int, y: int, z: int) -> None:
    """Puts names to captured nodes: what happens to such can't be told from outside."""
    if not w.strange:
        raise NothingError
    graph = pick([g for g in open_graphs(w) if not g.nodes], x)
    first = w.new("node")
    for _ in range(3):
        w.new("node")
    w.say("cuGraphGetNodes", graph.number, first, 4)
    graph.nodes = [Node(first + i, graph, kernel=True) for i in range(4)]


def end_graph(graph: Graph) -> None:
    graph.alive = False
    for node in graph.nodes:
        if node.child:
            end_graph(node.child)


def destroy_graph(w: World, x: int, y: int, z: int) -> None:
    graph = pick([g for g in w.graphs if g.alive and not g.capturing and not g.parent], x)
    w.say("cuGraphDestroy", graph.number)
    end_graph(graph)


def destroy_executable(w: World, x: int, y: int, z: int) -> None:
    executable: Executable = pick([e for e in w.executables if e.alive], x)
    w.say("cuGraphExecDestroy", executable.number)
    executable.alive = False


RULES: tuple[tuple[int, Rule], ...] = (
    (6, create_graph),
    (10, add_kernel),
    (4, add_other),
    (6, add_child),
    (5, clone),
    (9, make_executable),
    (4, update),
    (12, enable),
    (2, set_kernel),
    (2, replace_child),
    (2, add_to_capture),
    (20, launch_graph),
    (10, whole_story),
    (3, destroy_node),
    (2, list_nodes),
    (2, destroy_graph),
    (3, destroy_executable),
)
