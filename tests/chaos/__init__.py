"""Chaos: random operations and random faults against a real engine, and watchers that must be right in the end."""
