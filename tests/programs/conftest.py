"""What the tests with processes of their own need before they start."""

from tests.support.compiled import compiled
from tests.support.terminals import talk

__all__ = ["compiled", "talk"]
