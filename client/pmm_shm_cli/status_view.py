"""How `pmm-shm status` looks, and what `top` shows in the same way."""

from __future__ import annotations

import os
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pmm_shm.ledger.obstacles import NEEDS_LEASE
from pmm_shm_terminal.answer_names import WHY_NOT_APPLICABLE
from pmm_shm_terminal.output import printable

_STYLES = {"healthy": "bold green", "lagging": "bold yellow", "degraded": "bold red", "absent": "bold red"}
_PAST = "last error"
_READERS_MAX = 8
_QUARANTINE_MAX = 3
_ENTRIES_AT_A_GLANCE, _ENTRIES_MAX, _VALUE_CHARS = 5, 20, 60
StatusNumbers = dict[str, Any]
LabelledLines = tuple[str, list[Any]]


def headline(found: StatusNumbers) -> Text:
    """Health, ledger, position and lag in one line."""
    line = Text(found["health"], _STYLES.get(found["health"], ""), no_wrap=True, overflow="ellipsis")
    line.append(f"  {printable(os.path.basename(found['ledger']))}", "bold")
    as_of = found["as_of"]
    line.append("  nothing published" if as_of is None else f"  event {as_of:,}", "")
    lag = found["lag_events"]
    if lag is None:
        line.append(f"  head {found['head_id']:,}", "")
    else:
        line.append(f"  lag {lag:,}", "yellow" if lag else "")
    return line


def source_line(replica: StatusNumbers) -> str:
    """The source of a replica in one line."""
    looked = replica["looked_ms"]
    confirmed = "never confirmed" if looked is None else f"confirmed {looked:,} ms ago"
    where = f"{replica['name']} on {replica['server'] or 'no server yet'}, timeline {replica['timeline']}"
    lag = f"lag {replica['lag_events']:,} events, {replica['lag_ms']:,} ms"
    return f"{where}; {lag}; {confirmed}; {replica['forks']:,} forks"


def glance(found: StatusNumbers) -> list[RenderableType]:
    """The answer of `status` below its headline: two lines where all is well, and what is not."""
    rows = [(name, lines) for name, lines in _problem_rows(found) if name != _PAST or found["health"] != "healthy"]
    rows += _owner_rows(found)
    if found["daemon"] is not None:
        rows += [("reads", [_cut(served(found["reads"]))]), ("daemon", [_cut(_in_short(found["daemon"]))])]
        if found["daemon"].get("replica") is not None:
            rows.append(("source", [_cut(source_line(found["daemon"]["replica"]))]))
        if found["daemon"]["quarantined"]:
            rows.append(("quarantine", _quarantine_lines(found["daemon"])))
        tables = sorted(found["daemon"]["embeddings"]["tables"].items())
        skipped = [f"{model}: {_skipped(table)}" for model, table in tables if table["refused"]]
        if skipped:
            rows.append(("embeddings", skipped))
    rows += [(name, [_cut(line) for line in lines]) for name, lines in _fold_rows(found, _ENTRIES_AT_A_GLANCE)]
    return [_grid(rows)] if rows else []


def sections(found: StatusNumbers) -> list[RenderableType]:
    """The answer of `status --verbose` below its headline."""
    rows = [*_problem_rows(found), *_ledger_rows(found), *_owner_rows(found)]
    if found["daemon"] is not None:
        rows += _daemon_rows(found, found["daemon"])
    rows += _fold_rows(found, _ENTRIES_MAX)
    return [Text(""), _grid(rows)]


def _grid(rows: list[LabelledLines]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="cyan")
    grid.add_column(overflow="fold")
    for name, lines in rows:
        for number, line in enumerate(lines):
            grid.add_row(name if number == 0 else "", line if isinstance(line, Text) else Text(printable(line)))
    return grid


def _problem_rows(found: StatusNumbers) -> list[LabelledLines]:
    rows: list[LabelledLines] = []
    for entry in found["remedies"]:
        is_past = entry["problem"] not in found["reasons"]
        lines: list[Any] = [Text(printable(entry["problem"]), "dim" if is_past else "red")]
        if is_past:
            lines[0].append(f"  ({duration(found['daemon']['last_error_age_ms'])} ago)")
        if entry["command"] is not None:
            lines.append(Text.assemble(("type: ", "dim"), (printable(entry["command"]), "bold")))
        rows.append((_PAST if is_past else "problem", lines))
    return rows


def _owner_rows(found: StatusNumbers) -> list[LabelledLines]:
    if found["daemon"] is not None and found["daemon"].get("shape"):
        return [("shape", [f"{found['daemon']['shape']}: a log of another program, which alone appends to it"])]
    missing = found.get("not_applicable")
    if not missing:
        return []
    owner = f"PMM 2: {NEEDS_LEASE}"
    return [("owner", [owner]), ("does not apply", [", ".join(missing), WHY_NOT_APPLICABLE])]


