"""Autonomy: ticks and occasional reflections, which one worker of an agent appends without a user.

The daemon elects the worker by a lease, so that N workers do not tick N times; without a daemon no worker ticks. A
process that is suspended between checking its lease and the append may append one tick too late.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from pmm_shm import limits
from pmm_shm.errors import ConfigError, PmmShmError

if TYPE_CHECKING:
    from pmm_shm_client.cache import Cache
    from pmm_shm_client.frame import Frame

ROLE = "autonomy"
REFLECTION_EVENTS = 50
_MARGIN_S = 0.5
_CLAIM_EVERY_S = limits.ROLE_LEASE_S / 4


class Autonomy:
    """A thread that ticks while this process is elected.

    Parameters:
        cache: of the ledger.
        tick_seconds: the interval between ticks.
        reflection_events: a reflection follows a tick once this many events came since the last one; 0 for never.

    Raises:
        ConfigError: a parameter is out of range.
    """

    def __init__(self, cache: Cache, tick_seconds: float, reflection_events: int = REFLECTION_EVENTS) -> None:
        if not 0 < tick_seconds < float("inf"):
            raise ConfigError(f"tick_seconds: expected a number above 0, got {tick_seconds!r}")
        if type(reflection_events) is not int or reflection_events < 0:
            raise ConfigError(f"reflection_events: expected an integer from 0 on, got {reflection_events!r}")
        self._cache = cache
        self._tick_s = float(tick_seconds)
        self._reflection_events = reflection_events
        self._role = cache.role(ROLE)
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autonomy", daemon=True)
        self.ticks = 0
        self.problem: str | None = None
        """Why the last tick failed; None if it did not."""

    @property
    def is_elected(self) -> bool:
        return self._role.is_held()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and let another worker be elected."""
        self._is_stopping.set()
        self._thread.join()

    def _run(self) -> None:
        was_held, due = False, 0.0
        try:
            while not self._is_stopping.is_set():
                if self._role.claim():
                    if not was_held:
                        due = time.monotonic() + self._tick_s
                    if time.monotonic() >= due:
                        due += self._tick_s
                        self._try_to_tick()
                was_held = self._role.is_held()
                self._is_stopping.wait(min(_CLAIM_EVERY_S, max(0.01, due - time.monotonic()) if was_held else 60.0))
        finally:
            self._role.resign()

    def _try_to_tick(self) -> None:
        try:
            self._tick()
            self.problem = None
        except PmmShmError as error:
            # The ledger may be unavailable for a while; the next tick tries again.
            self.problem = str(error)

    def _tick(self) -> None:
        frame = self._cache.frame()
        newest = frame.recent().reflections[-1:]
        since = frame.as_of - (newest[0].id if newest else 0)
        reflects = 0 < self._reflection_events <= since
        if not self._role.is_held(_MARGIN_S):
            return
        self._cache.append("autonomy_tick", "reflect" if reflects else "idle", _meta(frame))
        self.ticks += 1
        if reflects:
            self._cache.append("reflection", reflection_text(frame), {"source": "autonomy", **_meta(frame)})


def _meta(frame: Frame) -> dict[str, object]:
    metrics = frame.metrics()
    return {"telemetry": {"IAS": metrics.ias, "GAS": metrics.gas}, "stage": frame.stage().stage}


def reflection_text(frame: Frame) -> str:
    """The agent's description of itself: its name, its open commitments, its scores."""
    name, metrics = frame.identity().name, frame.metrics()
    who = f"I am {name}" if isinstance(name, str) and name else "I have no name yet"
    count = len(frame.commitments().open)
    promises = "no open commitment" if count == 0 else f"{count} open commitment{'s' if count > 1 else ''}"
    return f"{who}, with {promises}; IAS {metrics.ias:.2f}, GAS {metrics.gas:.2f}, stage {frame.stage().stage}."
