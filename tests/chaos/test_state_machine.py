"""The state machine of the shared state, at length."""

from __future__ import annotations

import os

from tests.support.shared_state import (
    SharedState,
    bounded,
)


class LongSharedState(SharedState):
    """The same, at length: `make chaos`."""


TestSharedStateAtLength = LongSharedState.TestCase
TestSharedStateAtLength.settings = bounded(int(os.environ.get("PMM_SHM_TEST_EXAMPLES", "1000")))
