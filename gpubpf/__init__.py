"""gpubpf: an eBPF-augmented, per-process GPU monitor for NVIDIA nodes."""

__version__ = "0.1.0"
