"""The Docker adapter."""
