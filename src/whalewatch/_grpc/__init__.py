"""gRPC over a Unix socket, as far as watching needs it: addresses and connection, of whatever engine."""
