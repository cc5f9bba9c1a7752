"""`explain`: the value it ends with is the one that is read, and each listed event does what is said of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pmm_shm.errors import ConfigError
from pmm_shm.folds.directives import WINDOW_EVENTS
from pmm_shm.folds.engine import Engine
from pmm_shm.folds.self_model import TRAITS
from pmm_shm.folds.state import State
from pmm_shm.ledger.recovery import open_recovered
from pmm_shm.ledger.rows import RawRow
from pmm_shm.projection.cursor import Cursor, LogChanged
from pmm_shm.projection.explaining import (
    TOTALS,
    CommitmentSubject,
    DirectiveSubject,
    Explanation,
    MetricsSubject,
    NameSubject,
    Subject,
    TraitSubject,
    explain,
)
from pmm_shm_cli.main import cli
from pmm_shm_client import EventLog, connect
from tests.support.answers import insert
from tests.support.golden_cases import Case, canonical, cases

CASES = [case for case in cases() if case.events]


def rows_of(case: Case) -> list[RawRow]:
    return [
        (e["id"], e["ts"], e["kind"], e["content"], e["meta_raw"] if "meta_raw" in e else json.dumps(e["meta"]))
        for e in case.events
    ]


def subjects_of(case: Case) -> Iterator[Subject]:
    yield from (NameSubject(), MetricsSubject(), *(TraitSubject(name) for name in TRAITS))
    cids = [event["meta"].get("cid") for event in case.events if isinstance(event.get("meta"), dict)]
    for cid in dict.fromkeys((type(cid), cid) for cid in cids if type(cid) in (str, int) and cid):
        yield CommitmentSubject(cid[1])
    texts = [event["content"] for event in case.events if event["kind"] == "autonomy_directive"]
    for text in dict.fromkeys(text for text in texts if isinstance(text, str)):
        yield DirectiveSubject(text)


def explained(path: str, subject: Subject, **options: Any) -> Explanation:
    connection = open_recovered(path, 10.0)
    try:
        return explain(connection, subject, **options)
    finally:
        connection.close()


def plainly(subject: Subject, rows: list[RawRow]) -> Any:
    """The value behind these rows, by the folds that everybody uses, without whoever watches them."""
    fold = subject.fold()
    state = State()
    Engine([fold]).apply(rows, {fold.name: state})
    return subject.value(state)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_values(case: Case, ledger: str) -> None:
    """The explained value is the reference answer, and every step begins where the one before it ended."""
    insert(ledger, case.events)
    prefix = max(case.answers, key=lambda one: one["prefix"])
    assert prefix["prefix"] == len(case.events)
    model = prefix["self_model"]
    for subject in subjects_of(case):
        answer = explained(ledger, subject)
        assert (answer.events, answer.as_of) == (len(answer.steps), case.events[-1]["id"])
        if isinstance(subject, NameSubject):
            assert canonical(answer.value) == canonical(model["identity"]["name"])
        elif isinstance(subject, TraitSubject):
            assert answer.value == model["identity"]["traits"][subject.name.removeprefix("trait ")]
        elif isinstance(subject, MetricsSubject):
            assert (answer.value["ias"], answer.value["gas"]) == (prefix["ias"], prefix["gas"])
        elif isinstance(subject, DirectiveSubject):
            wanted = [one for one in prefix["directives"] if f"directive {one['content']}" == subject.name]
            assert [answer.value["seen_count"]] == [one["seen_count"] for one in wanted]
        else:
            held = {name: model["commitments"][name] for name in ("open", "expired")}
            assert answer.value["open"] is None or str(subject.cid) in held["open"]
            assert answer.value["expired"] is None or str(subject.cid) in held["expired"]
        before = plainly(subject, [])
        for step in answer.steps:
            assert repr(step.before) == repr(before), (subject.name, step)
            assert step.has_effect is (repr(step.before) != repr(step.after))
            before = step.after
        assert repr(before) == repr(plainly(subject, rows_of(case)))


@pytest.mark.parametrize("case", CASES[:12] + CASES[-12:], ids=lambda case: case.name)
def test_without_a_listed_event_the_value_is_another(case: Case, ledger: str) -> None:
    """Or it is said that the event was without effect; and an event that is not listed never matters."""
    insert(ledger, case.events)
    for subject in subjects_of(case):
        steps = {step.event_id: step for step in explained(ledger, subject).steps}
        fold = subject.fold()
        engine, state = Engine([fold]), State()
        for row in rows_of(case):
            step = steps.get(row[0])
            without = subject.value(state)
            engine.apply([row], {fold.name: state})
            with_it = subject.value(state)
            if step is None or not step.has_effect:
                assert repr(with_it) == repr(without), (subject.name, row)
            else:
                assert repr(with_it) != repr(without), (subject.name, row)
            assert step is None or step.has_effect is not step.effect.startswith("without effect:"), step


def test_a_directive_is_pushed_out_of_the_newest_by_others(ledger: str) -> None:
    """Its events, and those of others that lower its score; the score is the one that is read."""
    texts = ["be  brief", "ask first", "be brief"] + [f"rule {n}" for n in range(WINDOW_EVENTS)]
    with EventLog(ledger) as log:
        log.append_many([("autonomy_directive", text, {}) for text in [*texts, "be brief"]])
    answer = explained(ledger, DirectiveSubject(" be brief "))
    left = "one before it left the newest 200"
    assert [(step.event_id, step.effect) for step in answer.steps] == [
        (1, "first seen"),
        (3, "seen again"),
        (201, left),
        (203, left),
        (204, "seen again"),
    ]
    assert answer.value == {"seen_count": 3, "recent_hits": 1, "score": 5.0, "rank": 1}
    with connect(ledger) as cache:
        assert cache.active_directives()[0]["score"] == 5.0
    assert explained(ledger, DirectiveSubject("nobody said so")).events == 0


def test_the_totals_add_up_to_the_scores(ledger: str) -> None:
    insert(ledger, next(case for case in CASES if case.name == "case-1-039").events)
    answer = explained(ledger, MetricsSubject(), limit=3)
    assert len(answer.steps) == 3 < answer.events == sum(total["events"] for total in answer.totals.values())
    for score, (up, down) in {"ias": TOTALS[:2], "gas": TOTALS[2:]}.items():
        summed = sum(total[up] + total[down] for total in answer.totals.values())
        assert summed == pytest.approx(answer.value["before_feedback"][score])
        assert all(total[up] >= 0 >= total[down] for total in answer.totals.values())


EFFECTS = {
    ("identity.name",): [
        "adopted",
        "without effect: it holds no name",
        "changed",
        "cleared: a blank name",
        "without effect: there was no name",
        "without effect: it holds no name",
    ],
    ("trait", "O"): ["+0.7, clamped", "-0.25, -0.125", "without effect: +0, no number, or zero"],
    ("commitment", "7"): [
        "opened",
        "without effect: it has no text",
        "without effect: evidence_type is not text",
        "without effect: not of the type done",
        "evidence that it is done",
        "without effect: there was evidence already",
        "snoozed until tick 9",
        "without effect: everything as before",
        "closed",
        "without effect: the commitment was not open",
    ],
    ("commitment", "7", "--integer"): ["opened", "closed without evidence"],
    ("commitment", "-8"): ["opened", "expired: late"],
}


@pytest.mark.parametrize("words", EFFECTS, ids=" ".join)
def test_what_each_event_did(words: tuple[str, ...], story: str) -> None:
    options = [word for word in words if word.startswith("--")]
    arguments = ["explain", *options, "--", story, *(word for word in words if word not in options)]
    ran = CliRunner().invoke(cli, [arguments[0], "--json", *arguments[1:]])
    assert ran.exit_code == 0, ran.output
    answer = json.loads(ran.stdout)
    assert [step["effect"] for step in answer["steps"]] == EFFECTS[words]
    shown = CliRunner().invoke(cli, arguments).stdout
    assert f"events: {len(EFFECTS[words])}" in shown
    assert "\x1b" not in shown


def test_until_and_limit(story: str) -> None:
    def run(*words: str) -> Any:
        ran = CliRunner().invoke(cli, ["explain", story, *words, "--json"])
        assert ran.exit_code == 0, ran.output
        return json.loads(ran.stdout)

    assert run("identity.name", "--until", "1")["value"] == "Echo"
    answer = run("identity.name", "--limit", "2")
    assert (answer["events"], [step["event_id"] for step in answer["steps"]]) == (6, [5, 24])
    assert run("trait", "c")["value"] == 0.6
    assert run("trait", "openness", "--until", "6")["value"] == 1.0
    assert run("metrics")["totals"]["commitment_close"]["events"] == 3


def test_the_ledger_may_be_in_the_environment(story: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMM_DB", story)
    for words in (["metrics"], ["trait", "n"], ["commitment", "7"]):
        named = CliRunner().invoke(cli, ["explain", story, *words, "--json"]).stdout
        assert CliRunner().invoke(cli, ["explain", *words, "--json"]).stdout == named != ""


def test_a_replay_that_begins_anew_lists_nothing_twice(story: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original, attempts = Cursor.advance_to_head, []

    def advance_to_head(*arguments: Any) -> Iterator[Any]:
        yield from original(*arguments)
        attempts.append(arguments)
        if len(attempts) == 1:
            raise LogChanged

    wanted = explained(story, MetricsSubject())
    monkeypatch.setattr(Cursor, "advance_to_head", advance_to_head)
    assert explained(story, MetricsSubject()) == wanted
    assert len(attempts) == 2


def test_a_commitment_has_an_id() -> None:
    with pytest.raises(ConfigError, match="no commitment has the id ''"):
        CommitmentSubject("")


def test_it_needs_and_makes_no_instance_directory(story: str) -> None:
    assert CliRunner().invoke(cli, ["explain", story, "metrics"]).exit_code == 0
    assert not Path(f"{story}-cache").exists()
