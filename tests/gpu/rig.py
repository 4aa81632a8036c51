"""What the checks stand on: the machine's GPUs, an agent, and processes that work on the GPU."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.gpu.agent import Agent
from tests.gpu.child import Child
from tests.gpu.model import CheckError, NotPossibleError
from tests.gpu.pages import Page

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"


class Rig:
    """One for the whole run; `begin` and `end` frame a check. An agent is started when needed."""

    def __init__(
        self,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        agent_options: tuple[str, ...] = (),
        simulated: bool = False,
        interval: float = 0.5,
        effort: float = 1.0,
    ) -> None:
        self.python = python  # of the programs that work on the GPU
        self.simulated = simulated
        self.agent_options = agent_options
        self.interval = interval  # of the agent's looks
        self.effort = effort  # of what only gets better by being longer
        self.environment = dict(environment or os.environ)
        path = self.environment.get("PYTHONPATH")
        self.environment["PYTHONPATH"] = f"{ROOT}:{path}" if path else str(ROOT)
        self.deadline = time.monotonic() + 60
        self._agent: Agent | None = None
        self._children: list[Child] = []
        self._found: dict[str, bool] = {}

    # --- a check ------------------------------------------------------------------------------

    def begin(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def end(self) -> None:
        """Nothing of a check stays. An agent that died is started anew."""
        for child in self._children:
            child.close()
        self._children.clear()
        if self._agent is not None:
            try:
                self._agent.page()
            except CheckError:
                self.stop_agent()

    def close(self) -> None:
        self.end()
        self.stop_agent()

    # --- the agent ----------------------------------------------------------------------------

    @property
    def agent(self) -> Agent:
        """Raises AgentError."""
        if self._agent is None:
            self._agent = Agent(self.agent_options, self.environment, self.interval)
        return self._agent

    def start_agent(self, interval: float) -> Agent:
        """Another one in its place, with its own time between two looks."""
        self.stop_agent()
        self._agent = Agent(self.agent_options, self.environment, interval)
        return self._agent

    def stop_agent(self) -> None:
        if self._agent is not None:
            self._agent.stop()
            self._agent = None

    def page(self) -> Page:
        """All that was done until now is on it."""
        return self.agent.settled(max(1.0, min(20.0, self.deadline - time.monotonic())))

    # --- processes ----------------------------------------------------------------------------

    def client(self, program: str, *arguments: str, python: str = "", **environment: str) -> Child:
        """Starts one of programs/, which ends with the check."""
        path = str(PROGRAMS / f"{program}.py")
        return self.started([python or self.python, path, *arguments], **environment)

    def started(self, command: list[str], **environment: str) -> Child:
        child = Child(command, {**self.environment, **environment}, self.deadline)
        self._children.append(child)
        return child

    def run(self, command: list[str], seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A program that ends by itself. Raises CheckError where it doesn't."""
        left = max(1.0, min(seconds, self.deadline - time.monotonic()))
        try:
            return subprocess.run(
                command,
                env=self.environment,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=left,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CheckError(f"{Path(command[0]).name} has not ended within {left:.0f} s") from None

    # --- what there is ------------------------------------------------------------------------

    def lacks(self, need: str) -> str:
        """Why this machine doesn't have what a check needs; empty: it has it."""
        if need not in self._found:
            self._found[need] = NEEDS[need][0](self)
        return "" if self._found[need] else NEEDS[need][1]

    def imports(self, module: str) -> bool:
        """Whether the programs' Python has the module. Looks, without importing it."""
        code = "import importlib.util as u, sys; sys.exit(not u.find_spec(sys.argv[1]))"
        return self.run([self.python, "-c", code, module]).returncode == 0

    def runtimes(self) -> list[str]:
        """Every libcudart there is: the Python's packages, the toolkits', the linker's."""
        code = "import sys; print('\\n'.join(sys.path))"
        places = [place for place in self.run([self.python, "-c", code]).stdout.split() if place]
        patterns = [f"{place}/nvidia/*/lib/libcudart.so.*" for place in places]
        patterns += [f"{place}/torch/lib/libcudart*.so.*" for place in places]
        patterns += ["/usr/local/cuda*/lib*/libcudart.so.*[0-9]"]
        patterns += ["/usr/lib/x86_64-linux-gnu/libcudart.so.*[0-9]"]
        files = {os.path.realpath(f) for pattern in patterns for f in glob.glob(pattern)}
        return sorted(files)

    def gpus(self) -> int:
        """GPUs that the driver shows a process."""
        client = self.client("driver_client")
        return int(client.ask("devices")["count"])


Need = tuple[Callable[[Rig], bool], str]
NEEDS: dict[str, Need] = {
    "torch": (lambda rig: rig.imports("torch"), "PyTorch isn't there: --with torch or --python"),
    "cupy": (lambda rig: rig.imports("cupy"), "CuPy isn't there: --with cupy or --python"),
    "cupti": (lambda rig: rig.imports("cupti"), "cupti-python isn't there: --with cupti"),
    "cudart": (lambda rig: bool(rig.runtimes()), "no libcudart is there: --with cudart"),
    "2 GPUs": (lambda rig: rig.gpus() >= 2, "there is one GPU, it takes two"),
    "cc": (lambda rig: bool(shutil.which("cc")), "no C compiler is there: install gcc"),
    "cuda-bindings": (
        lambda rig: rig.imports("cuda.bindings.driver"),
        "cuda-bindings isn't there: --with clients or --python",
    ),
    "numba": (lambda rig: rig.imports("numba_cuda"), "numba-cuda isn't there: --with clients"),
    "triton": (lambda rig: rig.imports("triton"), "Triton isn't there: --with clients"),
    "cuda-core": (lambda rig: rig.imports("cuda.core"), "cuda-core isn't there: --with clients"),
}


def require(condition: Any, why: str) -> None:
    """Raises NotPossibleError."""
    if not condition:
        raise NotPossibleError(why)
