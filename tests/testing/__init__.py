"""The fakes, held against the real engines."""
