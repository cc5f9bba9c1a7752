"""`pmm-shm run` as users type it: modules, scripts and programs, servers with workers, what it says, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pmm_shm.instance.paths import Instance
from pmm_shm.instance.run_reports import read_reports
from pmm_shm.ledger.eventlog import EventLog
from pmm_shm.ledger.obstacles import NEEDS_LEASE
from tests.support import daemons, ledgers, small_pmm
from tests.support.ports import HeldPort
from tests.support.small_pmm import BY_PMM, REPLACED

RUN = [sys.executable, "-m", "pmm_shm_cli", "run"]
SITE = ledgers.ROOT / "client" / "pmm_shm_pmm" / "site"
ON = "pmm-shm: PMM runs on the shared cache: all parts"


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Place:
    """A folder with a small PMM, and a `sitecustomize` of the user's that has the replacements."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        site = folder / "site"
        site.mkdir()
        small_pmm.write(folder / "package")
        (folder / "work").mkdir()
        (site / "parts.py").write_text(small_pmm.PARTS, encoding="utf-8")
        (site / "sitecustomize.py").write_text(
            "import os, sys\nsys.path_of_user = True\n"
            "if not os.environ.get('NO_PARTS'):\n"
            "    try: import parts\n    except ImportError: pass\n",
            encoding="utf-8",
        )
        known = small_pmm.known_sources(folder / "package")
        (folder / "known.json").write_text(json.dumps(known), encoding="utf-8")

    def environment(self, **changes: str | None) -> dict[str, str]:
        path = [str(self.folder / "package"), str(self.folder / "site"), daemons.environment()["PYTHONPATH"]]
        settings = {"PMM_SHM_SOURCES": str(self.folder / "known.json"), "PMM_SHM_DAEMON": "off", "COVERAGE_RUN": None}
        return daemons.environment(**{"PYTHONPATH": os.pathsep.join(path), **settings, **changes})

    def run(self, *words: str, input: str = "", **changes: str | None) -> Ran:
        done = subprocess.run(
            [*RUN, *words],
            env=self.environment(**changes),
            cwd=self.folder / "work",
            input=input,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def script(self, source: str, name: str = "script.py") -> str:
        path = self.folder / "work" / name
        path.write_text(source, encoding="utf-8")
        return str(path)


@pytest.fixture
def place(folder: Path) -> Place:
    return Place(folder)


# What is started, and with what.


def test_a_module(place: Place) -> None:
    ledger = place.folder / "work" / "agent.db"
    ran = place.run("--ledger", "agent.db", "-m", "pmm.cli.chat", "--ledger", "other", "-m", "x", "--report")
    assert ran.code == 7
    found = json.loads(ran.out)
    assert found == {"db": str(ledger), "argv": ["--ledger", "other", "-m", "x", "--report"], **REPLACED}
    assert ran.err == (f"{ON} (tier 1, and tier 2 where the source is known); ledger {ledger}; no daemon is started\n")
    assert list(ledger.parent.iterdir()) == []


def test_a_script(place: Place) -> None:
    path = place.script("import sys\nfrom pmm.cli import chat\nprint(sys.argv[0], sys.flags.utf8_mode)\nchat.main()\n")
    ran = place.run(path, "--no-daemon", "--", "-x")
    first, answered = ran.out.splitlines()
    assert (ran.code, first.split()[0]) == (0, path)
    assert json.loads(answered) == {"db": None, "argv": ["--no-daemon", "--", "-x"], **REPLACED}
    assert "the ledgers that PMM opens" in ran.err


def test_a_program_with_options_of_ours_before_it(place: Place) -> None:
    code = "from pmm.cli import chat; import sys; sys.exit(chat.main())"
    ran = place.run("--no-daemon", "--elect-autonomy", sys.executable, "-c", code, "-m", "y")
    assert (ran.code, json.loads(ran.out)["projection"]) == (7, "ours")
    assert ran.err.count("\n") == 1
    assert "; one process runs the autonomy\n" in ran.err


def test_a_program_beside_this_python_that_is_not_on_the_path(place: Place) -> None:
    ran = place.run("uvicorn", "--version", PATH="/usr/bin:/bin")
    assert (ran.code, ran.out.startswith("Running uvicorn")) == (0, True)


def test_a_program_that_is_no_python(place: Place) -> None:
    ran = place.run("sh", "-c", "trap '' TERM; echo $PMM_DB; exit 3", PMM_DB="x.db")
    assert ran == (3, "x.db\n", "")
    # Python ignores it, and a program that does so, too, never ends.
    assert place.run("sh", "-c", "kill -PIPE $$; echo not reached") == (-signal.SIGPIPE, "", "")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "missing -m MODULE, SCRIPT or PROGRAM (see pmm-shm run --help)"),
        (["--ledgr", "x"], 2, "No such option '--ledgr'.*"),
        (["-m"], 2, "Option '-m' requires an argument.*"),
        (["--ledger", "", "x.py"], 2, "--ledger: expected the path of a file, got an empty text"),
        (["--ledger", "no/agent.db", "x.py"], 1, "{0}/no/agent.db: no such folder: {0}/no"),
        (["--ledger", ".", "x.py"], 1, "{0}: not a regular file"),
        (["--ledger", "text.db", "x.py"], 1, "{0}/text.db: file is not a database"),
        (["no-such-program"], 127, "no-such-program: no such program"),
        (["./text.db"], 126, "./text.db: Permission denied"),
    ],
)
def test_one_line_says_what_is_wrong(place: Place, words: list[str], code: int, message: str) -> None:
    (place.folder / "work" / "text.db").write_text("no database, and long enough to be one " * 20, encoding="utf-8")
    ran = place.run(*words)
    assert (ran.code, ran.out) == (code, "")
    pattern = re.escape(message).replace(r"\.\*", ".*").replace(r"\{0\}", re.escape(str(place.folder / "work")))
    assert re.fullmatch(rf"pmm-shm: {pattern}\n", ran.err), ran.err


