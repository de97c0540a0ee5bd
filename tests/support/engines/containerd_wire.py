"""The messages of containerd's API as its makers publish them, to drive engines independently of the library's own.

The package `containerd` carries generated code that current protobuf runtimes refuse to load. The definitions in it are
sound all the same: they are read from its text, and loaded into a pool of their own.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, empty_pb2, field_mask_pb2, timestamp_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

STATUS = ("UNKNOWN", "CREATED", "RUNNING", "STOPPED", "PAUSED", "PAUSING")
"""The names of a task's states, by number (containerd.v1.types.Status)."""


def message(name: str) -> Any:
    """Return the class of a message by its full name, such as "containerd.services.tasks.v1.GetRequest"."""
    return GetMessageClass(_pool().FindMessageTypeByName(name))


def request_and_answer(service: str, method: str) -> tuple[Any, Any]:
    """Return the classes of a method's request and answer, the service by its full name."""
    found = _pool().FindServiceByName(service).methods_by_name[method]
    return GetMessageClass(found.input_type), GetMessageClass(found.output_type)


@cache
def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in files():
        pool.Add(file)
    return pool


def files() -> list[descriptor_pb2.FileDescriptorProto]:
    """Return the published definitions, each after those that it needs."""
    published = [descriptor_pb2.FileDescriptorProto.FromString(text) for text in _texts()]
    # One of them mentions this message, in a field that nobody here needs.
    published.append(descriptor_pb2.FileDescriptorProto(name="google/rpc/status.proto", package="google.rpc"))
    published[-1].message_type.add(name="Status")
    for module in (any_pb2, descriptor_pb2, empty_pb2, field_mask_pb2, timestamp_pb2):
        published.append(descriptor_pb2.FileDescriptorProto())
        module.DESCRIPTOR.CopyToProto(published[-1])
    found = {file.name: file for file in published}
    return [
        found[name] for name in TopologicalSorter({file.name: file.dependency for file in published}).static_order()
    ]


def _texts() -> list[bytes]:
    """Find the serialised definitions in the package's generated code, without running it."""
    package = importlib.util.find_spec("containerd")
    assert package is not None
    assert package.submodule_search_locations is not None
    found = []
    for folder in package.submodule_search_locations:
        for path in sorted(Path(folder).rglob("*_pb2.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "_descriptor.FileDescriptor":
                    found += [ast.literal_eval(key.value) for key in node.keywords if key.arg == "serialized_pb"]
    return found
