"""A package `pmm` of a few lines that has the names that are replaced, and replacements that say that they are.

For what the launcher does with names, whatever the replacements answer.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pmm_shm_pmm import installing

MODULES: Mapping[str, str] = {
    "config": """
import os
USE_PROJECTION_CACHE = os.environ.get("PMM_USE_PROJECTION_CACHE") == "true"
""",
    "storage.eventlog": '''
class EventLog:
    """PMM's log."""
    MARK = "a class attribute"

    def __init__(self, path: str = ":memory:") -> None:
        self.path = path
        self.events: list = []

    def append(self, kind: str, content: str, meta: dict | None = None) -> int:
        self.events.append({"id": len(self.events) + 1, "kind": kind, "content": content, "meta": meta or {}})
        return len(self.events)

    def read_all(self) -> list:
        return self.events

    def verify_chain(self) -> bool:
        return True


def get_default_eventlog(path: str = ":memory:") -> EventLog:
    return EventLog(path)
''',
    "storage.projection": '''
def build_self_model(events, *, strict=False, max_trait_delta=0.05, on_warn=None):
    """PMM's self-model."""
    return {"by": "pmm", "events": len(events)}


def build_self_model_cached(eventlog, *, strict=False, max_trait_delta=0.05, on_warn=None):
    from pmm.config import USE_PROJECTION_CACHE

    return {"cached": USE_PROJECTION_CACHE, **build_self_model(eventlog.read_all())}


def build_identity(events):
    return {"by": "pmm"}


def build_directives(events):
    return []


def build_directives_active_set(events):
    return []
''',
    "runtime.metrics": """
def compute_ias_gas(events):
    from pmm.storage.projection import build_self_model

    return (0.0, build_self_model(events)["by"])


def get_or_compute_ias_gas(eventlog):
    return compute_ias_gas(eventlog.read_all())
""",
    "runtime.stage_tracker": """
class StageTracker:
    @staticmethod
    def infer_stage(events):
        return ("S0", {"by": "pmm"})
""",
    "commitments": "from .tracker import CommitmentTracker\n",
    "commitments.tracker": """
from pmm.storage.eventlog import EventLog
from pmm.storage.projection import build_self_model


class CommitmentTracker:
    def __init__(self, eventlog: EventLog) -> None:
        self.eventlog = eventlog

    def find_evidence(self, events, open_commitments, recent_window=20):
        return ["pmm", build_self_model(events)["by"]]

    def process_evidence(self, text):
        return ["pmm"]
""",
    "runtime.recall": """
def suggest_recall(events, current_text, *, max_items=3, semantic_seeds=None):
    return ["pmm"]
""",
    "runtime.loop": """
from pmm.storage.eventlog import EventLog
from pmm.storage.projection import build_identity, build_self_model
from pmm.runtime.metrics import compute_ias_gas
from pmm.commitments import CommitmentTracker
from pmm.runtime.recall import suggest_recall
from pmm.runtime.stage_tracker import StageTracker


class Runtime:
    def __init__(self, eventlog: EventLog) -> None:
        self.eventlog = eventlog
        self.tracker = CommitmentTracker(eventlog)

    def answers(self):
        events = self.eventlog.read_all()
        return {
            "log": type(self.eventlog).__name__ + getattr(self.eventlog, "by", " of pmm"),
            "projection": build_self_model(events)["by"],
            "identity": build_identity(events)["by"],
            "metrics": compute_ias_gas(events)[1],
            "stage": StageTracker.infer_stage(events)[1]["by"],
            "tracker": self.tracker.find_evidence(events, [])[0],
            "recall": suggest_recall(events, "")[0],
        }
""",
    "cli.chat": """
import json, os, sys
from pmm.runtime.loop import EventLog, Runtime


def main():
    print(json.dumps({"db": os.environ.get("PMM_DB"), "argv": sys.argv[1:], **Runtime(EventLog()).answers()}))
    return 7


if __name__ == "__main__":
    sys.exit(main())
""",
    "api.server": """
import json, os
from pmm.storage.eventlog import EventLog
from pmm.runtime.loop import Runtime


def answer():
    return json.dumps({"pid": os.getpid(), "parent": os.getppid(), **Runtime(EventLog()).answers()}).encode()


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer()})


def wsgi(environ, start_response):
    start_response("200 OK", [])
    return [answer()]
""",
}
BY_PMM = {
    "log": "EventLog of pmm",
    **dict.fromkeys(("projection", "identity", "metrics", "stage", "tracker", "recall"), "pmm"),
}
REPLACED = {"log": "EventLog of ours", **dict.fromkeys(tuple(BY_PMM)[1:], "ours")}

PARTS = '''
"""Stands in for the modules that replace names, by `sys.modules`: only the launcher is tried."""
import sys
from types import ModuleType

