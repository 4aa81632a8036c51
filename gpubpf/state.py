"""What jobs took, kept over a restart of the agent: one file, written whole or not at all.

It is written before a page is served that says more than the file does, so that no scraper ever
sees a counter go back; and at the end. It holds the totals of the GPUs too: what the jobs' series
grew by stays what the GPUs' did. Facts are written by name: versions lay them out differently.

The file is trusted as far as its directory is; what doesn't hold together is set aside.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from gpubpf import lanes
from gpubpf.errors import UsageError
from gpubpf.jobs.job import LONGEST, NONE, OTHER, label
from gpubpf.model import UNKNOWN_GPU, Job, JobAccount, JobKey, Snapshot, Usage

VERSION = 1
_LARGEST = 256 << 20  # bytes of a file: 10,000 jobs on 8 GPUs, each of which did everything
_LANES = [(name, variant) for name, variants in lanes.FACTS for variant in variants]
_BY_NAME = {f"{name}.{v}" if v else name: lane for lane, (name, v) in enumerate(_LANES)}
_NAMES = tuple(_BY_NAME)

T = TypeVar("T")


class Saved(NamedTuple):
    """What a file holds. Times that were CLOCK_MONOTONIC are Unix seconds here."""

    accounts: tuple[JobAccount, ...]
    totals: Mapping[str, int]  # GPU UUID or UNKNOWN_GPU -> packed facts
    indices: Mapping[str, int]  # GPU UUID -> NVML index
    errors: Mapping[tuple[str, int], int]
    unattributed: Mapping[str, float]
    joules: Mapping[str, float]  # of the energy counters, up to which all is charged


class State:
    """The file. Only one agent may have it; `close` lets go of it."""

    def __init__(self, path: str) -> None:
        """Raises UsageError where the file can't be written, or another agent has it."""
        self.path = path
        self.note: str | None = None  # what the operator should know of what was read
        self.problem: str | None = None  # why the newest totals aren't in the file
        self._writing = threading.Lock()
        self._written: Snapshot | None = None
        if os.path.exists(path) and not os.path.isfile(path):  # it would be set aside as damaged
            raise UsageError(f"--state {path}: that is no regular file; name one")
        if not os.path.isdir(directory := os.path.dirname(path) or "."):
            raise UsageError(f"--state {path}: there is no directory {directory}; make it first")
        try:
            self._hold = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except (OSError, ValueError) as error:
            raise UsageError(f"--state {path}: can't be written: {_why(error)}") from None
        try:
            fcntl.flock(self._hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._hold)
            raise UsageError(
                f"--state {path}: another gpubpf has it; give this one another file"
            ) from None

    def read(self) -> Saved | None:
        """What was saved; None where nothing was, or it was damaged: then it is set aside."""
        try:
            with open(self.path, "rb") as file:
                text = file.read(_LARGEST + 1)
            if len(text) > _LARGEST:
                raise ValueError(f"it has more than {_LARGEST >> 20} MiB")
            return _saved(json.loads(text))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            aside = f"{self.path}.damaged"
            what = f"set aside as {aside}"
            try:
                os.replace(self.path, aside)
            except OSError as failed:
                what = f"and can't be set aside: {_why(failed)}"
            self.note = f"{self.path} can't be used ({_why(error)}), {what}; job totals begin at 0"
            return None

    def save(self, snapshot: Snapshot) -> None:
        """By any thread. Never raises: see `problem`."""
        with self._writing:
            written = self._written
            if snapshot.jobs is None or (written is not None and snapshot.at <= written.at):
                return
            text = json.dumps(_document(snapshot)).encode()
            if len(text) > _LARGEST:  # who reads it would set it aside
                self.problem = f"{self.path} would have more than {_LARGEST >> 20} MiB: set a lower"
                self.problem += " --max-jobs"
                return
            try:
                _replace(self.path, text)
                self._written, self.problem = snapshot, None
            except OSError as error:
                self.problem = f"{self.path} can't be written: {_why(error)}"

    def close(self) -> None:
        os.close(self._hold)


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return label(f"{type(error).__name__}: {error}", 120)


def _replace(path: str, text: bytes) -> None:
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(new, flags, 0o600), "wb") as file:
        file.write(text)
        file.flush()
        os.fdatasync(file.fileno())
    os.replace(new, path)


# --- as it stands in the file -------------------------------------------------------------------


