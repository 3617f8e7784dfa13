"""The sockets a server listens on: its port, and the owner-only one for the command line."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from serve.errors import PortInUse, StartupError

_PATH_LIMIT = 100
"""Bytes a Unix socket's path may safely have (the kernel takes 107)."""


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, taken before anything slow happens. Raises PortInUse, StartupError for an unusable host."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)  # connections made from now on wait, instead of being refused
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is in use; stop what listens there, or choose another port with --port"
            ) from None
        raise StartupError(
            f"cannot listen on {host}, port {port} ({error}); choose another with --host and --port"
        ) from None


@contextlib.contextmanager
def local_socket(path: Path) -> Iterator[socket.socket]:
    """A Unix socket that only its owner can open. Who holds the database's lock owns it, and removes a stale one."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listener:
        before = os.umask(0o177)
        try:
            with short_path(path) as address:
                listener.bind(address)
        finally:
            os.umask(before)
        listener.listen(16)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path to the same place that fits a socket address, however deep the folder lies."""
    if len(os.fsencode(path)) <= _PATH_LIMIT:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
