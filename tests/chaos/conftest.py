"""The fixtures of the log in PostgreSQL."""

from tests.support.clusters import host, hosts, name, server, writer

__all__ = ["host", "hosts", "name", "server", "writer"]
