"""The life of the attachments: each copy of libcuda in use is probed once, for as long as it is.

What is attached is known by device and inode, which nothing else can get while the file is held
open here. A file that isn't known may still be one that is, seen through another mount; before it
is attached to, the kernel is asked (gpubpf.bpf.marker). Where even that can't tell, a file that
looks the same is taken for the same: rather missed than counted twice.

Detaching loses no counts: they are kept by process, not by file. It waits until two full looks in
a row have seen the file at no path and in no process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Container, Sequence
from dataclasses import dataclass

from gpubpf.bpf import attach, elf, marker
from gpubpf.bpf.load import Loaded
from gpubpf.bpf.program import SLOTS
from gpubpf.errors import BpfError, GpubpfError
from gpubpf.libraries import Copy, Key, Libraries
from gpubpf.model import Attached
from gpubpf.symbols import Symbol

MOST_COPIES = 64  # attached at a time
MOST_PER_USER = 16  # of those that processes of one user were found to map; root may have all
MOST_VIEWS = 1024  # files held open: an attached copy may be seen through many mounts
UNSEEN = 2  # full looks
MOST_ATTEMPTS = 16  # files examined at a look
REFUSALS = 8  # of one user's files, until his attempts are rationed …
_RECOVERY = 0.25  # … to so many a look: what is refused may take 10 ms to examine
_MOST_NOTES = 100


@dataclass(slots=True)
class _Probed:
    """One inode, and its probes."""

    attachment: attach.Attachment
    user: int | None  # whose process was found to map it; None: it stands at a path
    before: set[int]  # processes that may have called it before it was probed
    slot: int  # its number among those attached


@dataclass(slots=True)
class _View:
    """One device and inode under which a probed inode is seen."""

    fd: int  # held: else another file could get the inode number
    probed: _Probed
    status: os.stat_result  # when it was found: a server that is gone doesn't tell it again
    local: bool
    unseen: int = 0  # full looks in a row


class Copies:
    """`open_usual`, then `look` again and again, by one thread; `close` detaches everything."""

    def __init__(
        self,
        loaded: Loaded,
        symbols: Sequence[Symbol],
        libraries: Libraries,
        notes: list[str],
        most: int = MOST_COPIES,
    ) -> None:
        """`notes` is where remarks for the operator go; `most`, the copies attached at a time."""
        self._most = most
        self._loaded = loaded
        self._symbols = symbols
        self._libraries = libraries
        self._notes = notes
        self._views: dict[Key, _View] = {}
        self._beyond: set[Key] = set()  # found while there was no room
        self._refusals: dict[int | None, float] = {}  # by user; they fade
        self._attempts = 0  # left at this look
        self._full_looks = 0  # when last looked for what is unseen
        self._detaching: list[threading.Thread] = []
        self.attached: tuple[Attached, ...] = ()
        self.count = 0  # copies attached now
        self.refused = 0  # files that could not be probed, since the start
        self.detached = 0  # copies that nobody used any more, since the start

    @property
    def beyond_cap(self) -> int:
        """Files that aren't probed for want of room, as far as they were found."""
        return len(self._beyond)

    @property
    def served(self) -> int:
        """Processes that map a file which a user's program serves (FUSE): it isn't probed."""
        return len(self._libraries.served)

    @property
    def stuck(self) -> int:
        """Looks at files or processes that hang."""
        return self._libraries.guard.stuck

    def states(self) -> dict[str, int]:
        """How many files there are now, by state."""
        return {
            "attached": self.count,
            "no_room": self.beyond_cap,
            "served": self.served,
            "stuck": self.stuck,
        }

    def events(self) -> dict[str, int]:
        """How many came to this since the start."""
        return {"refused": self.refused, "detached": self.detached}

    def open_usual(self) -> list[int]:
        """Attaches to what is at the usual and the explicit paths. A descriptor of each: the
        caller closes them."""
        opened = []
        for copy in self._libraries.usual():
            opened.append(os.dup(copy.fd))
            self._consider(copy)
        return opened

    def look(self, covered: Container[int] = ()) -> int:
        """Attaches to what is new, detaches from what is unused; how many copies are attached.

        Processes in `covered` are known to call a probed copy. Raises GpubpfError when there are
        more copies than may be attached.
        """
        self._attempts = MOST_ATTEMPTS
        self._refusals = {
            user: n - _RECOVERY for user, n in self._refusals.items() if n > _RECOVERY
        }
        for copies in (self._libraries.usual(), self._libraries.mapped(covered)):
            for copy in copies:
                self._consider(copy)
        if self._libraries.full_looks != self._full_looks:
            self._full_looks = self._libraries.full_looks
            self._retire(covered)
            self._relieve()
        if self._beyond and self.count >= self._most:
            raise GpubpfError(
                f"{self.count} libcuda files are probed, the most that may be; "
                f"{len(self._beyond)} more are not"
            )
        return self.count

    def close(self) -> None:
        """Detaches every probe. Safe to call twice."""
        attach.detach([link for probed in self._probed() for link in probed.attachment.links])
        for view in self._views.values():
            os.close(view.fd)
        self._views.clear()
        self._recount()
        for thread in self._detaching:
            thread.join()
        self._libraries.guard.close()

    # --- a file that isn't known ---------------------------------------------------------------

    def _consider(self, copy: Copy) -> None:
        try:
            kept = self._accept(copy)
        except Exception as error:  # whatever a hostile file brings about
            # The kernel may have been short of something; a file that is no library stays one.
            again = isinstance(error, BpfError | OSError)
            self._libraries.refused(copy, again=again)
            self.refused += 1
            if copy.user:  # root is every container
                self._refusals[copy.user] = self._refusals.get(copy.user, 0.0) + 1
            self._note(f"not probed: {copy.name}: {error}")
            kept = False
        if not kept:
            os.close(copy.fd)

    def _accept(self, copy: Copy) -> bool:
        """Whether it is probed now. Raises when it can't be."""
        if copy.key in self._beyond and not self._room(copy):
            self._libraries.forget(copy.key)
            return False
        if not self._may_try(copy):
            self._libraries.later(copy)
            return False
        names = {symbol.name for symbol in self._symbols}
        points = self._libraries.guard.call(lambda: elf.probe_points(copy.fd, names))
        if not points:
            raise elf.NotALibraryError("it exports none of the functions to probe")
        probed = self._twin(copy)
        if probed is None:
            if not self._room(copy):
                self._leave_out(copy)
                return False
            before = self._libraries.processes()
            taken = {probed.slot for probed in self._probed()}
            slot = next(slot for slot in range(SLOTS) if slot not in taken)
            attachment = attach.attach(
                self._loaded, self._symbols, copy.fd, self._name(copy), lambda *_: points, slot
            )
            probed = _Probed(attachment, copy.user, before, slot)
        elif len(self._views) >= MOST_VIEWS:  # it is probed; only that it is used isn't noticed
            self._libraries.forget(copy.key)
            return False
        self._views[copy.key] = _View(copy.fd, probed, os.fstat(copy.fd), copy.local)
        self._beyond.discard(copy.key)
        self._recount()
        return True

    def _may_try(self, copy: Copy) -> bool:
        """What is at a path is the operator's own. Of what processes map only so much is tried at
        a look, and less of a user whose files are refused again and again."""
        if copy.pid is None:
            return True
        if not self._attempts or self._refusals.get(copy.user, 0.0) > REFUSALS - 1:
            return False
        self._attempts -= 1
        return True

    def _twin(self, copy: Copy) -> _Probed | None:
        """The inode as it is known already, seen through another mount."""
        views = {id(view.probed): view for view in self._views.values()}.values()
        # The agent maps the files for it: none that a server may keep it waiting for.
        mine = [view for view in views if view.local and copy.local]
        answers: dict[int, bool | None] = {}
        if mine:
            told = marker.same(copy.fd, [view.fd for view in mine], multi=self._loaded.multi)
            answers = dict(zip((view.fd for view in mine), told, strict=True))
        status = os.fstat(copy.fd)
        for view in views:
            answer = answers.get(view.fd)
            if answer or (answer is None and _alike(status, view.status)):
                return view.probed
        return None

    def _room(self, copy: Copy) -> bool:
        if len(self._views) >= MOST_VIEWS or self.count >= self._most:
            return False
        if not copy.user:  # at a path, or root's: containers run as root, and root may do worse
            return True
        return sum(probed.user == copy.user for probed in self._probed()) < MOST_PER_USER

    def _leave_out(self, copy: Copy) -> None:
        self._libraries.forget(copy.key)
        self._beyond.add(copy.key)
        if self.count < self._most:
            self._note(
                f"not probed: {copy.name}: user {copy.user} has {MOST_PER_USER} libcuda files "
                "probed, the most that may be"
            )

    def _name(self, copy: Copy) -> str:
        """Two images may each have their own at the same path."""
        taken = {probe.library for probe in self.attached}
        return copy.name if copy.name not in taken else f"{copy.name} (process {copy.pid})"

    # --- what is attached ----------------------------------------------------------------------

    def _retire(self, covered: Container[int]) -> None:
        """Detaches from what nobody uses any more, after a full look."""
        self._beyond = {key for key in self._beyond if self._libraries.in_use(key)}
        if any(pid in covered for pid in self._libraries.unreadable):
            return  # it calls a copy, and which can't be told
        before = self._probed()
        for key, view in list(self._views.items()):
            view.unseen = 0 if self._libraries.in_use(key) else view.unseen + 1
            if view.unseen >= UNSEEN:
                del self._views[key]
                self._libraries.forget(key)
                os.close(view.fd)
        left = {id(probed) for probed in self._probed()}
        gone = [probed for probed in before if id(probed) not in left]
        if gone:
            self.detached += len(gone)
            self._detach([link for probed in gone for link in probed.attachment.links])
            self._recount()

    def _relieve(self) -> None:
        """After a full look: where no process is left that may have called a copy before it was
        probed, what asks about that time is detached."""
        could = self._libraries.mappers | self._libraries.unreadable
        for probed in self._probed():
            probed.before &= could
            if probed.attachment.late and not probed.before:
                self._detach(list(probed.attachment.late))
                probed.attachment = probed.attachment.without_late(self._symbols)
                self._recount()

    def _detach(self, links: list[int]) -> None:
        """Not by this thread: the kernel takes its time, by perf events seconds."""
        self._detaching = [thread for thread in self._detaching if thread.is_alive()]
        thread = threading.Thread(target=attach.detach, args=(links,), name="detach", daemon=True)
        thread.start()
        self._detaching.append(thread)

    def _probed(self) -> list[_Probed]:
        return list({id(view.probed): view.probed for view in self._views.values()}.values())

    def _recount(self) -> None:
        probed = self._probed()
        self.count = len(probed)
        self.attached = tuple(probe for one in probed for probe in one.attachment.probes)

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
            del self._notes[:-_MOST_NOTES]


def _alike(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two files could be one inode, by what stat says: overlayfs may use the high bits of
    an inode number, and a change of mode or links changes only ctime."""
    return (one.st_ino & 0xFFFFFFFF, one.st_size, one.st_mtime_ns) == (
        *(other.st_ino & 0xFFFFFFFF, other.st_size, other.st_mtime_ns),
    )
