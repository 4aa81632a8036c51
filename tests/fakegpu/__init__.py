"""A simulated GPU node: a CUDA driver and an NVML over host memory that count every call."""
