"""What the tools and resources answer, as plain values; nothing here knows the protocol.

Invariant: every answer is exact for its `as_of`, of the time of the call, and bounded (module `bounds`).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pmm_shm import limits
from pmm_shm.errors import ConfigError
from pmm_shm_client.cache import Cache
from pmm_shm_client.results import applicable
from pmm_shm_mcp.bounds import ANSWER_CHARS_MAX, chars_of, chars_shown, cut_text, with_items

if TYPE_CHECKING:
    from pmm_shm.folds.contract import Fold
    from pmm_shm.ledger.rows import Event
    from pmm_shm.projection.explaining import Explanation, Subject
    from pmm_shm.projection.replay import Progress

VIA = "mcp"
"""`meta["via"]` of every event that the tool `append` has written."""
META_CHARS_MAX = 20_000
"""Characters of the JSON of `meta` that `append` takes."""
CommitmentStatus = Literal["open", "expired", "all"]
SubjectName = Literal["name", "trait", "commitment", "metrics"]


class Memory:
    """One ledger's memory.

    Parameters:
        writable: the kinds that `append` takes.
        timeout_s: how long an explanation waits for a busy ledger.
    """

    def __init__(self, cache: Cache, writable: Iterable[str] = (), timeout_s: float = limits.LEDGER_TIMEOUT_S) -> None:
        self._cache = cache
        self.writable = tuple(dict.fromkeys(writable))
        self.path = cache.path
        self._timeout_s = timeout_s

    def close(self) -> None:
        """Close the cache."""
        self._cache.close()

    def recall(
        self,
        query: str,
        limit: int,
        kinds: Collection[str] | None = None,
        since: int | str | None = None,
        until: int | str | None = None,
        roles: Collection[str] | None = None,
        distinct: bool = True,
    ) -> dict[str, Any]:
        """The events that a search by words and meaning finds, the best first.

        Parameters:
            since, until: an id may also be a text of digits: models often quote a number.

        Raises:
            PmmShmError: as `Cache.recall`.
        """
        found = self._cache.recall(
            query,
            limit,
            mode="auto",
            kinds=kinds,
            roles=roles,
            since=_id_or_time(since),
            until=_id_or_time(until),
            distinct=distinct,
        )
        answer: dict[str, Any] = {"as_of": found.as_of, "is_complete": found.is_complete}
        if not found.is_complete:
            answer["problem"] = "not every event was searched: no daemon has indexed them all yet"
        elif found.problem is not None:
            answer["problem"] = found.problem
        hits = (
            {
                "id": hit.event_id,
                "ts": hit.event["ts"],
                "kind": hit.event["kind"],
                "found_by": hit.found_by,
                "similarity": _rounded(hit.similarity),
                "word_score": _rounded(hit.word_score),
                "content": hit.event["content"],
            }
            for hit in found
        )
        return with_items(answer, "hits", hits)

    def context(self, message: str | None, recall: int, messages: int, reflections: int) -> str:
        """The block of `Cache.context`, with the position and what recall has missed below it."""
        found = self._cache.context(message, reflections, recall, messages, recall_mode="auto")
        lines = [cut_text(str(found), ANSWER_CHARS_MAX), "", f"(as of event {found.as_of})"]
        if found.recall_problem is not None:
            lines.append(cut_text(f"(recall: {found.recall_problem})", 500))
        return "\n".join(lines)

    def events(
        self,
        kind: str | None,
        after: int | None,
        before: int | None,
        limit: int,
        newest_first: bool,
        text_from: int = 0,
    ) -> dict[str, Any]:
        """Events of a range of ids, and how to go on if there are more of them, or more of a text.

        Parameters:
            text_from: leave out so many characters of each text.
        """
        newest = self._cache.events(limit=1, newest_first=True)
        as_of = newest[0].id if newest else 0
        # What is appended between the two reads is not in this answer.
        before = as_of + 1 if before is None else min(before, as_of + 1)
        found = self._cache.events(kind, after, before, limit + 1, newest_first)
        shown = found[:limit]
        answer = with_items({"as_of": as_of}, "events", (_event(one, text_from) for one in shown))
        listed = len(answer["events"])
        first = answer["events"][0]["content"] if listed else ""
        if listed and (chars := chars_shown(first, shown[0].content[text_from:])) is not None:
            one = shown[0].id
            whole = f"after={one - 1}, before={one + 1}, text_from={text_from + chars}"
            answer["text_goes_on"] = f"the text of event {one} goes on: call again with {whole}"
        if len(found) > listed:
            bound = "before" if newest_first else "after"
            answer["more"] = f"there are more: call again with {bound}={shown[listed - 1].id}"
        return answer

    def explain(
        self, subject: SubjectName, which: str, until: int | None, limit: int, progress: Progress | None = None
    ) -> dict[str, Any]:
        """The events that led to a value, the newest first, each with its effect.

        Parameters:
            progress: called with the position of the replay; an exception out of it ends the call.

        Raises:
            ConfigError: there is no such subject, or it does not apply to this ledger.
            LedgerError: the ledger cannot be read.
        """
        from pmm_shm_terminal.answer_names import WHY_NOT_APPLICABLE

        if subject != "commitment" and self._cache.is_of_pmm2:
            raise ConfigError(f"{subject}: does not apply: {WHY_NOT_APPLICABLE}")
        answer = self._explained(_subjects(subject, which), until, limit, progress)
        if subject == "commitment" and not answer.events:
            raise ConfigError(f"commitment: no event speaks of {which!r:.80}")
        return _steps_of(answer)

    def _explained(
        self, candidates: Iterable[Subject], until: int | None, limit: int, progress: Progress | None
    ) -> Explanation:
        from pmm_shm.ledger.recovery import open_recovered
        from pmm_shm.projection.explaining import explain

        with contextlib.closing(open_recovered(self.path, self._timeout_s)) as connection:
            for candidate in candidates:
                answer = explain(connection, candidate, limit, until, progress)
                if answer.events:
                    break
            return answer

    @property
    def is_foreign(self) -> bool:
        """Whether this is the log of another program, which has folds of its own."""
        return self._cache.shape is not None

    def folds(self) -> dict[str, Any]:
        """What each fold describes, at one position: name to numbers, texts and tables."""
        from pmm_shm.folds.describing import description

        frame = self._cache.frame()
        found = ({"fold": name, "values": description(fold, frame.fold(name))} for name, fold in self._folds().items())
        return with_items({"as_of": frame.as_of}, "folds", found)

    def explain_fold(
        self, fold: str, key: str, until: int | None, limit: int, progress: Progress | None = None
    ) -> dict[str, Any]:
        """As `explain`, of a key of a fold.

        Raises:
            ConfigError: there is no such fold, or no event has changed the key.
            FoldError: a hook of the fold fails.
        """
        from pmm_shm.projection.fold_values import FoldValue

        folds = self._folds()
        if fold not in folds:
            raise ConfigError(f"fold: expected one of {', '.join(folds) or 'none'}, got {fold!r:.80}")
        answer = self._explained([FoldValue(folds[fold], key)], until, limit, progress)
        if not answer.events:
            raise ConfigError(f"key: no event has changed {key!r:.80}; the tool folds lists the keys")
        return _steps_of(answer)

    def _folds(self) -> dict[str, Fold]:
        from pmm_shm.folds.registry import chosen_folds

        shape = self._cache.shape
        return {fold.name: fold for fold in chosen_folds(shape.folds if shape else ())}

    def commitments(self, status: CommitmentStatus, limit: int) -> dict[str, Any]:
        """Commitments, those that were opened or have expired last first, and how many there are."""
        found = self._cache.commitments()
        answer = {"as_of": found.as_of, "open": len(found.open), "expired": len(found.expired)}
        entries: list[dict[str, Any]] = []
        for name, group in (("open", found.open), ("expired", found.expired)):
            if status in (name, "all"):
                entries += [_commitment(cid, name, entry) for cid, entry in reversed(list(group.items()))]
        made = with_items(answer, "commitments", entries[:limit])
        not_shown = len(entries) - len(made["commitments"])
        return {**made, "left_out": not_shown} if not_shown else made

    def append(self, kind: str, content: str, meta: Mapping[str, Any] | None, expected_head: int | None) -> int:
        """Append an event of one of the writable kinds. Returns its id.

        Raises:
            ConfigError: this kind is not one of them, or `meta` is too large or no JSON.
            PmmShmError: as `Cache.append`.
        """
        if kind not in self.writable:
            raise ConfigError(f"kind: expected one of {', '.join(self.writable)}, got {kind!r:.80}")
        if meta and not _is_json(meta):
            raise ConfigError("meta: a number is not finite, which JSON does not have")
        if meta and (size := chars_of(meta)) > META_CHARS_MAX:
            raise ConfigError(f"meta: {size:,} characters as JSON, at most {META_CHARS_MAX:,} are accepted")
        return self._cache.append(kind, content, {**(meta or {}), "via": VIA}, expected_head=expected_head)

    def identity(self) -> dict[str, Any]:
        """Name and traits; None in their place where they do not apply."""
        return self._applicable("identity", self._cache.identity().to_dict())

    def metrics(self) -> dict[str, Any]:
        """IAS, GAS and stage, at one position; None in their place where they do not apply."""
        frame = self._cache.frame()
        return self._applicable("metrics", {**frame.metrics().to_dict(), "stage": frame.stage().stage})

    def _applicable(self, name: str, answer: dict[str, Any]) -> dict[str, Any]:
        return applicable(name, answer, self._cache.not_applicable)


def _id_or_time(moment: int | str | None) -> int | str | None:
    return int(moment) if isinstance(moment, str) and re.fullmatch("[0-9]{1,19}", moment) else moment


def _is_json(meta: Mapping[str, Any]) -> bool:
    try:
        json.dumps(meta, allow_nan=False)
    except ValueError:
        return False
    return True


def _rounded(score: float | None) -> float | None:
    """To three digits: the score of a word that most texts hold is tiny, and never 0."""
    return None if score is None else float(f"{score:.3g}")


def _steps_of(answer: Explanation) -> dict[str, Any]:
    head = {"subject": answer.subject, "value": answer.value, "as_of": answer.as_of, "events": answer.events}
    if answer.totals:
        head["totals"] = answer.totals
    steps = (
        {
            "id": step.event_id,
            "ts": step.ts,
            "kind": step.kind,
            "effect": step.effect,
            "before": step.before,
            "after": step.after,
        }
        for step in reversed(answer.steps)
    )
    return with_items(head, "steps", steps)


def _event(event: Event, text_from: int) -> dict[str, Any]:
    content = event.content[text_from:]
    found: dict[str, Any] = {"id": event.id, "ts": event.ts, "kind": event.kind, "content": content}
    return {**found, "meta": event.meta} if event.meta else found


def _commitment(cid: str | int, status: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in entry.items() if key not in ("cid", "text")}
    found: dict[str, Any] = {"cid": cid, "status": status, "text": entry.get("text")}
    return {**found, "meta": rest} if rest else found


def _subjects(subject: SubjectName, which: str) -> list[Subject]:
    """The possible meanings of the words, the likeliest first: a commitment's id may be a text or an integer.

    Raises:
        ConfigError: there is no such value.
    """
    from pmm_shm.projection.explaining import CommitmentSubject, MetricsSubject, NameSubject, TraitSubject

    if subject == "trait":
        return [TraitSubject(which)]
    if subject == "commitment":
        is_number = which.isascii() and which.isdecimal() and len(which) < 20 and which[0] != "0"
        return [CommitmentSubject(which), *([CommitmentSubject(int(which))] if is_number else [])]
    return [MetricsSubject() if subject == "metrics" else NameSubject()]
