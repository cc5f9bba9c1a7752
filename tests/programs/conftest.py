"""What the tests with processes of their own need before they start, and the fixtures of the log in PostgreSQL."""

from tests.support.clusters import host, hosts, name, server, writer
from tests.support.compiled import compiled
from tests.support.terminals import talk

__all__ = ["compiled", "host", "hosts", "name", "server", "talk", "writer"]
