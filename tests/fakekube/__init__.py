"""A kubelet and an API server for tests: they speak the real protocols."""
