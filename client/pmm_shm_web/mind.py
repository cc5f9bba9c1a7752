"""An agent's mind at one position: frames of now and of earlier events, and their parts for the page."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pmm_shm import limits
from pmm_shm.errors import (
    ConfigError,
    EmbedderError,
    InvalidTextError,
    SnapshotUnavailableError,
    UnknownModelError,
)
from pmm_shm.folds.registry import BUILT_IN_NAMES
from pmm_shm.names import SEARCH_MODES
from pmm_shm.projection.courses import Courses, courses
from pmm_shm.projection.explaining import (
    CommitmentSubject,
    DirectiveSubject,
    Explanation,
    MetricsSubject,
    NameSubject,
    Subject,
    TraitSubject,
    explain,
)
from pmm_shm.projection.replay import Progress
from pmm_shm_client.aio import AsyncCache
from pmm_shm_client.context import Context, ContextRequest
from pmm_shm_client.frame import Frame
from pmm_shm_client.hits import Hits
from pmm_shm_terminal.spectator import SpectatorCache
from pmm_shm_web.folds import UserFolds
from pmm_shm_web.jobs import Job, Jobs
from pmm_shm_web.ledger import LedgerQueries
from pmm_shm_web.questions import whole_number

FRAME_WAIT_S = 0.25
"""How long a page waits for a frame before it shows progress."""
EXPLAIN_WAIT_S = 0.2
STEPS_MAX = 200
ENTRIES_SHOWN = 10
CID_JSON_CHARS_MAX = 4_096
_KEY_CHARS_SHOWN = 60


class WatchingCache(SpectatorCache, AsyncCache):
    """A cache that also hears the daemon's announcements, and that the daemon does not count as a worker."""

    def context_at(self, frame: Frame, request: ContextRequest) -> Context:
        """What `context` gives, or gave, where `frame` is the newest."""
        return self._context_at(frame, request)


class CommitmentRow(NamedTuple):
    """A commitment for the page; `cid_json` names it in an address, with its type. None if no address could hold it."""

    cid: Any
    cid_json: str | None
    text: Any
    details: Mapping[str, Any]


class Listed(NamedTuple):
    """Some of many commitments, the newest first."""

    entries: tuple[CommitmentRow, ...]
    total: int


class SearchOutcome(NamedTuple):
    """One search: its hits, or why there are none."""

    mode: str
    hits: Hits[Any] | None
    problem: str | None


