"""gRPC over a Unix socket, as far as a watch needs it: addresses and connections of any engine."""