def _fold_rows(found: StatusNumbers, entries_max: int) -> list[LabelledLines]:
    """What the users' folds describe: numbers and texts in one line, and a line for each table."""
    rows: list[LabelledLines] = []
    for name, described in found.get("described", {}).items():
        if isinstance(described, str):
            rows.append((printable(name), [described]))
            continue
        plain = [f"{key} {_short(value)}" for key, value in described.items() if not isinstance(value, dict)]
        lines: list[Any] = [", ".join(plain)] if plain else []
        for key, table in described.items():
            if isinstance(table, dict):
                shown = [f"{entry} {_short(value)}" for entry, value in list(table.items())[:entries_max]]
                more = f", {len(table) - entries_max:,} more" if len(table) > entries_max else ""
                lines.append(f"{key}: {', '.join(shown) or 'none'}{more}")
        rows.append((printable(name), lines or ["nothing"]))
    return rows


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if abs(value) < 10**15 else f"{value!r:.40}"
    if value is None:
        return "–"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _VALUE_CHARS else text[: _VALUE_CHARS - 1] + "…"


def _ledger_rows(found: StatusNumbers) -> list[LabelledLines]:
    lag = "" if found["lag_events"] is None else f", lag {found['lag_events']:,} events, {found['lag_ms']:,} ms"
    applied = "nothing" if found["as_of"] is None else f"{found['as_of']:,}"
    folds = ", ".join(f"{name} {fold['version']}" for name, fold in found["folds"].items())
    sizes = found["sizes"]
    ledger = f"ledger {size(sizes['ledger_bytes'])} + wal {size(sizes['wal_bytes'])}"
    disk = f"data.mdb {size(sizes['store_disk_bytes'])} on disk"
    if "store_used_bytes" in sizes:
        disk += f", {size(sizes['store_used_bytes'])} used; daemon {size(sizes['resident_bytes'])} resident"
    state = ", ".join(
        f"{name} {'' if fold['is_complete'] else 'over '}{size(fold['bytes'])}" for name, fold in found["folds"].items()
    )
    return [
        ("ledger", [found["ledger"], f"{found['journal']} journal, shared in {found['instance_directory']}"]),
        ("position", [f"head {found['head_id']:,}, applied {applied}{lag}"]),
        ("folds", [folds or "none published"]),
        ("sizes", [ledger, disk, *([f"state: {state}"] if state else [])]),
    ]


def _daemon_rows(found: StatusNumbers, daemon: StatusNumbers) -> list[LabelledLines]:
    checked = f"up to event {daemon['verified_as_of']:,}" if daemon["verified_as_of"] else "nothing yet"
    verified = [
        f"{checked}; {daemon['verifications_passed']:,} passed, {daemon['verifications_failed']:,} failed; "
        f"{daemon['sealed_blocks']:,} sealed blocks, {daemon['history_breaks']:,} history breaks"
    ]
    if daemon["last_difference"]:
        verified.append(f"last difference: {daemon['last_difference']}")
    work = (
        f"pid {daemon['pid']}, up {duration(daemon['uptime_ms'])}; {daemon['events_folded']:,} events in "
        f"{daemon['commits']:,} commits, {daemon['commands']:,} commands, {daemon['rebuilds']:,} rebuilds"
    )
    rebuilding = [f"rebuilding {', '.join(daemon['rebuilding'])}"] if daemon["rebuilding"] else []
    replica = daemon.get("replica")
    return [
        ("daemon", [work, *rebuilding]),
        *([] if replica is None else [("source", [source_line(replica), *map(str, replica["lost_files"])])]),
        ("verified", verified),
        ("workers", [*_worker_lines(daemon["workers"], found["reads"]), *_process_lines(found["workers"])]),
        ("embeddings", _embedding_lines(daemon["embeddings"])),
        ("words", _word_lines(daemon.get("words"))),
        ("readers", _reader_lines(found["readers"])),
        ("quarantine", _quarantine_lines(daemon)),
    ]


def rate(hits: int, misses: int) -> str:
    """A share of hits as text."""
    return f"{hits / (hits + misses):.2%}" if hits + misses else "–"


def served(reads: StatusNumbers) -> str:
    """The share of the workers' reads that the shared state answered."""
    total = reads["hits"] + reads["caught_up"] + reads["replayed"]
    if not total:
        return "no worker has reported one yet"
    share = rate(total - reads["replayed"], reads["replayed"])
    return f"{share} of {total:,} served from shared memory, {reads['replayed']:,} replayed"


def _cut(text: str) -> Text:
    """One line, whatever the width."""
    return Text(printable(text), no_wrap=True, overflow="ellipsis")


