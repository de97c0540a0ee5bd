"""Our own definitions of gRPC messages."""
