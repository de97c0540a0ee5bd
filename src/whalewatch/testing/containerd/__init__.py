"""A fake containerd that speaks containerd's own API."""
