"""The Docker Engine API, as far as watching needs it: addresses, connection, and what the answers mean."""
