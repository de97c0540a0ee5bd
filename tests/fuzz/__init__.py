"""Hostile engines: real answers, recorded once and mutated, for every adapter."""