def test_errors_of_python_are_pythons(place: Place) -> None:
    for words, code, text in ((["no.py"], 2, "can't open file"), (["-m", "pmm.no"], 1, "No module named pmm.no")):
        ran = place.run(*words)
        assert (ran.code, ran.out) == (code, "")
        assert text in ran.err
        assert ran.err.count("\n") == 2


def test_pmm_is_not_installed(place: Place) -> None:
    ran = place.run("-m", "pmm.cli.chat", PYTHONPATH=daemons.environment()["PYTHONPATH"])
    assert ran.code == 1
    assert f"pmm-shm: PMM is not installed: {sys.executable} finds no package pmm\n" in ran.err
    assert "No module named 'pmm'" in ran.err
    assert ran.err.count("pmm-shm: ") == 2


def test_a_ledger_that_somebody_uses_is_one(place: Place) -> None:
    path = place.folder / "work" / "agent.db"
    with EventLog(str(path)) as log:
        log.append("user", "hello", {})
        connection = sqlite3.connect(path)
        connection.execute("BEGIN IMMEDIATE")
        assert place.run("--ledger", str(path), "-m", "pmm.cli.chat").code == 7
        connection.close()


def test_a_ledger_of_pmm_2(place: Place) -> None:
    path = place.folder / "work" / "second.db"
    ledgers.execute(path, "CREATE TABLE pmm_writer_lease (x)")
    said = f"pmm-shm: {path}: {NEEDS_LEASE}; nothing is replaced\n"
    for words, changes in ((["--ledger", "second.db"], {}), ([], {"PMM_DB": str(path)})):
        ran = place.run(*words, "-m", "pmm.cli.chat", **changes)
        assert (ran.code, ran.err) == (7, said)
        assert json.loads(ran.out) == {"db": str(path), "argv": [], **BY_PMM}
    assert place.run("-m", "pmm.cli.chat", PMM_DB=str(path), PMM_SHM="off").err == ""


# Off, and in part.


def test_off(place: Place) -> None:
    ran = place.run("--ledger", "agent.db", "-m", "pmm.cli.chat", PMM_SHM="off")
    assert (ran.code, ran.err) == (7, "")
    assert json.loads(ran.out) == {"db": str(place.folder / "work" / "agent.db"), "argv": [], **BY_PMM}
    script = place.script("import os\nprint(os.environ['PYTHONPATH'], 'PMM_SHM_RUN' in os.environ)\n")
    assert place.run(script, PMM_SHM="0").out == f"{place.environment()['PYTHONPATH']} False\n"


def test_off_for_a_child_alone(place: Place) -> None:
    script = place.script(
        "import os, subprocess, sys\nos.environ['PMM_SHM'] = 'off'\n"
        "print(subprocess.run([sys.executable, '-m', 'pmm.cli.chat'], capture_output=True, text=True))\n"
    )
    assert '"projection": "pmm"' in place.run(script).out


