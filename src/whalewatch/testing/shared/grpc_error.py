"""The error of the fake engines that speak gRPC."""

from __future__ import annotations


class FakeGrpcError(Exception):
    """The fake refuses an operation, as the engine would.

    Attributes:
        code: The name of the gRPC status that the same operation is answered with on the wire, such as "NOT_FOUND".
        message: The engine's explanation.
    """

    def __init__(self, code: str, message: str) -> None:
        """Refuse with the gRPC status of that name and the ``message``."""
        super().__init__(code, message)
        self.code = code
        self.message = message