from pmm_shm_pmm.fallback import Fallback


def projection(events, *, strict=False, max_trait_delta=0.05, on_warn=None):
    if events is None:
        raise Fallback("no events")
    return {"by": "ours"}


def make_log(original):
    class Log(original):
        by = " of ours"

    return Log


FUNCTIONS = {
    "answers": {
        "build_self_model": projection,
        "build_identity": lambda events: {"by": "ours"},
        "compute_ias_gas": lambda events: (0.0, "ours"),
        "StageTracker.infer_stage": lambda events: ("S0", {"by": "ours"}),
    },
    "evidence": {
        "CommitmentTracker.find_evidence": lambda self, events, open_commitments, recent_window=20: ["ours"],
    },
    "recall": {"suggest_recall": lambda events, current_text, *, max_items=3, semantic_seeds=None: ["ours"]},
    "log": {},
}


def make(home):
    def install(patcher, module):
        for name, function in FUNCTIONS[home].items():
            if hasattr(module, name.partition(".")[0]):
                patcher.replace(module, name, function)
        if home == "log":
            patcher.replace_class(module, "EventLog", make_log)

    made = ModuleType(f"pmm_shm_pmm.{home}")
    made.install = install
    return made


for home in ("answers", "evidence", "recall", "log", "chain", "tracker", "runtime", "flags"):
    sys.modules[f"pmm_shm_pmm.{home}"] = (
        make(home) if home in FUNCTIONS else ModuleType(f"pmm_shm_pmm.{home}")
    )
    if home not in FUNCTIONS:
        sys.modules[f"pmm_shm_pmm.{home}"].install = lambda patcher, module: None
'''
"""Source of replacements that answer "ours". A process runs it before PMM is imported."""


def write(folder: Path, changes: Mapping[str, str] | None = None) -> Path:
    """Make the package in a folder, which belongs on Python's path."""
    for name, source in {**MODULES, **(changes or {})}.items():
        path = folder / "pmm" / Path(*name.split("."))
        for parent in (folder / "pmm", path.parent):
            parent.mkdir(parents=True, exist_ok=True)
            (parent / "__init__.py").touch()
        is_package = any(other.startswith(f"{name}.") for other in MODULES)
        target = path / "__init__.py" if is_package else path.with_suffix(".py")
        target.parent.mkdir(exist_ok=True)
        target.write_text(source, encoding="utf-8")
    return folder


def known_sources(folder: Path) -> dict[str, str]:
    """The table in which the functions of tier 2 of the package in `folder` are known."""
    with on_path(folder):
        table = {}
        for module_name, name in (
            ("pmm.commitments.tracker", "CommitmentTracker.find_evidence"),
            ("pmm.runtime.recall", "suggest_recall"),
        ):
            value = importlib.import_module(module_name)
            for part in name.split("."):
                value = getattr(value, part)
            table[f"{module_name}:{name}"] = hashlib.sha256(inspect.getsource(value).encode()).hexdigest()
        return table


@contextmanager
def on_path(folder: Path) -> Iterator[None]:
    """Import from `folder` for a while; afterwards nothing is replaced, and `pmm` was never imported."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        installing.uninstall()
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name == "pmm" or name.startswith("pmm.")]:
            del sys.modules[name]


@contextmanager
def parts() -> Iterator[None]:
    """The replacements of `PARTS` in this process, in place of the real ones; further ones last as long."""
    before = dict(sys.modules)
    exec(compile(PARTS, "parts", "exec"), {"__name__": "parts"})
    try:
        yield
    finally:
        for name, module in list(sys.modules.items()):
            # None says that there is no such module; modules that tests make have no specification.
            is_made = module is None or getattr(module, "__spec__", "") is None
            if is_made and module is not before.get(name, before):
                del sys.modules[name]
                if name in before:
                    sys.modules[name] = before[name]
