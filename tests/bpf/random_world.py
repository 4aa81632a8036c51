"""What a random program has made so far, so that most of what it does next is valid.

A world is not the driver: where it errs an operation fails, or names what was never made, and the
interpreter passes over it. Numbers are those of the program's language.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

RELAXED = 2


class NothingError(Exception):
    """There is nothing to do this with."""


@dataclass(eq=False)
class Context:
    number: int
    device: int
    alive: bool = True
    life: object = field(default_factory=object)  # a primary context may have several
    root: Context | None = None  # of a green context: the primary one
    green: int = 0
    primary: bool = False
    uses: int = 1

    @property
    def base(self) -> Context:
        return self.root or self


Lives = set[tuple[Context, object]]


def living(lives: Lives) -> bool:
    return all(context.alive and context.life is life for context, life in lives)


@dataclass(eq=False)
class Capture:
    origin: Stream
    thread: int
    mode: int
    graph: Graph | None = None  # one that was given
    invalid: bool = False
    memory: bool = False
    lives: Lives = field(default_factory=set)
    unjoined: list[Stream] = field(default_factory=list)


@dataclass(eq=False)
class Stream:
    number: int  # 0: the legacy one, 2: a thread's own
    context: Context
    blocking: bool
    thread: int = -1
    alive: bool = True
    capture: Capture | None = None


@dataclass(eq=False)
class Event:
    number: int
    context: Context
    alive: bool = True
    recorded: bool = False
    capture: Capture | None = None  # that it was last recorded in


@dataclass(eq=False)
class Node:
    number: int
    graph: Graph
    kernel: bool
    child: Graph | None = None


@dataclass(eq=False)
class Graph:
    number: int
    nodes: list[Node] = field(default_factory=list)
    lives: Lives = field(default_factory=set)
    parent: Graph | None = None
    capturing: bool = False
    memory: bool = False
    alive: bool = True

    def add(self, lives: Lives) -> None:
        graph: Graph | None = self
        while graph:
            graph.lives |= lives
            graph = graph.parent


@dataclass(eq=False)
class Executable:
    number: int
    graph: Graph
    nodes: list[Node]
    lives: Lives
    memory: bool
    alive: bool = True


@dataclass(eq=False)
class Memory:
    number: int
    kind: str  # of memory, or of the handle
    size: int
    context: Context | None  # that it goes with
    device: int = 0
    alive: bool = True


@dataclass(eq=False)
class Physical:
    device: int
    size: int
    handles: list[int] = field(default_factory=list)
    mappings: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Spot:
    """A stream as a thread names it in a call."""

    text: str
    ending: str  # of the asynchronous forms
    stream: Stream


class World:
    """Everything that there is, and the lines that made it."""

    def __init__(self, devices: int, threads: int, strange: bool) -> None:
        self.devices = devices
        self.threads = threads
        self.strange = strange
        self.lines: list[str] = []
        self.thread = 0
        self.primary = [Context(d + 1, d, alive=False, primary=True) for d in range(devices)]
        self.references = [0] * devices
        self.contexts: list[Context] = []  # the created and the green ones
        self.stacks: list[list[tuple[Context, object]]] = [[] for _ in range(threads)]
        self.streams: list[Stream] = []
        self.defaults: dict[tuple[int, int, object], Stream] = {}
        self.events: list[Event] = []
        self.captures: list[Capture] = []
        self.graphs: list[Graph] = []
        self.executables: list[Executable] = []
        self.functions: list[tuple[int, Context, object]] = []
        self.memory: list[Memory] = []
        self.pools: list[Memory] = []
        self.physical: list[Physical] = []
        self._numbers: defaultdict[str, int] = defaultdict(lambda: 2)
        self._numbers["context"] = 9

    # What is said

    def say(self, operation: str, *arguments: object) -> None:
        self.lines.append(" ".join((str(self.thread), operation, *map(str, arguments))))

    def new(self, kind: str) -> int:
        self._numbers[kind] += 1
        return self._numbers[kind]

    # Contexts

    def current(self) -> Context:
        """The thread's current context; a primary one may have come back."""
        if not self.stacks[self.thread]:
            raise NothingError
        context, life = self.stacks[self.thread][-1]
        if not context.alive or (context.life is not life and not context.primary):
            raise NothingError
        return context

    def living_contexts(self) -> list[Context]:
        return [c for c in (*self.primary, *self.contexts) if c.alive]

    def put_current(self, context: Context, push: bool) -> None:
        stack = self.stacks[self.thread]
        if not push and stack:
            stack.pop()
        stack.append((context, context.life))

    def retain(self, device: int) -> None:
        context = self.primary[device]
        self.references[device] += 1
        if not context.alive:
            context.alive, context.life = True, object()

    def release(self, device: int) -> None:
        self.references[device] -= 1
        if not self.references[device]:
            self.end_context(self.primary[device])

    def end_context(self, context: Context) -> None:
        """Everything in it goes with it."""
        if not context.alive:
            return
        context.alive = False
        for other in self.contexts:
            if other.root is context:
                self.end_context(other)
        for stream in (*self.streams, *self.defaults.values()):
            if stream.context is context and stream.alive:
                self.end_stream(stream)
        if context.root:
            return
        for event in self.events:
            event.alive &= event.context is not context
        for memory in self.memory:
            memory.alive &= memory.context is not context

    def busy(self, context: Context) -> bool:
        """Whether there are captures in it: then it had better stay."""
        return any(
            s.capture and (s.context is context or s.context.root is context)
            for s in (*self.streams, *self.defaults.values())
        )

    # Streams

    def end_stream(self, stream: Stream) -> None:
        stream.alive = False
        capture = stream.capture
        if capture and capture.origin is stream:
            self.end_capture(capture)
        elif capture:
            capture.invalid = True
            stream.capture = None

    def default(self, context: Context, number: int) -> Stream:
        thread = self.thread if number == 2 else -1
        key = (number, thread, context.life)
        if key not in self.defaults:
            self.defaults[key] = Stream(number, context, True, thread)
        return self.defaults[key]

    def spots(self) -> list[Spot]:
        """Every stream that the thread can name; those that programs make come first."""
        context = self.current()
        made = [Spot(str(s.number), "", s) for s in self.streams if s.alive]
        also = [Spot(str(s.number), "_ptsz", s) for s in self.streams if s.alive][:1]
        legacy, own = self.default(context, 0), self.default(context, 2)
        return [
            *made,
            *made,
            *also,
            Spot("0", "", legacy),
            Spot("1", "", legacy),
            Spot("2", "", own),
            Spot("0", "_ptsz", own),
        ]

    def usable(self, stream: Stream) -> bool:
        """Whether work in it won't fail."""
        if stream.capture:
            return not stream.capture.invalid
        return stream.number != 0 or not self.blocked(stream.context)

    def blocked(self, context: Context) -> bool:
        """Whether the legacy stream would have to wait for a capture."""
        return any(
            s.capture and s.blocking and s.context is context
            for s in (*self.streams, *self.defaults.values())
        )

    # Captures

    def members(self, capture: Capture) -> list[Stream]:
        return [s for s in (*self.streams, *self.defaults.values()) if s.capture is capture]

    def end_capture(self, capture: Capture) -> None:
        for stream in self.members(capture):
            stream.capture = None
        self.captures.remove(capture)
        if capture.graph:
            capture.graph.capturing = False

    def in_the_way(self) -> list[Capture]:
        """The captures that forbid calls such as cuMemAlloc, and that such a call invalidates."""
        return [
            c for c in self.captures if c.mode == 0 or (c.mode == 1 and c.thread == self.thread)
        ]

    def forbid(self, anyway: bool) -> None:
        """For a call that captures may forbid: it is left out, or does its damage."""
        captures = self.in_the_way()
        if captures and not anyway:
            raise NothingError
        for capture in captures:
            capture.invalid = True

    def note_work(self, stream: Stream, lives: Lives) -> None:
        """Kernels went into a stream; while it is captured, they become a graph's."""
        capture = stream.capture
        if capture:
            capture.lives |= lives
            if stream is not capture.origin and stream not in capture.unjoined:
                capture.unjoined.append(stream)
