"""Append listeners of one log: each hears each event once, in the order of ids, whoever appended it.

One thread delivers at a time. An own append waits until its event was delivered, but for one that a listener makes: the
thread that delivers goes on with that event afterwards.

Invariant: no lock is held while a listener runs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from pmm_shm_pmm.loaded import Loaded, PmmEvent

Listener = Callable[[PmmEvent], object]
WAIT_S = 5.0
"""How long an append waits for another thread's delivery. The listener there may wait for a lock of this thread, which
it would get if nobody had to wait for the order; then the event is heard after `append` has returned."""
LOCKED_WAIT_S = 0.1
"""The same where the caller of `append` holds the log's own lock."""
_OURS = __package__ + "."


class Delivery:
    """Delivers the events of one log.

    Attributes:
        listeners: in order of registration; PMM's own list.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        # Up to which event of which log all was delivered; swapped whole.
        self._heard: tuple[Loaded | None, int] = (None, 0)
        # Registered while older events waited: (listener, the newest event then).
        self._late: list[tuple[Listener, int]] = []
        self.after_fork()

    def after_fork(self) -> None:
        """Forget the threads that the child does not have."""
        self._turn = threading.Condition(threading.Lock())
        self._deliverer: int | None = None
        self._waiting = 0

    def register(self, add: Callable[[], None], loaded: Loaded) -> None:
        """Call `add`, which adds to `listeners`: these hear nothing that is loaded by now."""
        with self._turn:
            before = len(self.listeners)
            add()
            newest_id = loaded.newest_id
            if not before:
                self._heard = (loaded, newest_id)
            elif self._heard != (loaded, newest_id):
                self._late += [(listener, newest_id) for listener in self.listeners[before:]]

    def deliver(
        self, loaded: Loaded, own_id: int | None = None, *, is_guarded: bool = True, wait_s: float = 0.0
    ) -> None:
        """Deliver what is loaded and was not heard.

        Parameters:
            own_id: the event that this thread has appended; None for a read, which waits for nobody.
            wait_s: how long an append waits for another thread that delivers.
            is_guarded: leave it to others within a read by the owner of a listener.
        """
        heard, newest_id = self._heard, loaded.newest_id
        if heard[1] == newest_id and heard[0] is loaded:
            return
        if self._deliverer == threading.get_ident():
            return
        if own_id is None and is_guarded and self.listeners and self._is_within_owner():
            return
        if not self._take_turn(loaded, own_id, wait_s):
            return
        try:
            while self._goes_on(loaded, own_id):
                for event in loaded.ledger.after(loaded, self._heard[1]):
                    self._tell(loaded, event)
        except BaseException:
            with self._turn:
                self._give_up_turn()
            raise

    def _take_turn(self, loaded: Loaded, own_id: int | None, wait_s: float) -> bool:
        """Whether this thread shall deliver now."""
        with self._turn:
            while self._deliverer is not None:
                if own_id is None or self._was_heard(loaded, own_id):
                    return False
                self._waiting += 1
                try:
                    if not self._turn.wait(wait_s):
                        return False
                finally:
                    self._waiting -= 1
            if not self._begin(loaded, own_id):
                return False
            self._deliverer = threading.get_ident()
            return True

    def _goes_on(self, loaded: Loaded, own_id: int | None) -> bool:
        """Whether something is left; another append that waits takes over once this one's event was heard."""
        with self._turn:
            if self._was_heard(loaded, loaded.newest_id):
                self._late.clear()
            elif not (self._waiting and (own_id is None or self._was_heard(loaded, own_id))):
                return True
            # In one step: what another thread takes in from now on, it delivers itself.
            self._give_up_turn()
            return False

    def _give_up_turn(self) -> None:
        self._deliverer = None
        if self._waiting:
            self._turn.notify_all()

    def _begin(self, loaded: Loaded, own_id: int | None) -> bool:
        """Whether there is anything to deliver."""
        if not self.listeners:
            self._heard = (loaded, loaded.newest_id)
        elif self._heard[0] is not loaded:
            # The file holds another log now: nobody has heard its older events, and nobody shall.
            self._heard = (loaded, loaded.newest_id if own_id is None else own_id - 1)
            self._late.clear()
        return not self._was_heard(loaded, loaded.newest_id)

    def _was_heard(self, loaded: Loaded, event_id: int) -> bool:
        return self._heard[0] is loaded and self._heard[1] >= event_id

    def _tell(self, loaded: Loaded, event: PmmEvent) -> None:
        event_id = event["id"]
        skipped = [id(listener) for listener, newest_id in self._late if newest_id >= event_id]
        try:
            for listener in list(self.listeners):
                if id(listener) in skipped:
                    skipped.remove(id(listener))
                    continue
                try:
                    listener(event)
                except Exception:
                    # As PMM does.
                    pass
        finally:
            self._heard = (loaded, event_id)

    def _is_within_owner(self) -> bool:
        """Whether the code of PMM that reads belongs to the owner of a listener.

        In PMM no listener runs within a read. Its owner may hold a lock that the listener takes, or be at work on what
        the listener changes. It hears later: at the next append, or the next read from elsewhere.
        """
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
            frame = frame.f_back
        if frame is None or not str(frame.f_globals.get("__name__", "")).startswith("pmm."):
            return False
        owner: Any = frame.f_locals.get("self")
        return owner is not None and any(getattr(one, "__self__", None) is owner for one in list(self.listeners))
