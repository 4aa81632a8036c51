"""A simulated GPU node: a CUDA driver and an NVML over host memory, with exact counts of every call."""
