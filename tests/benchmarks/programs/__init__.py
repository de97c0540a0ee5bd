"""Programs that are measured, each in a process of its own: what it imports is all that it imports."""
