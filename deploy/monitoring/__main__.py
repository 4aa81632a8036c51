"""Writes the rule files, the runbook and, with --dashboards, Grafana's dashboards; or checks that
they are what the tables say."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.monitoring import rules
from deploy.monitoring.alerts import ALERTS

HERE = Path(__file__).parent.parent / "prometheus"


def files(choice: rules.Choice) -> dict[str, str]:
    """By their paths below the directory."""
    return {
        "rules/gpubpf-recording.yml": rules.recording(choice),
        "rules/gpubpf-alerts.yml": rules.alerts(choice),
        "RUNBOOK.md": rules.runbook(),
    }


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a metric or a label")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="deploy.monitoring", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write them")
    what.add_argument("--check", action="store_true", help="say what is not up to date")
    parser.add_argument(
        "--directory", type=Path, default=HERE,
        help="where rules/ and RUNBOOK.md go (default: deploy/prometheus)",
    )  # fmt: skip
    parser.add_argument("--dashboards", type=Path, help="the dashboards too, and where")
    parser.add_argument("--kubernetes", type=Path, help="the plain manifests too, and where")
    names = [alert.name for alert in ALERTS]
    parser.add_argument(
        "--without", action="append", default=[], choices=names, metavar="NAME",
        help=f"an alert that is not wanted, of {', '.join(names)}",
    )  # fmt: skip
    default = rules.Choice()
    parser.add_argument(
        "--step-time", default=default.step_time, metavar="HISTOGRAM", type=_name,
        help="the jobs' own step times, in seconds, without _sum or _count",
    )  # fmt: skip
    parser.add_argument(
        "--step-label", default=default.step_label, metavar="LABEL", type=_name,
        help="its label that is the job_id",
    )  # fmt: skip
    parser.add_argument(
        "--runbook", default=default.runbook, metavar="URL",
        help="where people can open RUNBOOK.md: each alert gets a runbook_url there",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    choice = rules.Choice(given.without, given.step_time, given.step_label, given.runbook)
    wanted = {given.directory / name: text for name, text in files(choice).items()}
    if given.dashboards:
        from deploy.monitoring.dashboards import files as boards  # it needs grafana-foundation-sdk

        wanted |= {given.dashboards / name: text for name, text in boards()}
    if given.kubernetes:
        from deploy.monitoring.manifests import files as manifests  # it needs helm-python-sdk

        wanted |= {given.kubernetes / name: text for name, text in manifests()}
    stale = False
    for path, text in wanted.items():
        if given.write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}", file=sys.stderr)
            continue
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        stale = stale or old != text
        rows = (old.splitlines(keepends=True), text.splitlines(keepends=True))
        sys.stdout.writelines(difflib.unified_diff(*rows, str(path), f"{path} from the tables"))
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
