"""Runs checks: whatever one does, it comes to an end, and the others go on."""

from __future__ import annotations

import dataclasses
import time
import traceback

from tests.gpu.agent import AgentError
from tests.gpu.model import FAILED, NOT_POSSIBLE, Check, CheckError, NotPossibleError, Result
from tests.gpu.rig import Rig

REFUSED = "the simulated driver refuses the CUDA runtime"


def run(check: Check, rig: Rig, left: float) -> Result:
    """The result of one check, within `left` seconds."""
    if left <= 0:
        return Result(FAILED, "not reached: the time for the whole run is over (--time)")
    if rig.simulated and not check.simulated:
        return Result(NOT_POSSIBLE, REFUSED)
    begin = time.monotonic()
    rig.begin(min(check.seconds, left))
    try:
        result = _attempt(check, rig)
    finally:
        rig.end()
    return dataclasses.replace(result, seconds=time.monotonic() - begin)


def _attempt(check: Check, rig: Rig) -> Result:
    try:
        for need in check.needs:
            if why := rig.lacks(need):
                return Result(NOT_POSSIBLE, why)
        return check.run(rig)
    except NotPossibleError as error:
        return Result(NOT_POSSIBLE, str(error))
    except CheckError as error:
        return Result(FAILED, str(error))
    except AgentError as error:
        return Result(FAILED, f"the agent doesn't start: {error}")
    except Exception as error:  # a mistake in the check: the others go on
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        return Result(FAILED, f"a mistake in the check: {type(error).__name__}: {error} ({place})")
