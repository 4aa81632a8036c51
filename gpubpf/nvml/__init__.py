"""NVML: what the driver says of each GPU and of the processes on it. The only importer of pynvml.

pynvml gives the names, structures, constants and error codes, and the calls that are made once. The
calls of every round go through the same library handle, with structures kept between rounds: the
wrappers ask every list for its size first, so that the driver answers twice, and copy each row
field by field.

`facts` is the table of what is measured; `plan` reads it from a device; `nvml` keeps the devices;
`sampler` decides when, and lives with calls that don't come back.
"""

from gpubpf.nvml.codes import DEFAULT_LIBRARY, NvmlError
from gpubpf.nvml.nvml import Nvml

__all__ = ["DEFAULT_LIBRARY", "Nvml", "NvmlError"]
