"""The CRI adapter."""