def test_parts(place: Place) -> None:
    ran = place.run("-m", "pmm.cli.chat", PMM_SHM_PATCHES="stage, log,nonsense")
    assert json.loads(ran.out) == {"db": None, "argv": [], **BY_PMM, "log": REPLACED["log"], "stage": "ours"}
    warning, line = ran.err.splitlines()
    assert warning.startswith(
        "pmm-shm: PMM_SHM_PATCHES: no such part: nonsense; there are log, lazy, chain, projection"
    )
    assert line.startswith("pmm-shm: PMM runs on the shared cache: log, stage (tier 1); ")


def test_values_without_a_meaning_are_warnings(place: Place) -> None:
    odd = {"PMM_SHM": "perhaps", "PMM_SHM_DAEMON": "maybe", "PMM_USE_METRICS_CACHE": "sometimes"}
    ran = place.run("-m", "pmm.cli.chat", **odd)
    assert (ran.code, json.loads(ran.out)["metrics"]) == (7, "ours")
    *warnings, line = ran.err.splitlines()
    assert sorted(warnings) == sorted(
        f"pmm-shm: {name}: expected true or false, got {value!r}" for name, value in odd.items()
    )
    assert line.endswith("; a daemon is started where none runs")


def test_the_switches_of_pmm_are_left_to_it(place: Place) -> None:
    ledger = str(place.folder / "work" / "agent.db")
    EventLog(ledger).close()
    script = place.script(
        "import pmm.config, sys\nfrom pmm_shm_client.autostart import is_running, start_daemon\n"
        "from pmm_shm.instance.paths import Instance\nfrom pmm_shm_client.stopping import stop_daemon\n"
        "start_daemon(sys.argv[1])\ninstance = Instance.of(sys.argv[1])\n"
        "print(is_running(instance), pmm.config.USE_PROJECTION_CACHE)\n"
        "from pmm_shm.wire.endpoints import find_endpoints\npid = find_endpoints(instance).pid\n"
        "variables = open(f'/proc/{pid}/environ').read().split(chr(0))\n"
        "print(*sorted(one for one in variables if one.startswith(('PMM_SHM=', 'PMM_USE'))))\n"
        "stop_daemon(instance, 10)\n"
    )
    switches = {"PMM_USE_PROJECTION_CACHE": "true", "PMM_USE_METRICS_CACHE": "odd", "PMM_USE_EMBEDDING_CACHE": "false"}
    assert place.run(script, ledger, **switches).out == "True True\nPMM_SHM=off\n"


# Other Pythons, and what they import at their start.


def test_the_users_own_sitecustomize_runs_and_children_keep_the_path(place: Place) -> None:
    child = (
        "import sys, sitecustomize; from pmm.cli import chat\n"
        "print(sitecustomize.__file__, sys.path_of_user); chat.main()"
    )
    script = place.script(
        f"import os, sitecustomize, subprocess, sys\nprint(sitecustomize.__file__, sys.path_of_user)\n"
        f"assert not any('pmm_shm_pmm' in one for one in sys.path), sys.path\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])\n"
    )
    ran = place.run(script)
    own, of_child, answered = ran.out.splitlines()
    assert own == of_child == f"{place.folder}/site/sitecustomize.py True"
    assert json.loads(answered)["log"] == REPLACED["log"]
    assert ran.err.count("\n") == 1


def test_a_sitecustomize_that_fails_is_the_users(place: Place) -> None:
    (place.folder / "site" / "sitecustomize.py").write_text("raise KeyError('of the user')\n", encoding="utf-8")
    ran = place.run(place.script("print('runs')\n"))
    assert ran.out == "runs\n"
    assert "Error in sitecustomize" in ran.err
    assert "of the user" in ran.err


def test_without_a_sitecustomize_of_the_user(place: Place) -> None:
    (place.folder / "site" / "sitecustomize.py").unlink()
    script = place.script(
        "import parts, sys\nfrom pmm.cli import chat\nchat.main()\n"
        # That of the system, if it has one.
        "assert 'pmm_shm' not in repr(sys.modules.get('sitecustomize'))\n"
    )
    ran = place.run(script)
    assert (ran.code, json.loads(ran.out)["projection"]) == (0, "ours"), ran.err


