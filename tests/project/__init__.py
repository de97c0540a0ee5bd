"""Public names, documentation, examples."""
