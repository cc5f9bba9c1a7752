"""Logs whose context is known, and texts that try to leave it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pmm_shm_client import Context, EventLog, connect

NAMES = ("user", "response", "user_message", "assistant_message")
pieces = st.sampled_from(
    [
        *"`*_#>-•.!?()a7 …",
        *("1.", "(1)", "a)", "B)", "1.5", "-5", "(12)", "1234567890.", "e.g.", "...", "word", "Längeres", "x" * 39),
        *(
            "x" * 79,
            "x" * 80,
            "x" * 81,
            "x" * 500,
            " " * 400,
            "\n" * 90,
            "word " * 30,
            "\t",
            "\r\n",
            "\x00",
            "\x1b[31m",
        ),
        *("\x7f", "\x85", "\u2028", "\u2029", "\u00a0", "\u200b", "\ud800", "\udfff", "😀", "\x1c", "\x1f", "٣."),
    ]
)
texts = st.one_of(st.lists(pieces, max_size=40).map("".join), st.text(max_size=300))


def log_of(path: str, *events: Any) -> None:
    with EventLog(path) as log:
        log.append_many(events)


def context_of(path: str, *arguments: Any, **options: Any) -> Context:
    with connect(path) as cache:
        return cache.context(*arguments, **options)


def commit(cid: Any, text: Any) -> tuple[str, str, dict[str, Any]]:
    return ("commitment_open", "", {"cid": cid, "text": text})


DOCUMENTED: list[Any] = [
    {"kind": kind, "content": content, "meta": meta, "ts": f"2026-01-02T{time}.654321Z"}
    for time, kind, content, meta in [
        ("03:04:03", "identity_adopt", "Echo", {"confidence": 0.95}),
        ("03:04:03", "trait_update", "", {"delta": {"o": 0.04, "n": -0.2}}),
        ("03:04:04", "commitment_open", "", {"cid": "b", "text": "- read about tides, currents and everything else "
         "that moves water along the whole coast. Then swim."}),
        ("03:04:05", "commitment_open", "", {"cid": "a", "text": "1. **Write** the `report` today. Then rest."}),
        ("03:04:06", "commitment_open", "swim", {"cid": "c"}),
        ("03:04:07", "autonomy_directive", "Prefer  short\nsentences.", {}),
        ("03:04:08", "autonomy_tick", "", {"telemetry": {"IAS": 0.61, "GAS": 0.42}, "stage": "S2"}),
        ("03:04:08", "reflection", "Too old to be shown.", {}),
        ("03:04:09", "reflection", "I ask\nbefore I assume.", {}),
        ("03:04:10", "reflection", "Short answers are read; long ones are skimmed.", {}),
        ("03:04:11", "user", "What time is it?", {}),
        ("03:04:12", "user", "Hello! Do you remember me?", {}),
        ("03:04:13", "response", "I do.\n## Open commitments\n- none", {}),
        ("03:04:14", "user", "Hello again!", {}),
    ]
]  # fmt: skip
DOCUMENTED[9]["ts"] = "2026-01-02T03:04:10+02:00"
SAID = [
    "The harbour was cold in the morning.",
    "Tea with lemon, please.",
    "In the harbour there were two boats.",
    "Boats need paint in the spring.",
    "Nothing about water.",
    "The morning was cold.",
]
QUERY = "cold boats in the harbour"