def test_a_python_without_pmm_shm(place: Place) -> None:
    code = "import sys; print(sys.argv[1:])"
    base = Path(sys.base_prefix) / "bin" / "python3"
    # It has no packages of ours: neither on its path, nor installed.
    program = place.script(f'#!/bin/sh\nunset PYTHONHOME\nexec {base} -s "$@"\n', "python-of-others")
    os.chmod(program, 0o755)
    ran = place.run("sh", "-c", f"PYTHONPATH={SITE} exec {program} -c '{code}' a b")
    assert (ran.code, ran.out) == (0, "['a', 'b']\n")
    assert re.fullmatch(r"pmm-shm: nothing is replaced: \S+ has no pmm-shm \(No module named 'pmm_shm\w*'\)\n", ran.err)


def test_an_error_at_our_start_does_not_reach_the_program(place: Place) -> None:
    # Its own package of that name, as an installation that was damaged.
    broken = place.folder / "broken" / "pmm_shm_pmm"
    broken.mkdir(parents=True)
    (broken / "__init__.py").touch()
    (broken / "starting.py").write_text("def start():\n    raise MemoryError('of ours')\n", encoding="utf-8")
    path = os.pathsep.join([str(SITE), str(broken.parent), place.environment()["PYTHONPATH"]])
    ran = place.run("sh", "-c", f"PYTHONPATH={path} exec {sys.executable} -m pmm.cli.chat")
    assert json.loads(ran.out) == {"db": None, "argv": [], **BY_PMM}
    assert ran.err == "pmm-shm: nothing is replaced: MemoryError: of ours\n"


# Reports.


def test_the_report_at_the_end(place: Place) -> None:
    ran = place.run("--report", "-m", "pmm.cli.chat")
    lines = ran.err.splitlines()
    assert lines[0].startswith(ON)
    assert re.fullmatch(r"pmm-shm: process \d+, python\S* -m pmm\.cli\.chat", lines[1])
    assert re.search(r"^  projection\.build_self_model +1 answered$", ran.err, re.MULTILINE)
    assert ran.out.count("\n") == 1


def test_the_report_of_a_program_without_pmm(place: Place) -> None:
    ran = place.run("--report", place.script("print('runs')\n"))
    assert ran.out == "runs\n"
    assert re.search(r"pmm-shm: process \d+, python\S* \S*script\.py\n  no call was answered\n$", ran.err)


def test_without_stderr(place: Place) -> None:
    script = place.script("import json\nfrom pmm.cli import chat\nchat.main()\n")
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *RUN, "--report", script],
        env=place.environment(PMM_SHM_PATCHES="nonsense,log"),
        cwd=place.folder / "work",
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)["log"]) == (0, REPLACED["log"])


def test_a_report_to_a_file_of_several_processes(place: Place) -> None:
    script = place.script(
        "import os, sys\nfrom pmm.runtime.loop import EventLog, Runtime, build_self_model\n"
        "Runtime(EventLog()).answers()\n"
        "if os.fork() == 0:\n    build_self_model([])\n    build_self_model([])\n"
        "    try: build_self_model(None)\n    except TypeError: sys.exit()\nos.wait()\n"
    )
    report = place.folder / "work" / "report.txt"
    ran = place.run("--report-to", "report.txt", script)
    assert ran.err.count("\n") == 1
    child, parent = re.split(r"(?<=\n)(?=pmm-shm: process)", report.read_text(encoding="utf-8"))
    assert re.search(r"projection\.build_self_model +2 answered +1 by PMM \(1 no events\)\n", child)
    assert "find_evidence" not in child
    assert re.search(r"projection\.build_self_model +1 answered\n", parent)


def test_multiprocessing_by_both_methods(place: Place) -> None:
    script = place.script(
        "import multiprocessing, os\nfrom pmm.api.server import answer\n"
        "def work(queue): queue.put(answer().decode())\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'fork', 'forkserver'):\n"
        "        context = multiprocessing.get_context(method)\n"
        "        queue = context.Queue()\n"
        "        process = context.Process(target=work, args=(queue,))\n"
        "        process.start(); print(queue.get()); process.join()\n"
    )
    ran = place.run("--report", script)
    for line in ran.out.splitlines():
        found = json.loads(line)
        assert {name: found[name] for name in REPLACED} == REPLACED
        # Each says what it did, though `fork` ends without Python's own end.
        assert f"pmm-shm: process {found['pid']}, " in ran.err
    assert ran.out.count("\n") == 3
    assert ran.err.count(ON) == 1