def _in_short(daemon: StatusNumbers) -> str:
    workers, verified = daemon["workers"], daemon["verified_as_of"]
    return (
        f"pid {daemon['pid']}, up {duration(daemon['uptime_ms'])}, {size(daemon['sizes']['resident_bytes'])}; "
        f"{workers['live']:,} live worker{'' if workers['live'] == 1 else 's'}; "
        f"{f'verified up to event {verified:,}' if verified else 'nothing verified yet'}"
    )


def _worker_lines(workers: StatusNumbers, reads: StatusNumbers) -> list[str]:
    if not workers["seen"]:
        return ["none has reported yet"]
    parts = []
    for group in ("projection", "metrics") if workers["metrics_hits"] + workers["metrics_misses"] else ("projection",):
        hits, misses = workers[f"{group}_hits"], workers[f"{group}_misses"]
        parts.append(f"{group} {rate(hits, misses)} of {hits + misses:,}")
    hits, misses = workers["embedding_hits"], workers["embedding_misses"]
    recomputed = workers["projection_recomputations"] + workers["metrics_recomputations"]
    default, full = workers["appends_default"], workers["appends_full"]
    return [
        f"reads: {served(reads)}; {reads['hits']:,} hits, {reads['caught_up']:,} caught up",
        f"{workers['live']:,} live of {workers['seen']:,}; hit rates: {', '.join(parts)}, embeddings "
        f"{rate(hits, misses)} of {hits + misses:,}",
        f"{recomputed:,} recomputations, {workers['events_folded']:,} events folded",
        f"{default + full:,} events appended: {default:,} with durability default, {full:,} with full",
    ]


def _process_lines(workers: list[StatusNumbers]) -> list[str]:
    lines = [
        f"pid {one['pid']}  {served(one) if one['served_rate'] is not None else 'no reads'}; {one['hits']:,} hits, "
        f"{one['caught_up']:,} caught up  {one['command'] or ''}".rstrip()
        for one in workers[:_READERS_MAX]
    ]
    return [*lines, *([f"and {len(workers) - _READERS_MAX:,} more"] if len(workers) > _READERS_MAX else [])]


def _embedding_lines(embeddings: StatusNumbers) -> list[str]:
    lines = [
        f"{embeddings['text_vectors']:,} of {embeddings['text_vectors_max']:,} texts; leases: "
        f"{embeddings['leases_granted']:,} granted, {embeddings['leases_held']:,} held, {embeddings['lease_waits']:,} "
        f"waited for, {embeddings['leases_expired']:,} expired, {embeddings['late_puts']:,} late puts"
    ]
    for model, found in sorted(embeddings["tables"].items()):
        lines.append(
            f"{model}: {found['rows']:,} events of {found['dimension']} numbers, up to event {found['as_of']:,}"
        )
        if found["refused"]:
            lines.append(f"  {_skipped(found)}")
    served = [model for model, found in embeddings["tables"].items() if found["is_served"]]
    if len(served) == 1 and (advice := _advice_on(served[0])) is not None:
        lines.append(f"  {advice}")
    if embeddings["importing"] is not None:
        lines.append("importing {:,} of {:,} rows of event_embeddings".format(*embeddings["importing"]))
    return lines


def _skipped(table: StatusNumbers) -> str:
    return f"{table['refused']:,} skipped: the embedder refuses them; {table['last_refusal']}"


def _advice_on(model: str) -> str | None:
    from pmm_shm.vectors.registry import advice_on

    return advice_on(model)


def _word_lines(words: StatusNumbers | None) -> list[str]:
    """The index of words; a daemon of an earlier version has none."""
    if words is None or not words["kinds"]:
        return ["no index"]
    lines = [f"{words['rows']:,} events, up to event {words['as_of']:,}; {size(words['size_bytes'])}"]
    return [*lines, f"problem: {words['problem']}"] if words["problem"] else lines


def _reader_lines(readers: list[StatusNumbers]) -> list[str]:
    lines = []
    for reader in readers[:_READERS_MAX]:
        behind = reader["behind_txns"]
        doing = "idle" if behind is None else f"reading, {behind:,} commits behind"
        lines.append(f"pid {reader['pid']}  {doing}  {reader['command'] or ''}".rstrip())
    if len(readers) > _READERS_MAX:
        lines.append(f"and {len(readers) - _READERS_MAX:,} more")
    return lines or ["none"]


def _quarantine_lines(daemon: StatusNumbers) -> list[str]:
    if not daemon["quarantined"]:
        return ["empty"]
    newest = daemon["quarantine"][-_QUARANTINE_MAX:][::-1]
    return [
        f"{daemon['quarantined']:,} times an event could not be used; the newest:",
        *(f"event {event_id}, {fold}: {reason}" for event_id, fold, reason in newest),
    ]


def size(size_bytes: int | None) -> str:
    """Bytes for people."""
    if size_bytes is None:
        return "–"
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1_000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1_000
    return f"{value:,.1f} TB"


def duration(duration_ms: int) -> str:
    """A time for people."""
    seconds = duration_ms // 1_000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds} s"
