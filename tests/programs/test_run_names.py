"""Names in PMM are replaced whenever and however its modules are imported, and tests can still set them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import io
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pmm_shm_pmm import patching
from pmm_shm_pmm.fallback import Fallback
from pmm_shm_pmm.installing import TooLateError, install, patch, uninstall
from pmm_shm_pmm.known_sources import has_source
from pmm_shm_pmm.settings import RunSettings
from tests.support import small_pmm
from tests.support.small_pmm import BY_PMM, REPLACED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_pmm.write(tmp_path)


@pytest.fixture
def known(folder: Path) -> dict[str, str]:
    return small_pmm.known_sources(folder)


@pytest.fixture(autouse=True)
def _small_pmm(folder: Path, known: dict[str, str]) -> Iterator[None]:
    with small_pmm.parts(), small_pmm.on_path(folder):
        yield


def answers(module: str = "pmm.runtime.loop") -> Any:
    loop: Any = importlib.import_module(module)
    return loop.Runtime(loop.EventLog()).answers()


def module(name: str) -> Any:
    return importlib.import_module(name)


# The order of imports.


def test_before_any_import(known: dict[str, str]) -> None:
    install(known=known)
    assert answers() == REPLACED


@pytest.mark.parametrize(
    "first", ["pmm.storage.eventlog", "pmm.storage.projection", "pmm.commitments", "pmm.runtime.loop"]
)
def test_after_some_imports(known: dict[str, str], first: str) -> None:
    module(first)
    install(known=known)
    assert answers() == REPLACED


def test_twice(known: dict[str, str]) -> None:
    patcher = install(known=known)
    loop = module("pmm.runtime.loop")
    assert install(known=known) is patcher
    before = loop.build_self_model
    assert install() is patcher
    assert loop.build_self_model is before
    assert answers() == REPLACED
    assert sum(type(one).__module__ == "pmm_shm_pmm.hooks" for one in sys.meta_path) == 1


@pytest.mark.parametrize("is_loaded", [False, True])
def test_from_two_threads(known: dict[str, str], is_loaded: bool) -> None:
    if is_loaded:
        module("pmm.runtime.loop")
    found: list[Any] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        install(known=known)
        found.append(answers())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [REPLACED] * 4
    assert module("pmm.storage.projection").build_self_model.__wrapped__.__name__ == "build_self_model"
    assert not hasattr(module("pmm.storage.projection").build_self_model.__wrapped__, "__wrapped__")


def test_while_another_thread_imports(folder: Path, known: dict[str, str]) -> None:
    gate = threading.Event()
    inside = threading.Event()
    sys.modules["gate"] = ModuleType("gate")
    vars(sys.modules["gate"]).update(gate=gate, inside=inside)
    source = small_pmm.MODULES["storage.projection"]
    small_pmm.write(folder, {"storage.projection": f"import gate\ngate.inside.set(); gate.gate.wait(10)\n{source}"})
    importlib.invalidate_caches()
    importing = threading.Thread(target=module, args=("pmm.storage.projection",))
    installing = threading.Thread(target=lambda: install(known=known))
    try:
        importing.start()
        assert inside.wait(10)
        installing.start()
        gate.set()
        importing.join()
        installing.join()
    finally:
        del sys.modules["gate"]
    assert answers() == REPLACED


def test_within_a_module_that_is_being_imported(folder: Path) -> None:
    small_pmm.write(folder, {"storage.projection": "import pmm_shm_pmm.auto\n"})
    sys.modules.pop("pmm_shm_pmm.auto", None)
    with pytest.raises(TooLateError, match=r"pmm\.storage\.projection is being imported"):
        module("pmm.storage.projection")


def test_a_submodule_through_its_package(known: dict[str, str]) -> None:
    install(known=known)
    package = module("pmm.commitments")
    assert package.CommitmentTracker is package.tracker.CommitmentTracker
    assert package.CommitmentTracker(None).find_evidence([], []) == ["ours"]


@pytest.mark.parametrize("name", ["pmm.config", "pmm.storage.projection", "pmm.storage.eventlog", "pmm.runtime.loop"])
def test_reload(known: dict[str, str], name: str) -> None:
    patcher = install(known=known)
    assert patcher is not None
    loop = module("pmm.runtime.loop")
    loaded = module(name)
    originals = dict(vars(loaded))
    assert importlib.reload(loaded) is loaded
    assert answers() == REPLACED
    if name == "pmm.storage.projection":
        assert loaded.build_self_model is not originals["build_self_model"]
        original = patcher.original(name, "build_self_model")
        assert loaded.build_self_model.__wrapped__ is original
        assert original is not originals["build_self_model"].__wrapped__
        assert loop.build_self_model([])["by"] == "ours"
    if name == "pmm.storage.eventlog":
        assert loaded.EventLog().by == " of ours"


def test_a_reload_of_a_switch_counts(known: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    install(known=known)
    projection, log = module("pmm.storage.projection"), module("pmm.storage.eventlog").EventLog()
    assert projection.build_self_model_cached(log) == {"cached": False, "by": "ours"}
    monkeypatch.setenv("PMM_USE_PROJECTION_CACHE", "true")
    importlib.reload(module("pmm.config"))
    assert projection.build_self_model_cached(log) == {"cached": True, "by": "ours"}


def test_a_module_that_fails_and_is_imported_again(folder: Path, known: dict[str, str]) -> None:
    source = small_pmm.MODULES["storage.projection"]
    small_pmm.write(folder, {"storage.projection": f"{source}\nraise KeyError('of the module')\n"})
    install(known=known)
    with pytest.raises(KeyError, match="of the module") as caught:
        module("pmm.runtime.loop")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "pmm.storage.projection" not in sys.modules
    small_pmm.write(folder, {"storage.projection": f"{source}\n# Its size differs, for the cache of bytecode.\n"})
    importlib.invalidate_caches()
    assert answers() == REPLACED


def test_modules_that_import_each_other_in_a_circle(folder: Path, known: dict[str, str]) -> None:
    source = small_pmm.MODULES["storage.projection"]
    other = "from pmm.storage.projection import build_self_model\ndef other(): return build_self_model([])['by']\n"
    small_pmm.write(
        folder, {"storage.projection": f"{source}\nfrom pmm.storage import other\n", "storage.other": other}
    )
    install(known=known)
    module("pmm.storage.projection")
    assert module("pmm.storage.other").other() == "ours"


def test_a_package_without_such_a_module_and_modules_of_others(known: dict[str, str]) -> None:
    install(known=known)
    with pytest.raises(ModuleNotFoundError, match=r"pmm\.runtime\.memegraph") as caught:
        module("pmm.runtime.memegraph")
    assert caught.value.name == "pmm.runtime.memegraph"
    assert importlib.util.find_spec("pmm.runtime.memegraph") is None
    assert module("pmm.config").USE_PROJECTION_CACHE is False


def test_a_module_looks_as_it_would_without_the_hook(known: dict[str, str]) -> None:
    install(known=known)
    loaded = module("pmm.storage.projection")
    plain = module("pmm.config")
    assert type(loaded.__loader__) is type(plain.__loader__)
    assert loaded.__spec__.loader is loaded.__loader__
    assert "def build_identity" in inspect.getsource(loaded)
    spec = importlib.util.find_spec("pmm.runtime.recall")
    assert spec is not None
    assert spec.loader is not None
    assert "suggest_recall" in spec.loader.get_source("pmm.runtime.recall")  # type: ignore[attr-defined]


# PMM was in use before.


def test_all_references_are_replaced(known: dict[str, str]) -> None:
    loop = module("pmm.runtime.loop")
    elsewhere = ModuleType("elsewhere")
    elsewhere.fold, elsewhere.Log = loop.build_self_model, loop.EventLog  # type: ignore[attr-defined]

    class Before(loop.EventLog):  # type: ignore[misc, name-defined]
        def append(self, kind: str, content: str, meta: Any = None) -> int:
            return int(super().append(kind, content, meta)) + 100

    log = loop.EventLog()
    sys.modules["elsewhere"] = elsewhere
    try:
        install(known=known)
        assert elsewhere.fold([])["by"] == "ours"
        assert elsewhere.Log is loop.EventLog
        assert Before().by == " of ours"
        assert Before().append("k", "c") == 101
        assert isinstance(log, loop.EventLog.__mro__[1])
        assert not isinstance(log, loop.EventLog)
        uninstall()
        assert elsewhere.fold([])["by"] == "pmm"
        assert elsewhere.Log is loop.EventLog is Before.__mro__[1]
        assert answers() == BY_PMM
    finally:
        del sys.modules["elsewhere"]


@pytest.mark.parametrize("keep", [lambda fold: {"fold": fold}, lambda fold: [fold], lambda fold: (1, fold)])
def test_a_reference_that_cannot_be_replaced_is_a_clear_error_and_nothing_is(keep: Any, known: dict[str, str]) -> None:
    loop = module("pmm.runtime.loop")
    kept = keep(loop.build_self_model)
    with pytest.raises(TooLateError, match=r"pmm\.storage\.projection\.build_self_model is also in a .*before PMM"):
        install(known=known)
    assert answers() == BY_PMM
    assert not any(type(one).__module__ == "pmm_shm_pmm.hooks" for one in sys.meta_path)
    with pytest.raises(RuntimeError, match="nothing is replaced"):
        patching.current()
    del kept
    install(known=known)
    assert answers() == REPLACED


def test_an_object_or_a_default_that_keeps_a_function(known: dict[str, str]) -> None:
    loop = module("pmm.runtime.loop")

    class Holder:
        def __init__(self) -> None:
            self.fold = loop.build_self_model

    for kept in (Holder(), lambda fold=loop.build_self_model: fold, loop.StageTracker().infer_stage):
        if kept is not loop.StageTracker.infer_stage:
            with pytest.raises(TooLateError, match="is also in a"):
                install(known=known)
    del kept
    assert answers() == BY_PMM


def test_a_class_that_is_kept_and_one_that_is_only_named(known: dict[str, str]) -> None:
    loop = module("pmm.runtime.loop")
    kept = {"log": loop.EventLog}
    with pytest.raises(TooLateError, match=r"pmm\.storage\.eventlog\.EventLog is also in a dict"):
        install(known=known)
    del kept
    # Annotations are evaluated here: they refer to the class, and nobody calls it through them.
    namespace: dict[str, Any] = {"Log": loop.EventLog}
    source = "def annotated(log: Log, other: 'int') -> Log: ...\nclass Annotated:\n    log: Log"
    exec(compile(source, "annotated", "exec", dont_inherit=True), namespace, namespace)
    namespace["annotated"].__annotations__  # noqa: B018
    del namespace["Log"]
    install(known=known)
    assert answers() == REPLACED


# Names.


def test_from_imports_before_and_after_and_within_a_function(known: dict[str, str]) -> None:
    code = (
        "from pmm.storage.projection import build_self_model\nimport pmm.storage.projection as module\n"
        "def inner():\n    from pmm.storage.projection import build_self_model as one\n    return one([])\n"
    )
    before: dict[str, Any] = {"__name__": "before"}
    holder = ModuleType("before")
    exec(code, vars(holder), vars(holder))
    sys.modules["before"] = holder
    try:
        install(known=known)
        after: dict[str, Any] = {}
        exec(code, after, after)
        for names in (vars(holder), after):
            assert names["build_self_model"]([])["by"] == "ours"
            assert names["module"].build_self_model([])["by"] == "ours"
            assert names["inner"]()["by"] == "ours"
    finally:
        del sys.modules["before"], before


@pytest.mark.parametrize("where", ["pmm.runtime.loop", "pmm.storage.projection"])
def test_a_test_sets_a_fold_and_puts_it_back(known: dict[str, str], where: str) -> None:
    install(known=known)
    loop = module("pmm.runtime.loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{where}.build_self_model", lambda events, **_: {"by": "a test"})
        expected = {"projection"} if where == "pmm.runtime.loop" else {"metrics"}
        assert {name for name, by in answers().items() if by == "a test"} <= expected | {"projection"}
        assert module(where).build_self_model([])["by"] == "a test"
    assert module(where).build_self_model([])["by"] == "ours"
    assert loop.Runtime(loop.EventLog()).answers() == REPLACED


def test_a_test_sets_a_static_method_and_puts_it_back(known: dict[str, str]) -> None:
    install(known=known)
    tracker = module("pmm.runtime.stage_tracker").StageTracker
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "infer_stage", staticmethod(lambda events: ("S9", {"by": "a test"})))
        assert tracker.infer_stage([])[0] == tracker().infer_stage([])[0] == "S9"
        assert answers()["stage"] == "a test"
    assert tracker.infer_stage([]) == tracker().infer_stage([]) == ("S0", {"by": "ours"})
    assert isinstance(vars(tracker)["infer_stage"], staticmethod)


def test_what_a_test_has_set_before_stays(known: dict[str, str]) -> None:
    projection = module("pmm.storage.projection")
    projection.build_self_model = lambda events, **_: {"by": "a test"}
    patcher = install(known=known)
    assert patcher is not None
    assert projection.build_self_model([])["by"] == "a test"
    assert patcher.kept["pmm.storage.projection:build_self_model"] == "something else is in its place"
    assert projection.build_identity([])["by"] == "ours"


def test_a_log_of_a_test_in_place_of_pmms(known: dict[str, str]) -> None:
    install(known=known)
    loop = module("pmm.runtime.loop")

    class Memory:
        def append(self, kind: str, content: str, meta: Any = None) -> int:
            return 1

        def read_all(self) -> list[Any]:
            return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "EventLog", Memory)
        assert loop.Runtime(loop.EventLog()).answers()["log"] == "Memory of pmm"
    assert answers() == REPLACED


def test_signature_pickle_and_help(known: dict[str, str]) -> None:
    names = ["build_self_model", "build_identity"]
    projection, tracker = module("pmm.storage.projection"), module("pmm.commitments").CommitmentTracker
    before = [str(inspect.signature(getattr(projection, name))) for name in names]
    log_before = str(inspect.signature(module("pmm.storage.eventlog").EventLog))
    helped_before = help_of(projection.build_self_model)
    install(known=known)
    assert [str(inspect.signature(getattr(projection, name))) for name in names] == before
    assert str(inspect.signature(tracker.find_evidence)) == "(self, events, open_commitments, recent_window=20)"
    assert (tracker.find_evidence.__module__, tracker.find_evidence.__qualname__) == (
        "pmm.commitments.tracker",
        "CommitmentTracker.find_evidence",
    )
    for value in (projection.build_self_model, tracker, module("pmm.storage.eventlog").EventLog, tracker.find_evidence):
        assert pickle.loads(pickle.dumps(value)) is value
    assert help_of(projection.build_self_model) == helped_before
    log = module("pmm.storage.eventlog").EventLog
    assert (log.__module__, log.__qualname__, log.__doc__) == ("pmm.storage.eventlog", "EventLog", "PMM's log.")
    assert str(inspect.signature(log)) == log_before
    assert "PMM's log." in help_of(log)


def help_of(value: Any) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        help(value)
    return printed.getvalue()


def test_classes(known: dict[str, str]) -> None:
    patcher = install(known=known)
    assert patcher is not None
    eventlog = module("pmm.storage.eventlog")
    original = patcher.original("pmm.storage.eventlog", "EventLog")
    assert issubclass(eventlog.EventLog, original)
    assert eventlog.EventLog is not original
    assert eventlog.EventLog.MARK == "a class attribute"
    assert isinstance(eventlog.get_default_eventlog(), eventlog.EventLog)

    class After(eventlog.EventLog):  # type: ignore[misc, name-defined]
        def read_all(self) -> list[Any]:
            return [*super().read_all(), "more"]

    log = After()
    assert eventlog.EventLog.append(log, "k", "c") == 1
    assert log.read_all()[-1] == "more"
    assert log.by == " of ours"


# Fallback, parts, tiers.


def test_fallbacks_are_counted_by_reason(known: dict[str, str]) -> None:
    patcher = install(known=known)
    assert patcher is not None
    projection = module("pmm.storage.projection")
    projection.build_self_model([1])
    with pytest.raises(TypeError):
        projection.build_self_model(None)
    counts = patcher.counts["pmm.storage.projection:build_self_model"]
    assert (counts.answered, dict(counts.fallbacks)) == (1, {"no events": 1})


def test_strict_raises_in_place_of_falling_back(known: dict[str, str]) -> None:
    install(known=known, strict=True)
    with pytest.raises(Fallback, match="no events"):
        module("pmm.storage.projection").build_self_model(None)


def test_off_replaces_nothing(known: dict[str, str]) -> None:
    finders = list(sys.meta_path)
    assert install(RunSettings(is_on=False), known) is None
    assert sys.meta_path == finders
    assert answers() == BY_PMM


def test_only_some_parts(known: dict[str, str]) -> None:
    patcher = install(RunSettings(parts=frozenset({"log", "stage"})), known)
    assert patcher is not None
    assert answers() == {**BY_PMM, "log": REPLACED["log"], "stage": "ours"}
    assert patcher.kept == {}


def test_a_part_that_is_off_is_not_even_imported(known: dict[str, str]) -> None:
    del sys.modules["pmm_shm_pmm.evidence"]
    sys.modules["pmm_shm_pmm.evidence"] = None  # type: ignore[assignment]
    patcher = install(RunSettings(parts=frozenset({"log"})), known)
    assert patcher is not None
    answers()
    assert not any("Error" in reason for reason in patcher.kept.values())


@pytest.mark.parametrize("name", ["CommitmentTracker.find_evidence", "suggest_recall"])
def test_a_source_that_is_not_known_stays(folder: Path, known: dict[str, str], name: str) -> None:
    where, key = ("commitments.tracker", "tracker") if "." in name else ("runtime.recall", "recall")
    source = small_pmm.MODULES[where].replace('["pmm"', '[*("pmm",)')
    assert source != small_pmm.MODULES[where]
    small_pmm.write(folder, {where: source})
    importlib.invalidate_caches()
    patcher = install(known=known)
    assert patcher is not None
    assert answers() == {**REPLACED, key: "pmm"}
    assert patcher.kept[f"pmm.{where}:{name}"] == "unknown source"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("def f(a):\n    return a\n", "f"),
        ("def f(a): return a", "f"),
        ("@(lambda f: f)\n# A comment.\ndef f(\n    a,\n):\n\n    # One.\n    return a\n\n\nX = 1\n", "f"),
        ("import functools\n@functools.lru_cache(\n    5\n)\ndef f(a):\n    return a\n# After.\n", "f"),
        ("@(lambda number: lambda f: f)(\n    5\n)\ndef f(a):\n    return a\n# After.\n", "f"),
        ('def f(a):\n    """\nText at the margin.\n    """\n    return a\n', "f"),
        ("class C:\n    X = 1\n\n    def f(self):\n        return 1\n\n\nclass D(C):\n    'Ü'\n    Y = 1\n", "D"),
        ("class C:\n    @staticmethod\n    def f(self):\n        return 1\n    X = 1\n", "C.f"),
        ("# -*- coding: latin-1 -*-\nclass C:\n    X = '\u00fc'\n", "C"),
        ("if True:\n    class C:\n        X = 1\n", "C"),
        ("class C:\n    X = 1\nclass C:\n    X = 2\n", "C"),
    ],
)
def test_a_source_is_known_as_inspect_has_it(folder: Path, source: str, name: str) -> None:
    encoding = "latin-1" if "latin-1" in source else "utf-8"
    (folder / "pmm" / "some.py").write_text(source, encoding=encoding)
    importlib.invalidate_caches()
    value: Any = module("pmm.some")
    for part in name.split("."):
        value = getattr(value, part)
    text = inspect.getsource(value)
    assert has_source(value, hashlib.sha256(text.encode()).hexdigest())
    for other in (text + " ", text[:-1], text + "#"):
        assert not has_source(value, hashlib.sha256(other.encode()).hexdigest())


def test_sources_of_what_has_none() -> None:
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("def f(): ...\nclass C: ...", namespace)
    for value in (namespace["f"], namespace["C"], len, 5, None):
        assert not has_source(value, hashlib.sha256(b"-").hexdigest())


def test_a_source_that_changed_on_disk_is_read_again(folder: Path) -> None:
    path = folder / "pmm" / "some.py"
    path.write_text("def f():\n    return 1\n", encoding="utf-8")
    importlib.invalidate_caches()
    loaded = module("pmm.some")
    first = sha256_of(loaded.f)
    assert has_source(loaded.f, first)
    path.write_text("def f():\n    return 200\n", encoding="utf-8")
    importlib.reload(loaded)
    assert not has_source(loaded.f, first)


def test_no_source_at_all_stays(folder: Path, known: dict[str, str]) -> None:
    import compileall

    path = folder / "pmm" / "runtime" / "recall.py"
    assert compileall.compile_file(path, legacy=True, quiet=1)
    path.unlink()
    importlib.invalidate_caches()
    patcher = install(known=known)
    assert patcher is not None
    assert answers() == {**REPLACED, "recall": "pmm"}
    assert patcher.kept["pmm.runtime.recall:suggest_recall"] == "unknown source"


def test_a_helper_that_the_replacement_relies_on_must_be_known_too(folder: Path, known: dict[str, str]) -> None:
    name = "CommitmentRestructurer.consolidate_similar"
    source = """
