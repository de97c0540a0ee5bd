"""The error of the fake engines that speak gRPC."""

from __future__ import annotations


class FakeGrpcError(Exception):
    """The fake refuses an operation, as the engine would.

    Attributes:
        code: The name of the gRPC status with which the same call would be answered, such as "NOT_FOUND".
        message: The engine's explanation.
    """

    def __init__(self, code: str, message: str) -> None:
        """Make an error with the name of a gRPC status and the engine's explanation."""
        super().__init__(code, message)
        self.code = code
        self.message = message
