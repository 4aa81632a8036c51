"""The names that other exporters give to what gpubpf measures, for dashboards that know those.

Off unless --compat asks for it: a fact under two names counts twice in a sum over names.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

DCGM, NVIDIA_SMI = "dcgm", "nvidia-smi"
FLAVOURS = (DCGM, NVIDIA_SMI)
"""What --compat knows: dcgm-exporter and nvidia_gpu_exporter."""


def hostname(environ: Mapping[str, str]) -> str:
    """The node's name. In a container the host name is the pod's, and NODE_NAME says the node's."""
    return environ.get("NODE_NAME") or socket.gethostname()
