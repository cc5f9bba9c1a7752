"""What the tests with processes of their own need before they start."""

from tests.support.compiled import compiled

__all__ = ["compiled"]