def test_an_unknown_version_says_so_once_for_all_processes(place: Place) -> None:
    (place.folder / "known.json").write_text("{}", encoding="utf-8")
    script = place.script(
        "import multiprocessing\nfrom pmm.cli.chat import main\n"
        "if __name__ == '__main__':\n    main()\n"
        "    process = multiprocessing.get_context('spawn').Process(target=main)\n    process.start(); process.join()\n"
    )
    ran = place.run("--report", script)
    for line in ran.out.splitlines():
        found = json.loads(line)
        assert {name: found[name] for name in REPLACED} == {**REPLACED, "tracker": "pmm", "recall": "pmm"}
    assert ran.out.count("\n") == 2
    assert ran.err.count("another version of PMM: tier 1 alone where sources differ") == 1
    assert len(re.findall(r"  not replaced \(unknown source\): .*\brecall\.suggest_recall\b", ran.err)) == 2


@pytest.mark.parametrize("table", ["no json", "[1]", '{"a": 1}', None])
def test_a_table_of_sources_that_cannot_be_read(place: Place, table: str | None) -> None:
    path = place.folder / "known.json"
    path.unlink() if table is None else path.write_text(table, encoding="utf-8")
    ran = place.run("-m", "pmm.cli.chat")
    assert {"projection": "ours", "tracker": "pmm"}.items() <= json.loads(ran.out).items()
    assert f"pmm-shm: PMM_SHM_SOURCES: {path}: " in ran.err


