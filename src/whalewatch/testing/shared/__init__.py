"""What all fake engines share: how they are served, their event streams, and the faults of calls and events."""
