"""The watch over the memory of an attacked daemon, with a clock of its own."""

from __future__ import annotations

from pmm_cached.peers import MemoryWatch, Suspects
from pmm_shm import limits

# The watch over the memory, with a clock of its own.


def test_what_does_not_go_back_was_not_the_peers() -> None:
    size, now, trims = [100], [0.0], [0]

    def trim() -> None:
        trims[0] += 1

    watch = MemoryWatch(lambda: size[0], trim, lambda: now[0])
    size[0] += limits.PEERS_MEMORY_BYTES_MAX
    assert watch.check() is Suspects.NONE
    size[0] += 1
    assert (watch.check(), trims[0]) == (Suspects.WITH_UNREAD_DATA, 0)
    assert (watch.check(), trims[0]) == (Suspects.ALL, 1)
    now[0] += 0.6
    assert watch.check() is Suspects.NONE
    size[0] += limits.PEERS_MEMORY_BYTES_MAX
    assert watch.check() is Suspects.NONE
    size[0] += 1
    assert watch.check() is Suspects.WITH_UNREAD_DATA


def test_memory_that_goes_back_makes_the_base_small_again() -> None:
    size = [100 << 20]
    watch = MemoryWatch(lambda: size[0], lambda: None, lambda: 0.0)
    size[0] = 300 << 20
    assert watch.check() is Suspects.WITH_UNREAD_DATA
    size[0] = 50 << 20
    assert watch.check() is Suspects.NONE
    size[0] = 190 << 20
    assert watch.check() is Suspects.WITH_UNREAD_DATA
    watch.rebase()
    assert watch.check() is Suspects.NONE


def test_what_is_free_does_not_raise_the_base() -> None:
    """Or a peer that comes, sends and goes would make room for more each time."""
    size = [100 << 20]

    def trim() -> None:
        size[0] = 100 << 20

    watch = MemoryWatch(lambda: size[0], trim, lambda: 0.0)
    size[0] = 220 << 20
    watch.rebase()
    size[0] = 230 << 20
    assert watch.check() is Suspects.WITH_UNREAD_DATA