def test_the_doctor_shows_what_a_running_process_has_answered(place: Place) -> None:
    ledger = place.folder / "work" / "agent.db"
    EventLog(str(ledger)).close()
    instance = Instance.of(ledger)
    instance.directory.mkdir(mode=0o700)
    script = place.script(
        "import os, sys\nfrom pmm_shm_pmm import report\nfrom pmm.runtime.loop import EventLog, Runtime\n"
        "report.uses(sys.argv[1])\nRuntime(EventLog()).answers()\nreport.beat()\nprint('ready', flush=True)\n"
        "sys.stdin.readline()\nRuntime(EventLog()).answers()\n"
    )
    process = subprocess.Popen(
        [*RUN, script, str(ledger)],
        env=place.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (report,) = read_reports(instance)
    assert (report.pid, report.is_ended, report.answered["pmm.runtime.recall:suggest_recall"]) == (
        process.pid,
        False,
        1,
    )
    process.communicate("\n", timeout=30)
    (report,) = read_reports(instance)
    assert (report.is_ended, report.answered["pmm.runtime.recall:suggest_recall"]) == (True, 2)
    done = subprocess.run(
        [sys.executable, "-m", "pmm_shm_cli", "doctor", str(ledger)],
        env=daemons.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ok      pmm: processes of PMM in the last day: 1, 1 of them ended; 12 calls answered" in done.stdout


# Servers.


class Server:
    """A server under `pmm-shm run`, and what its workers answer."""

    def __init__(self, place: Place, *words: str) -> None:
        self._port = HeldPort()
        self.port = self._port.number
        self._log = place.folder / "server.log"
        with self._log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*RUN, "--report", *(word.replace("PORT", str(self.port)) for word in words)],
                env=place.environment(),
                cwd=place.folder / "work",
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def answers(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as response:
                    yield json.loads(response.read())
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, self.log()
                time.sleep(0.05)

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self._port.close()
        return self.log()


SERVERS: Mapping[str, list[str]] = {
    "uvicorn": ["uvicorn", "pmm.api.server:app", "--workers", "2", "--port", "PORT"],
    "gunicorn": ["gunicorn", "pmm.api.server:wsgi", "--workers", "2", "--bind", "127.0.0.1:PORT"],
    "preload": ["gunicorn", "pmm.api.server:wsgi", "--workers", "2", "--bind", "127.0.0.1:PORT", "--preload"],
}


@pytest.mark.parametrize("name", SERVERS)
def test_servers_carry_it_into_each_worker(place: Place, name: str) -> None:
    pytest.importorskip(SERVERS[name][0])
    server = Server(place, *SERVERS[name])
    try:
        by_worker: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + 40
        for found in server.answers():
            by_worker[found["pid"]] = found
            if len(by_worker) == 2 or time.monotonic() > deadline:
                break
    finally:
        log = server.stop()
    assert len(by_worker) == 2, log
    for pid, found in by_worker.items():
        assert {key: found[key] for key in REPLACED} == REPLACED
        assert pid != server.process.pid
        assert f"pmm-shm: process {pid}, " in log
    assert log.count(ON) == 1


# Its own start.


def test_it_starts_without_what_the_program_needs_not() -> None:
    code = (
        "import os, sys\ndef become(*words): print(*sorted(sys.modules)); os._exit(0)\nos.execvpe = become\n"
        "sys.argv[1:] = ['run', '-m', 'x']\nfrom pmm_shm_cli.entry import main\n"
        "import builtins; real = builtins.print\n"
        "builtins.print = lambda *words: real(*words, flush=True)\nmain()\n"
    )
    loaded = set(daemons.run_python(code, forked=False).stdout.split())
    assert {name for name in loaded if name.startswith("pmm_shm")} == {
        "pmm_shm_cli",
        "pmm_shm_cli.entry",
        "pmm_shm_pmm",
        "pmm_shm_pmm.launching",
    }
    for name in ("click", "pathlib", "typing", "pmm_shm.flags", "subprocess", "shutil", "sqlite3"):
        assert name not in loaded


def test_a_process_without_pmm_loads_little(place: Place) -> None:
    script = place.script("import sys\nprint(*sorted(sys.modules))\n")
    loaded = set(place.run(script, NO_PARTS="1").out.split())
    assert "pmm_shm_pmm.installing" in loaded
    ours = {name for name in loaded if name.startswith("pmm_shm")}
    assert len(ours) < 16, ours
    for name in ("click", "json", "inspect", "sqlite3", "lmdb", "msgpack", "logging", "dataclasses", "socket"):
        assert name not in loaded


def test_the_other_way_in_is_the_same_command(place: Place) -> None:
    """An entry point of an older installation."""
    done = daemons.run_python(
        "import sys; from pmm_shm_cli.main import main; main()", "run", "-m", "pmm.cli.chat", env=place.environment()
    )
    assert (done.returncode, json.loads(done.stdout)["log"]) == (7, REPLACED["log"])


# The pytest plugin, and `auto`.

TESTS = """
from pmm.runtime.loop import EventLog, Runtime

def test_it():
    print("\\nAnswers:", *sorted(set(Runtime(EventLog()).answers().values())))
"""


def pytest_of(place: Place, *words: str, **changes: str | None) -> str:
    (place.folder / "work" / "test_it.py").write_text(TESTS, encoding="utf-8")
    (place.folder / "work" / "conftest.py").write_text("import pmm.runtime.loop\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", *words],
        env=place.environment(**changes),
        cwd=place.folder / "work",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("how", ["-p", "--pmm-shm", "ini"])
def test_the_plugin_replaces_when_asked(place: Place, how: str) -> None:
    name = "pmm_shm_pmm.pytest_plugin"
    words, changes = {
        "-p": (["-p", name], {}),
        "--pmm-shm": (["--pmm-shm"], {"PYTEST_PLUGINS": name}),
        "ini": (["-o", "pmm_shm=true"], {"PYTEST_PLUGINS": name}),
    }[how]
    out = pytest_of(place, *words, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PMM_SHM_DAEMON=None, **changes)
    assert "Answers: EventLog of ours ours\n" in out
    assert "pmm-shm: PMM runs on the shared cache: all parts" in out
    assert "no daemon is started" in out


def test_the_plugin_does_nothing_unasked(place: Place) -> None:
    out = pytest_of(place, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTEST_PLUGINS="pmm_shm_pmm.pytest_plugin")
    assert "Answers: EventLog of pmm pmm\n" in out
    assert "pmm-shm: " not in out
    code = "import sys, pytest; before = set(sys.modules); import pmm_shm_pmm.pytest_plugin; "
    done = daemons.run_python(code + "print(*sorted(set(sys.modules) - before))", forked=False)
    assert set(done.stdout.split()) == {"pmm_shm_pmm", "pmm_shm_pmm.pytest_plugin"}


def test_auto(place: Place) -> None:
    code = "import parts, pmm_shm_pmm.auto\nfrom pmm.cli import chat\nchat.main()\n"
    done = daemons.run_python(code, env=place.environment())
    assert (json.loads(done.stdout)["log"], done.stderr) == (REPLACED["log"], "")
    off = daemons.run_python(code, env=place.environment(PMM_SHM="off"))
    assert (json.loads(off.stdout)["log"], off.stderr) == (BY_PMM["log"], "")
