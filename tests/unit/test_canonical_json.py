"""The JSON that answers are compared by is canonical."""

from __future__ import annotations

import json

from tests.support.golden_cases import canonical


def test_json_of_odd_values_is_canonical() -> None:
    assert canonical({7: 1.0, "a": float("nan")}) == json.dumps({"7": 1.0, "a": float("nan")})
