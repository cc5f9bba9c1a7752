"""How `pmm-shm demo` looks: live on a terminal, as lines elsewhere."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from pmm_shm_cli.demo_run import DemoOutcome, Picture
from pmm_shm_terminal.output import pairs, table, titled

_STATES = {"running": "bold green", "killed": "bold red", "starting": "bold yellow"}


def status_line(picture: Picture) -> str:
    """The picture as one line of text."""
    return (
        f"{picture.total('appends'):,} appends, {picture.total('reads'):,} reads, hit rate {picture.hit_rate:.2%}, "
        f"daemon {picture.daemon_state}, lag {picture.lag:,}"
    )


def live_view(picture: Picture) -> RenderableType:
    """The picture on a terminal; its height changes only with new lines of the timeline."""
    return Group(_header(picture), _workers(picture), *_timeline(picture))


def _header(picture: Picture) -> Text:
    line = Text.assemble(("pmm-shm demo", "bold"), f"  {picture.elapsed_s:4.1f} s   daemon ")
    line.append(picture.daemon_state, _STATES.get(picture.daemon_state, ""))
    line.append(f"   published {picture.published:,}   ")
    line.append(f"lag {picture.lag:,}", "yellow" if picture.lag > 100 else "")
    return line


def _workers(picture: Picture) -> RenderableType:
    columns = ("worker", "appends", "reads", "as of", "p50 µs", "p99 µs", "hit rate")
    made = table(*columns)
    for column in made.columns:
        column.justify = "right"
        column.min_width = 8
    for number, worker in enumerate(picture.workers):
        report = worker.report
        rate = f"{report['hits'] / report['reads']:.2%}" if report["reads"] else "–"
        made.add_row(
            str(number),
            f"{report['appends']:,}",
            f"{report['reads']:,}",
            f"{report['as_of']:,}",
            f"{report['p50_us']:.2f}",
            f"{report['p99_us']:.2f}",
            rate,
            style="red" if report["violations"] else "",
        )
    return made


def _timeline(picture: Picture) -> list[Text]:
    return [
        Text.assemble((f"{at_s:5.1f} s  ", "dim"), (text, "red" if "killed" in text else ""))
        for at_s, text in picture.timeline
    ]


def verdict(outcome: DemoOutcome) -> list[RenderableType]:
    """The end of the demo, for people."""
    made = table("", "promise", "found")
    for check in outcome.checks:
        mark = Text("kept", "green") if check.ok else Text("BROKEN", "bold red")
        made.add_row(mark, Text(check.name), Text(check.detail))
    numbers = outcome.numbers
    figures = {
        "reads": f"{numbers['reads']:,} ({numbers['reads_per_second']:,} per second)",
        "appends": f"{numbers['appends']:,} ({numbers['appends_per_second']:,} per second)",
        "read, p50 and p99": f"{numbers['read_p50_us']:.2f} µs and {numbers['read_p99_us']:.2f} µs",
        "hit rate": f"{numbers['hit_rate']:.3%}",
    }
    last = "Every answer equals a full replay." if outcome.ok else "A promise was broken."
    return [titled("promises", made), pairs("numbers", figures), Text(last, "bold green" if outcome.ok else "bold red")]
