"""A model-based test of the whole: appends by several connections, a daemon that stops, dies and comes back, and a
ledger that is truncated and replaced. The oracle is a full replay of the ledger as it is, after every step."""

from __future__ import annotations

from tests.support.shared_state import (
    SharedState,
    bounded,
)

TestSharedState = SharedState.TestCase
TestSharedState.settings = bounded(10)
