"""`pmm-shm doctor`"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pmm_shm_terminal import exits
from pmm_shm_terminal.exits import CommandFailed
from pmm_shm_terminal.options import (
    CONTEXT,
    Deadline,
    checked_name,
    follow_shape,
    json_option,
    ledger_argument,
    shape_option,
    timeout_option,
    with_shape,
)
from pmm_shm_terminal.output import print_json, printable, progress, show

if TYPE_CHECKING:
    from rich.text import Text

    from pmm_shm_cli.doctor import Finding

_ANSWERS_S = 2.0
_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


@click.command(context_settings=CONTEXT)
@ledger_argument
@timeout_option(_ANSWERS_S, "How long to wait for a busy ledger and for the daemon's answer.")
@shape_option
@json_option
def doctor(ledger: str | None, timeout: Deadline, as_json: bool) -> None:
    """Diagnose LEDGER, its daemon and this machine.

    Each finding comes with a remedy. Nothing is written. Without LEDGER and PMM_DB, only this machine is checked. Exit
    code 1 if a finding is an error; 0 if there are only notes and warnings.
    """
    from pmm_shm import flags
    from pmm_shm.instance.paths import real_path
    from pmm_shm_cli.doctor import diagnose, gather, look_at_machine

    named = flags.default_ledger() if ledger is None else checked_name(ledger)
    if named is not None:
        follow_shape(named)
    with progress("Looking", None):
        findings = diagnose(look_at_machine(None) if named is None else gather(named, timeout.timeout_s))
    findings = [dataclasses.replace(one, command=with_shape(one.command)) if one.command else one for one in findings]
    path = None if named is None else real_path(named)
    errors = [one for one in findings if one.severity == "error"]
    if as_json:
        shown = [dataclasses.asdict(one) for one in findings]
        print_json({"ok": not errors, "ledger": path, "findings": shown})
    else:
        # No line is wrapped: a command must stay one that can be copied.
        show(*(_lines(one) for one in findings), _summary(findings), wraps=False)
    if errors:
        first = f"{errors[0].check}: {errors[0].found}"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise CommandFailed(f"{path or 'this machine'}: {first}{more}", exits.FAILURE)


def _lines(finding: Finding) -> Text:
    from rich.text import Text

    text = Text()
    text.append(f"{finding.severity:8}", style=_STYLES[finding.severity])
    text.append(f"{finding.check}: ", style="bold")
    text.append(printable(finding.found))
    if finding.severity != "ok":
        text.append(f"\n        {printable(finding.meaning)}")
        text.append(f"\n        {printable(finding.remedy)}{':' if finding.command else ''}")
        if finding.command:
            text.append(f"\n            {printable(finding.command)}", style="bold")
    return text


def _summary(findings: Sequence[Finding]) -> Text:
    from rich.text import Text

    from pmm_shm_cli.doctor.finding import SEVERITIES

    counts = [(name, sum(one.severity == name for one in findings)) for name in reversed(SEVERITIES)]
    words = [f"{count} {name}{'s' if name != 'ok' and count != 1 else ''}" for name, count in counts if count]
    return Text(", ".join(words), style="bold")
