"""Checks of the index of words, and of the model by whose vectors searches find meanings."""

from __future__ import annotations

from collections.abc import Iterator

from pmm_shm import limits
from pmm_shm.remedies import Remedy, remedy
from pmm_shm.vectors.registry import advice_on
from pmm_shm_cli.doctor.facts import SystemFacts
from pmm_shm_cli.doctor.finding import Verdict, note, ok, one_line, warning

_WITHOUT = f"each process indexes the newest {limits.WORD_EVENTS_MAX:,} events itself for its searches by words"


def index(facts: SystemFacts) -> Iterator[Verdict]:
    """Whether the index of words can be read, and has all events."""
    state, rows = facts.state, facts.ledger.rows
    told = None if state.daemon is None else state.daemon.get("words")
    if told is not None and not told["kinds"]:
        yield ok("the daemon keeps none", _WITHOUT)
    elif told is not None and told["problem"]:
        yield warning(
            one_line(f"it cannot be written: {told['problem']}"),
            "searches index what it lacks themselves; the daemon tries again",
            remedy("see-status", ledger=facts.path),
        )
    elif state.words is not None and state.words.problem is not None:
        yield warning(one_line(state.words.problem), _WITHOUT, _remake(facts))
    elif state.words is not None and rows is not None:
        behind = rows.head_id - state.words.as_of
        if behind <= (limits.INDEX_EVENTS_PER_COMMIT if told is not None else 0):
            yield ok(f"up to event {state.words.as_of:,}", "searches by words look there")
        else:
            yield note(
                f"{behind:,} events behind the log",
                "searches are exact, and index these events themselves",
                remedy("start", ledger=facts.path) if told is None else remedy("watch", ledger=facts.path),
            )
    elif state.words is None and told is not None and told["as_of"]:
        yield warning("its file was removed under the daemon", _WITHOUT, _remake(facts))
    elif state.words is None and told is None and state.store is not None:
        yield note("there is none", _WITHOUT, remedy("start", ledger=facts.path))


def embedder(facts: SystemFacts) -> Iterator[Verdict]:
    """What `auto` would give where the daemon's vectors know words only."""
    tables = {} if facts.state.daemon is None else facts.state.daemon["embeddings"]["tables"]
    advice = [advice_on(name) for name, table in tables.items() if table["is_served"]]
    if advice and None not in advice:
        yield ok(one_line(str(advice[0])), "searches find paraphrases only with a better one")


def _remake(facts: SystemFacts) -> Remedy:
    state = facts.state
    if state.daemon is None:
        return remedy("remake-words", file=state.instance.words_file, ledger=facts.path)
    if facts.machine.services:
        return remedy("remake-words-of-service", file=state.instance.words_file, unit=facts.machine.services[0].unit)
    return remedy("remake-words-of-daemon", file=state.instance.words_file, ledger=facts.path, daemon=state.daemon_pid)
