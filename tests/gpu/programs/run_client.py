"""Runs a script in this process when it is told to, and stays, so that it can be looked at."""

from __future__ import annotations

import runpy
import sys

from tests.gpu.programs import talk


def run(path: str, arguments: list[str]) -> None:
    sys.argv = [path, *arguments]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"it ended with {ended.code}") from None


if __name__ == "__main__":
    talk.serve({"run": run})