class CommitmentRestructurer:
    def consolidate_similar(self, threshold=0.9):
        return ["pmm"]
    def _get_open_commitments(self):
        return []
    def _text_similarity(self, a, b):
        return 0.0
"""
    small_pmm.write(folder, {"commitments.restructuring": source})
    made = ModuleType("pmm_shm_pmm.restructuring")
    made.install = lambda patcher, loaded: patcher.replace(loaded, name, lambda self, threshold=0.9: ["ours"])  # type: ignore[attr-defined]
    sys.modules["pmm_shm_pmm.restructuring"] = made
    loaded = module("pmm.commitments.restructuring")
    kind = loaded.CommitmentRestructurer
    for function in (kind.consolidate_similar, kind._get_open_commitments, kind._text_similarity):
        label = f"pmm.commitments.restructuring:{function.__qualname__}"
        patcher = install(known=known)
        assert patcher is not None
        assert kind().consolidate_similar() == ["pmm"]
        uninstall()
        known[label] = sha256_of(function)
    install(known=known)
    assert kind().consolidate_similar() == ["ours"]


def test_a_name_that_this_pmm_has_not(folder: Path, known: dict[str, str]) -> None:
    source = small_pmm.MODULES["runtime.stage_tracker"].replace("infer_stage", "other_stage")
    small_pmm.write(folder, {"runtime.stage_tracker": source})
    patcher = install(known=known)
    assert patcher is not None
    assert module("pmm.runtime.stage_tracker").StageTracker.other_stage([])[0] == "S0"
    assert patcher.kept["pmm.runtime.stage_tracker:StageTracker.infer_stage"] == "this PMM has no such name"


@pytest.mark.parametrize("how", ["import", "install", "subclass"])
def test_a_broken_part_leaves_pmm_its_own(known: dict[str, str], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home: Any = sys.modules["pmm_shm_pmm.log"]

    def failing(*_: Any) -> Any:
        raise ValueError("of ours")

    if how == "import":
        # What stood there comes back with the other parts.
        sys.modules["pmm_shm_pmm.log"] = None  # type: ignore[assignment]
    elif how == "install":
        monkeypatch.setattr(home, "install", failing)
    else:
        install_class = lambda patcher, loaded: patcher.replace_class(loaded, "EventLog", failing)  # noqa: E731
        monkeypatch.setattr(home, "install", install_class)
    patcher = install(known=known)
    assert patcher is not None
    assert answers() == {**REPLACED, "log": BY_PMM["log"]}
    reason = patcher.kept["pmm.storage.eventlog:EventLog"]
    assert reason.startswith("ModuleNotFoundError: " if how == "import" else "ValueError: of ours")


def test_an_importer_that_cannot_follow_keeps_what_it_has(
    folder: Path, known: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise TypeError("of ours")

    monkeypatch.setattr("pmm_shm_pmm.installing.redirect", failing)
    patcher = install(known=known)
    assert patcher is not None
    assert answers() == REPLACED
    assert patcher.kept["pmm.storage.projection:its importers"] == "TypeError: of ours"


def test_a_replacement_asks_for_originals() -> None:
    patcher = install()
    assert patcher is not None
    assert patching.current() is patcher
    projection = module("pmm.storage.projection")
    assert patcher.original("pmm.storage.projection", "build_self_model")([])["by"] == "pmm"
    cached = patcher.original("pmm.storage.projection", "build_self_model_cached")
    assert cached is projection.build_self_model_cached
    recall: Any = module("pmm.runtime.recall")
    assert patcher.original("pmm.runtime.recall", "suggest_recall") is recall.suggest_recall


def test_a_method_of_a_replaced_class(known: dict[str, str]) -> None:
    eventlog = module("pmm.storage.eventlog")
    original = eventlog.EventLog
    known["pmm.storage.eventlog:EventLog.verify_chain"] = sha256_of(original.verify_chain)
    chain: Any = sys.modules["pmm_shm_pmm.chain"]
    chain.install = lambda patcher, loaded: patcher.replace(loaded, "EventLog.verify_chain", lambda self: "ours")
    install(known=known)
    assert eventlog.EventLog().verify_chain() == "ours"
    assert original().verify_chain() is True
    importlib.reload(eventlog)
    assert eventlog.EventLog().verify_chain() == "ours"
    replaced = eventlog.EventLog()
    uninstall()
    assert eventlog.EventLog().verify_chain() is True
    assert replaced.verify_chain() is True


def test_after_a_reload_the_new_originals_are_put_back(known: dict[str, str]) -> None:
    install(known=known)
    loop, projection = module("pmm.runtime.loop"), module("pmm.storage.projection")
    importlib.reload(projection)
    patcher = patching.current()
    original = patcher.original("pmm.storage.projection", "build_self_model")
    uninstall()
    assert projection.build_self_model is original
    assert loop.build_self_model([])["by"] == "pmm"


def test_a_module_that_is_patched_twice_is_so_once(folder: Path, known: dict[str, str]) -> None:
    graph = "class MemeGraphProjection:\n    def latest_stage(self):\n        return 'pmm'\n"
    small_pmm.write(folder, {"runtime.memegraph": graph})
    home = ModuleType("pmm_shm_pmm.graph")
    home.install = lambda patcher, loaded: patcher.replace_class(  # type: ignore[attr-defined]
        loaded, "MemeGraphProjection", lambda original: type("Lazy", (original,), {"latest_stage": lambda self: "ours"})
    )
    sys.modules["pmm_shm_pmm.graph"] = home
    known["pmm.runtime.memegraph:MemeGraphProjection"] = hashlib.sha256(graph.encode()).hexdigest()
    patcher = install(known=known)
    assert patcher is not None
    names = ("storage.eventlog", "storage.projection", "commitments.tracker", "runtime.recall", "runtime.memegraph")
    modules = [module(f"pmm.{name}") for name in names]
    before = [dict(vars(one)) for one in modules]
    for one in modules:
        patch(patcher, one)
    assert [dict(vars(one)) for one in modules] == before
    assert patcher.kept == {}
    assert module("pmm.commitments.tracker").CommitmentTracker(None).find_evidence([], []) == ["ours"]
    assert not hasattr(module("pmm.commitments.tracker").CommitmentTracker.find_evidence.__wrapped__, "__wrapped__")
    assert module("pmm.runtime.memegraph").MemeGraphProjection().latest_stage() == "ours"


def sha256_of(function: Any) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
