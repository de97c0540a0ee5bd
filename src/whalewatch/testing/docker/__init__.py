"""A fake Docker engine that speaks the Engine API."""
