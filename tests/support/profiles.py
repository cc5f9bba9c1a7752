"""How many examples Hypothesis tries: the profiles "fast", "default" and "chaos" (`--hypothesis-profile=chaos`).

A test with its own number of examples gives it as `examples(count)`, which the profile scales.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_AS_IT_IS = 100
"""The examples per test with which `examples(count)` is `count`."""


def register() -> None:
    """Make the profiles known and load the default one; pytest's option loads another afterwards."""
    health = [HealthCheck.function_scoped_fixture]
    settings.register_profile("fast", max_examples=8, deadline=None, suppress_health_check=health)
    settings.register_profile("default", max_examples=25, deadline=None, suppress_health_check=health)
    settings.register_profile("chaos", max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
    settings.load_profile("default")


def examples(count: int) -> int:
    """`count`, scaled by the profile: a quarter of it by default, a twelfth in "fast", ten times as many in "chaos"."""
    return max(count * settings.default.max_examples // _AS_IT_IS, 1)