def _document(snapshot: Snapshot) -> dict[str, Any]:
    jobs = snapshot.jobs
    assert jobs is not None
    behind = snapshot.time - snapshot.at  # what makes Unix seconds of CLOCK_MONOTONIC
    used = {gpu for account in jobs.accounts for gpu in account.on}
    devices = snapshot.devices
    here = {uuid for d in devices or () for uuid in (d.info.uuid, *d.info.children)}
    kept = {UNKNOWN_GPU, *used, *(snapshot.totals if devices is None else here)}
    return {
        "version": VERSION,
        "accounts": [_account(account, behind) for account in jobs.accounts],
        "totals": {gpu: _facts(v) for gpu, v in snapshot.totals.items() if gpu in kept},
        "indices": {gpu: index for gpu, index in snapshot.indices.items() if gpu in kept},
        "errors": [[*key, count] for key, count in snapshot.errors.items()],
        "unattributed_energy": {g: j for g, j in jobs.unattributed_energy.items() if g in kept},
        "joules": {gpu: joules for gpu, joules in jobs.joules.items() if gpu in kept},
    }


def _account(account: JobAccount, behind: float) -> dict[str, Any]:
    job = account.job
    return {
        "job_id": account.job_id,
        "job": job and [*job.key, job.namespace, job.name, job.user, [*job.labels]],
        "created": account.created,
        "ended": account.ended,
        "errors": [*map(list, account.errors.items())],
        "on": {
            gpu: {
                "facts": _facts(used.facts),
                "held": used.held,
                "active": used.active,
                "idle": used.idle,
                "energy": used.energy,
                "launched": None if used.launched is None else used.launched + behind,
            }
            for gpu, used in account.on.items()
        },
    }


def _facts(vector: int) -> dict[str, int]:
    row = zip(_NAMES, lanes.unpack(vector, 0), strict=True)
    return {name: count for name, count in row if count}


# --- and back: whatever isn't as it was written raises ------------------------------------------


def _saved(document: Any) -> Saved:
    version = document["version"]
    if version != VERSION:
        raise ValueError(f"it is of version {label(str(version), 20)}, this gpubpf reads {VERSION}")
    accounts = tuple(map(_told, document["accounts"]))
    names = {account.job_id for account in accounts}
    keys = {account.job.key for account in accounts if account.job is not None}
    if len(names) != len(accounts) or len(keys) != len(accounts) - len({OTHER, NONE} & names):
        raise ValueError("an account that is there twice")
    return Saved(
        accounts,
        _by_gpu(document["totals"], _vector),
        _by_gpu(document["indices"], _count),
        {(_text(f), _count(e)): _count(n) for f, e, n in document["errors"]},
        _by_gpu(document["unattributed_energy"], _number),
        _by_gpu(document.get("joules", {}), _number),
    )


def _told(row: Any) -> JobAccount:
    job_id, job = _text(row["job_id"]), row["job"]
    if (job is None) != (job_id in (OTHER, NONE)):
        raise ValueError("an account without a job")
    return JobAccount(
        job_id,
        None if job is None else _job(*job),
        _number(row["created"]),
        _maybe(row["ended"]),
        _by_gpu(row["on"], _usage),
        {_count(error): _count(count) for error, count in row["errors"]},
    )


def _job(
    scheduler: Any,
    id: Any,  # noqa: A002
    namespace: Any,
    name: Any,
    user: Any,
    labels: Any,
) -> Job:
    return Job(
        JobKey(_text(scheduler), _text(id)),
        _text(namespace),
        _text(name),
        _text(user),
        tuple((_text(key), _text(value)) for key, value in labels),
    )


def _usage(row: Any) -> Usage:
    held, active, idle = (_number(row[name]) for name in ("held", "active", "idle"))
    energy, launched = _number(row["energy"]), _maybe(row["launched"])
    return Usage(_vector(row["facts"]), held, active, idle, energy, launched)


def _vector(row: Any) -> int:
    """Facts that this version doesn't know are left out."""
    counts = {_BY_NAME[name]: _count(count) for name, count in row.items() if name in _BY_NAME}
    return sum(count << lanes.LANE_BITS * lane for lane, count in counts.items())


def _by_gpu(rows: Any, read: Callable[[Any], T]) -> dict[str, T]:
    return {_text(gpu): read(row) for gpu, row in rows.items()}


def _text(value: Any) -> str:
    longest = 3 * LONGEST  # a job_id may have its scheduler's name in front; a label's key has 317
    if not isinstance(value, str) or label(value, longest) != value:
        raise ValueError("a name that can't be one")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a count that can't be one")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not (0 <= value < math.inf):
        raise ValueError("a number that can't be one")
    return float(value)


def _maybe(value: Any) -> float | None:
    return None if value is None else _number(value)
