"""`pmm-shm explain`"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pmm_shm.flags import default_ledger
from pmm_shm_terminal import completers, exits
from pmm_shm_terminal.answer_names import WHY_NOT_APPLICABLE
from pmm_shm_terminal.answers import only_fold
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    did_you_mean,
    is_like_a_file,
    json_option,
    ledger_timeout_option,
    shape_option,
    the_ledger,
)
from pmm_shm_terminal.output import cell, json_value, pairs, print_json, printable, progress, show, table, titled

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pmm_shm.projection.explaining import ExplainedEvent, Explanation, Subject

_STEPS_SHOWN = 50
_TEXT_SHOWN = 60
_TS_SHOWN = 19
_ARGUMENTS = {"identity.name": 0, "metrics": 0, "commitment": 1, "trait": 1, "directive": 1}
"""Subject to the number of words that follow it."""
_WHAT = "identity.name, commitment CID, trait NAME, directive TEXT, or metrics"


@click.command(context_settings=CONTEXT)
@click.argument("words", nargs=-1, metavar="[LEDGER] WHAT", shell_complete=completers.subjects)
@click.option(
    "--fold",
    metavar="NAME",
    shell_complete=completers.folds,
    help="WHAT is a key of this fold; package.module:attribute names one that is not registered.",
)
@click.option("--integer", is_flag=True, help="CID is an integer. Without this, a text with these digits is preferred.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=_STEPS_SHOWN,
    metavar="N",
    help="Number of events to list, the newest; 0 for all.",
)
@click.option("--until", type=click.IntRange(min=0), metavar="EVENT_ID", help="Explain the value at this event.")
@ledger_timeout_option
@shape_option
@json_option
def explain(
    words: tuple[str, ...],
    fold: str | None,
    integer: bool,
    limit: int,
    until: int | None,
    timeout: Deadline,
    as_json: bool,
) -> None:
    """List the events that led to a value, each with the change.

    WHAT is identity.name, commitment CID, trait NAME (or its first letter), directive TEXT, or metrics; with --fold, a
    key of that fold. Without it, lists what there is. It is a full replay, event by event: no cache, no daemon. Of
    metrics, the changes are those before feedback and clamping.

    \b
    Example:
      pmm-shm explain agent.db --fold tool_use calls.search
    """
    if fold is None:
        named = words[0] if words and os.path.exists(words[0]) else default_ledger()
        fold = None if named is None else only_fold(the_ledger(named))
    if fold is not None:
        if integer:
            raise click.UsageError("--integer means something for commitment only")
        _explain_fold(words, fold, limit, until, timeout, as_json)
        return
    if _is_without_what(words):
        _list_subjects(the_ledger(words[0] if words else None), timeout, as_json)
        return
    ledger, subject, argument = _parsed(words)
    if integer and subject != "commitment":
        raise click.UsageError("--integer means something for commitment only")
    candidates = _subjects(subject, argument, integer)
    from pmm_shm.ledger.recovery import open_recovered
    from pmm_shm.ledger.tail import head_of
    from pmm_shm.projection.explaining import explain as explained

    with contextlib.closing(open_recovered(ledger, timeout.left_s())) as connection:
        head = head_of(connection)
        if subject not in ("commitment", "directive") and connection.schema.is_of_pmm2:
            raise exits.CommandFailed(f"{ledger}: {subject} does not apply: {WHY_NOT_APPLICABLE}", exits.FAILURE)
        for candidate in candidates:
            with progress("Replaying", head if until is None else min(head, until)) as advance:
                answer = explained(
                    connection, candidate, limit or None, until, lambda position: advance(position.as_of)
                )
            if answer.events:
                break
    if subject == "directive" and not answer.events:
        raise exits.CommandFailed(f"{ledger}: no event has the directive {argument!r:.80}", exits.FAILURE)
    if subject == "commitment" and not answer.events:
        raise exits.CommandFailed(f"{ledger}: no event speaks of commitment {argument!r}", exits.FAILURE)
    if as_json:
        print_json(json_value(answer))
    else:
        show(*_shown(answer))


def _explain_fold(
    words: Sequence[str], name: str, limit: int, until: int | None, timeout: Deadline, as_json: bool
) -> None:
    """Explain a key of a fold, or list its keys with their values."""
    from pmm_shm.folds.contract import view_of
    from pmm_shm.folds.describing import explainable
    from pmm_shm.ledger.recovery import open_recovered
    from pmm_shm.ledger.tail import head_of
    from pmm_shm.projection.explaining import explain as explained
    from pmm_shm.projection.fold_values import FoldValue
    from pmm_shm.projection.replay import replay
    from pmm_shm_terminal.answers import any_fold

    # A key may look like a file: `calls.search`.
    is_list = not words or (len(words) == 1 and (default_ledger() is None or os.path.exists(words[0])))
    if len(words) > 2:
        raise click.UsageError("too many arguments after KEY")
    ledger = the_ledger(words[0] if len(words) == 2 or (is_list and words) else None)
    fold = any_fold(name, ledger)
    with contextlib.closing(open_recovered(ledger, timeout.left_s())) as connection:
        head = head_of(connection)
        with progress("Replaying", head if until is None else min(head, until)) as advance:
            if not is_list:
                answer = explained(
                    connection,
                    FoldValue(fold, words[-1]),
                    limit or None,
                    until,
                    lambda position: advance(position.as_of),
                )
            if is_list or not answer.events:
                position, states = replay(connection, [fold], lambda position: advance(position.as_of), until)
                found = explainable(fold, view_of(fold, states[fold.name], position.as_of))
    if is_list:
        _show_subjects(found, position.as_of, as_json)
    elif not answer.events:
        raise exits.CommandFailed(
            f"{ledger}: no event changed {printable(words[-1])!r} of the fold {name} (without KEY, explain lists all)"
            f"{'' if words[-1] in found else did_you_mean(words[-1], found)}",
            exits.FAILURE,
        )
    elif as_json:
        print_json(json_value(answer))
    else:
        show(*_shown(answer))


def _is_without_what(words: Sequence[str]) -> bool:
    return not words or (len(words) == 1 and words[0] not in _ARGUMENTS and is_like_a_file(words[0]))


def _list_subjects(ledger: str, timeout: Deadline, as_json: bool) -> None:
    """Print each WHAT of this ledger with its value now."""
    from pmm_shm_terminal.spectator import SpectatorCache

    with SpectatorCache(ledger, timeout=timeout.left_s()) as cache:
        frame = cache.frame()
    identity, commitments, metrics = frame.identity(), frame.commitments(), frame.metrics()
    found: dict[str, Any] = {}
    if not frame.not_applicable:
        found = {"identity.name": identity.name, "metrics": {"ias": metrics.ias, "gas": metrics.gas}}
        found.update((f"trait {name}", value) for name, value in identity.traits.items())
    for state, entries in (("open", commitments.open), ("expired", commitments.expired)):
        found.update((f"commitment {cid}", f"{state}: {entry.get('text')}") for cid, entry in entries.items())
    found.update((f"directive {one['content']}", f"score {one['score']:g}") for one in frame.active_directives())
    _show_subjects(found, frame.as_of, as_json)


def _show_subjects(found: Mapping[str, Any], as_of: int, as_json: bool) -> None:
    if as_json:
        print_json({"as_of": as_of, "subjects": json_value(found)})
        return
    made = table("WHAT", "now")
    for what, value in found.items():
        is_scores = isinstance(value, dict) and value.keys() == {"ias", "gas"}
        shown = f"IAS {value['ias']:.6g}, GAS {value['gas']:.6g}" if is_scores else json_value(value)
        made.add_row(cell(what), cell(shown, _TEXT_SHOWN))
    show(titled(f"what can be explained (as of event {as_of})", made))


def _parsed(words: Sequence[str]) -> tuple[str, str, str]:
    """(ledger, subject, its argument or "").

    Raises:
        click.UsageError: what is to be explained is not named.
    """
    for count in (2, 1):
        # Where a ledger has the name of a subject, a path to it tells them apart.
        subject = words[-count] if len(words) >= count else None
        if subject in _ARGUMENTS and _ARGUMENTS[subject] == count - 1 and len(words) <= count + 1:
            ledger = the_ledger(words[0] if len(words) == count + 1 else None)
            return ledger, subject, words[-1] if count == 2 else ""
    near = "" if any(word in _ARGUMENTS for word in words[-2:]) else did_you_mean(words[-1], _ARGUMENTS)
    raise click.UsageError(f"WHAT: expected {_WHAT}{near}")


def _subjects(subject: str, argument: str, integer: bool) -> list[Subject]:
    """The possible meanings of the words, the likeliest first."""
    from pmm_shm.projection.explaining import (
        CommitmentSubject,
        DirectiveSubject,
        MetricsSubject,
        NameSubject,
        TraitSubject,
    )

    if subject == "commitment":
        number = _number(argument)
        if integer and number is None:
            raise click.UsageError(f"CID: {argument!r} is not an integer")
        texts = [] if integer else [CommitmentSubject(argument)]
        return [*texts, *([CommitmentSubject(number)] if number else [])] or [CommitmentSubject(0)]
    if subject == "trait":
        return [TraitSubject(argument)]
    if subject == "directive":
        return [DirectiveSubject(argument)]
    return [MetricsSubject() if subject == "metrics" else NameSubject()]


def _number(word: str) -> int | None:
    """The integer that JSON would write so."""
    digits = word.removeprefix("-")
    is_number = digits.isascii() and digits.isdecimal() and len(digits) < 640 and (digits == "0" or digits[0] != "0")
    return int(word) if is_number else None


def _shown(answer: Explanation) -> list[RenderableType]:
    title = f"{printable(answer.subject)} (as of event {answer.as_of})"
    value = answer.value
    parts = [pairs(title, value if isinstance(value, dict) else {"value": json_value(value)})]
    is_metrics = answer.subject == "metrics"
    columns = ("id", "time", "kind", "effect", *(_METRICS if is_metrics else ("before", "after")))
    made = table(*columns, optional=("time", *(("IAS", "GAS") if is_metrics else ("kind", "before"))))
    for step in answer.steps:
        made.add_row(
            *(cell(step.event_id), cell(step.ts[:_TS_SHOWN]), cell(step.kind), cell(step.effect, _TEXT_SHOWN)),
            *(_scores(step) if is_metrics else (_value(step.before), _value(step.after))),
        )
    hidden = answer.events - len(answer.steps)
    note = f", the newest {len(answer.steps)} of them; --limit 0 lists all" if hidden else ""
    parts.append(titled(f"events: {answer.events}{note}", made))
    if answer.totals:
        parts.append(titled("all changes, before feedback and clamping", _totals(answer.totals)))
    return parts


_METRICS = ("IAS +/-", "GAS +/-", "IAS", "GAS")


def _scores(step: ExplainedEvent) -> list[Any]:
    delta, (ias, gas) = step.details["delta"], step.after["read"]
    changes = [cell(f"{delta[score]:+.6f}" if delta[score] else "") for score in ("ias", "gas")]
    return [*changes, cell(f"{ias:.6f}"), cell(f"{gas:.6f}")]


def _totals(totals: Mapping[str, Mapping[str, float]]) -> RenderableType:
    from pmm_shm.projection.explaining import TOTALS

    made = table("kind", "events", "IAS up", "IAS down", "GAS up", "GAS down", optional=("events",))
    for kind, total in sorted(totals.items(), key=lambda item: (-item[1]["events"], item[0])):
        numbers = (f"{total[name]:+.6f}" if total[name] else "" for name in TOTALS)
        made.add_row(cell(kind), cell(total["events"]), *(cell(number) for number in numbers))
    return made


def _value(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"seen_count", "recent_hits", "score"}:
        return cell(f"score {value['score']:g}")
    if not isinstance(value, dict) or "has_evidence" not in value:
        return cell(value, _TEXT_SHOWN)
    # A commitment's state in a word or two; its entry is printed above.
    status = "open" if value["open"] is not None else "expired" if value["expired"] is not None else "not open"
    return cell(f"{status}, evidence" if value["has_evidence"] else status)
