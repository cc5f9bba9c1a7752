"""What waits to be stored is bounded."""

from __future__ import annotations

from pathlib import Path

from pmm_cached.logs import configure
from pmm_cached.status import EmbeddingStatus
from pmm_cached.text_table import TextTable
from pmm_shm import limits
from pmm_shm.instance.paths import Instance
from pmm_shm.store.writer import StoreWriter
from pmm_shm.vectors.text_table import TextVector

MODEL = "model"


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


# The table.


def test_what_waits_to_be_stored_is_bounded(tmp_path: Path) -> None:
    """Nothing is stored while somebody holds the writer's lock, and only so much waits."""
    instance = Instance.of(tmp_path / "ledger.db")
    instance.directory.mkdir()
    writer, status = StoreWriter(instance), EmbeddingStatus()
    deaths: list[str] = []
    texts = TextTable(writer, 10_000, status, configure("text", "error"), deaths.append)
    texts.start()
    vector = b"\0" * 4 * limits.DIMENSION_MAX
    answers: list[str | None] = []
    with writer._lock:
        for number in range(3_000):
            texts.put([TextVector(MODEL, key(number), vector)], answers.append)
        refused = len(answers)
        assert 900 < refused < 1_000
        assert all(answer is not None and "wait" in answer for answer in answers)
    assert texts.stop(10.0)
    assert answers[refused:] == [None] * (3_000 - refused)
    assert status.text_vectors == 3_000 - refused
    assert texts.has(MODEL, key(0))
    texts.put([TextVector(MODEL, key(1), vector)], answers.append)
    assert answers[-1] == "the daemon stops"
    assert deaths == []
    writer.close()
