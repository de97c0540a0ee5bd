"""containerd's own API, as far as watching needs it: the calls, and what the answers mean."""
