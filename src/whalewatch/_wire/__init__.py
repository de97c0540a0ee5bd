"""Protobuf messages of gRPC engines, generated from `protos/` (``make protos``): nothing here is written by hand."""
