"""The containerd adapter."""