class Mind:
    """Frames, explanations, contexts and searches of one ledger. Thread-safe.

    Parameters:
        cache: its reads.
        ledger: for the newest id.
        jobs: where replays run.
        folds: those of users, which its frames include.
    """

    def __init__(self, cache: WatchingCache, ledger: LedgerQueries, jobs: Jobs, folds: UserFolds) -> None:
        self.cache = cache
        self.folds = folds
        for fold in folds.folds.values():
            # A shape may name built-in ones, which are there.
            if fold.name not in BUILT_IN_NAMES:
                cache.add_fold(fold)
        self._ledger = ledger
        self._jobs = jobs
        self._has_frame = False

    def frame(self, at: int | None, wait_s: float = FRAME_WAIT_S) -> Frame | Job:
        """The frame of now (None) or as of an event; where it takes longer than `wait_s`, the job that makes it.

        Raises:
            PmmShmError: the ledger cannot be read.
        """
        if at is None and self._has_frame:
            return self.cache.frame()
        kept = self.cache.kept_frame(at) if at is not None and self._has_frame else None
        if kept is not None:
            return kept
        found: Frame | Job = self._ended(
            ("frame", at), at, lambda report: self._first() if at is None else self.cache.frame_at(at, report), wait_s
        )
        return found

    def _first(self) -> Frame:
        frame = self.cache.frame()
        self._has_frame = True
        return frame

    def _ended(self, key: Any, total: int | None, work: Any, wait_s: float) -> Any:
        if total is not None:
            total = min(total, self._ledger.head())
        job = self._jobs.start((self._ledger.epoch, key), total, work)
        if not job.wait(wait_s):
            return job
        if job.error is not None:
            raise job.error
        return job.result

    def courses(self, name: str, wait_s: float = EXPLAIN_WAIT_S) -> Courses | Job:
        """A fold's numbers over the life of the log; or the job that replays it.

        Raises:
            ConfigError: there is no such fold.
        """
        fold, head = self.folds.named(name), self._ledger.head()

        def work(report: Progress) -> Courses:
            from pmm_shm.ledger.recovery import open_recovered

            with contextlib.closing(open_recovered(self._ledger.path, limits.LEDGER_TIMEOUT_S)) as connection:
                return courses(connection, fold, progress=report)

        found: Courses | Job = self._ended(("course", name, head), head, work, wait_s)
        return found

    def subject(self, name: str, argument: str) -> Subject:
        """What is to be explained: as `subject_of`; `directive`, with the id of an event that has its text; or `fold`,
        with a fold and a key.

        Raises:
            ConfigError: there is no such value.
            LedgerError: the ledger cannot be read.
        """
        if name == "fold":
            return self.folds.subject(argument)
        if name != "directive":
            return subject_of(name, argument)
        event_id = whole_number({"argument": argument}, "argument")
        event = None if event_id is None else self.cache.event(event_id)
        if event is None or event.kind != "autonomy_directive":
            raise ConfigError(f"argument: expected the id of an event of a directive, got {argument!r:.80}")
        return DirectiveSubject(event.content)

    def explanation(self, subject: Subject, at: int) -> Explanation | Job:
        """The events behind a value as of event `at`, the newest `STEPS_MAX`; or the job that finds them."""

        def work(report: Progress) -> Explanation:
            from pmm_shm.ledger.recovery import open_recovered

            with contextlib.closing(open_recovered(self._ledger.path, limits.LEDGER_TIMEOUT_S)) as connection:
                return explain(connection, subject, STEPS_MAX, at, report)

        found: Explanation | Job = self._ended(("why", subject.name, at), at, work, EXPLAIN_WAIT_S)
        return found

    def context(
        self, text: str, at: int | None, counts: tuple[int, int, int], wait_s: float = FRAME_WAIT_S
    ) -> Context | Job:
        """What `Cache.context` gives for a message now, or would have given at an event, with so many reflections,
        recalled messages and last messages.
        """
        request = ContextRequest.of(text, *counts, "auto")
        frame = self.frame(at, wait_s)
        if isinstance(frame, Job):
            return frame
        return self.cache.context_at(frame, request)

    def searches(self, text: str, k: int, filters: Mapping[str, Any]) -> tuple[SearchOutcome, ...]:
        """By words, and by meaning."""
        return self.search(text, k, filters, "words"), self.search(text, k, filters, "meaning")

    def search(
        self, text: str, k: int, filters: Mapping[str, Any], mode: str, model: str | None = None
    ) -> SearchOutcome:
        """The events nearest to a text, as `Cache.search` has them in this mode; a search that fails says why.

        Raises:
            ConfigError: there is no such mode.
        """
        try:
            hits = self.cache.search(text, k, None, model, mode=mode, **filters)  # type: ignore[call-overload]
        except (EmbedderError, InvalidTextError, SnapshotUnavailableError, UnknownModelError) as error:
            return SearchOutcome(mode, None, str(error))
        except ConfigError as error:
            if mode not in SEARCH_MODES:
                raise
            return SearchOutcome(mode, None, str(error))
        return SearchOutcome(mode, hits, hits.problem)


def subject_of(name: str, argument: str) -> Subject:
    """What is to be explained: `name`, `metrics`, `trait` or `commitment`, the latter with its id as JSON.

    Raises:
        ConfigError: there is no such value.
    """
    if name == "name":
        return NameSubject()
    if name == "metrics":
        return MetricsSubject()
    if name == "trait":
        return TraitSubject(argument)
    if name == "commitment":
        try:
            cid = json.loads(argument)
        except (ValueError, RecursionError):
            cid = None
        if type(cid) not in (str, int):
            raise ConfigError(f"cid: expected a JSON text or integer, got {argument!r:.80}")
        return CommitmentSubject(cid)
    raise ConfigError(f"subject: expected name, metrics, trait, commitment, directive or fold, got {name!r:.80}")


def commitments(entries: Mapping[Any, Any], first: int = 0, count: int = ENTRIES_SHOWN) -> Listed:
    """`count` commitments from the newest but `first` on."""
    newest = list(entries)[::-1][first : first + count]
    return Listed(tuple(_entry(cid, entries[cid]) for cid in newest), len(entries))


def _entry(cid: Any, entry: Mapping[str, Any]) -> CommitmentRow:
    details = {key: value for key, value in entry.items() if key not in ("cid", "text")}
    named = json.dumps(cid)
    return CommitmentRow(cid, named if len(named) <= CID_JSON_CHARS_MAX else None, entry.get("text"), details)


def in_short(details: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The first few details that are short."""
    short = [(key, value) for key, value in details.items() if isinstance(value, (str, int, float))]
    return [(str(key)[:_KEY_CHARS_SHOWN], value) for key, value in short[:4]]
