"""Runs the blocks of a documentation page.

The blocks run in order, in one empty directory. The words after the opening fence say how:

    ```sh                lines for bash, one shell per page; a failing command fails the page
    ```python            code for a Python process; `python first` and `python second` are two processes
    ```python notebook   a cell of a Jupyter notebook; one kernel per page
    ```python fold.py    the content of a file: any language, with a name that contains a dot
    ```console           a session on a terminal: `$ command`, its output, and the input after its prompt;
                         blocks of the same name continue one session
    ```text              the output of the block before; `...` stands for anything

Lines that are indented by four spaces are not run: they need root, a network, a service manager or a screen.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pexpect
import pytest

from tests.support import daemons, ledgers

DOCS = ledgers.ROOT / "docs"
README = ledgers.ROOT / "README.md"

PROMPT = "you › "  # noqa: RUF001
_FENCED = re.compile(r"^```(\w+)(?: ([\w.-]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VARIABLES = ("PMM_", "OPENAI_")

# Reads one JSON object per line: code to run in one lasting namespace. Answers with [output, failure]. The output
# includes warnings on stderr: a page must show them or cause none.
_INTERPRETER = r"""
import contextlib, io, json, sys, traceback
namespace = {"__name__": "__main__"}
for line in sys.stdin:
    request = json.loads(line)
    shown, failure = io.StringIO(), None
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            exec(compile(request["code"], request["name"], "exec"), namespace)
        except BaseException:
            failure = traceback.format_exc()
    print(json.dumps([shown.getvalue(), failure]), flush=True)
"""


class Block(NamedTuple):
    """One block of a page, and the output that the page shows for it, or None."""

    line: int
    language: str
    name: str
    body: str
    shown: str | None


def blocks(text: str, language: str) -> list[str]:
    """The bodies of the blocks of one language that have no name."""
    return [body for found, name, body in _FENCED.findall(text) if (found, name) == (language, "")]


def parsed(text: str) -> list[Block]:
    """All blocks, with the outputs that belong to them."""
    result: list[Block] = []
    end = 0
    for match in _FENCED.finditer(text):
        language, name, body = match[1], match[2] or "", match[3]
        if language == "text":
            follows = bool(result) and result[-1].shown is None and not text[end : match.start()].strip()
            assert follows, f"an output that belongs to no block: {body!r}"
            result[-1] = result[-1]._replace(shown=body)
        else:
            result.append(Block(text.count("\n", 0, match.start()) + 1, language, name, body, None))
        end = match.end()
    return result


def indented(text: str) -> list[str]:
    """The lines that are shown but not run."""
    runs = re.findall(r"^\n((?: {4}.*\n)+)", _FENCED.sub("", text), re.MULTILINE)
    return [line.strip() for run in runs for line in run.splitlines()]


def is_as_shown(shown: str, printed: str) -> bool:
    """Whether the output matches, line by line: `...` matches anything, and the width of white space is ignored."""
    wanted, found = (
        "\n".join(" ".join(line.split()) for line in text.strip().splitlines()) for text in (shown, printed)
    )
    return re.fullmatch(".*?".join(map(re.escape, re.split(r" ?\.\.\. ?", wanted))), found, re.DOTALL) is not None


def install_entry_points(site: Path, pyproject: str, name: str) -> None:
    """Register the entry points of a `pyproject.toml`, as `pip install` would."""
    group = r'^\[project\.entry-points\."?([\w.]+)"?\]\n((?:\w+ = "[\w.:]+"\n)+)'
    found = re.search(group, pyproject, re.MULTILINE)
    assert found is not None
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{found[1]}]\n{found[2]}".replace('"', ""), encoding="utf-8")


_COMMANDS = {
    "gunicorn": "gunicorn.app.wsgiapp:run",
    "pmm-cached": "pmm_cached.main:main",
    "pmm-shm": "pmm_shm_cli.entry:main",
    "datasette": "datasette.cli:cli",
    "pytest": "pytest:main",
    "uvicorn": "uvicorn:main",
}


def commands_on_path(folder: Path) -> None:
    """`python`, our programs and those of the test extra, as an installation would put them onto PATH."""
    folder.mkdir()
    for name, entry in _COMMANDS.items():
        module, function = entry.split(":")
        script = folder / name
        # The condition, as pip writes it: multiprocessing imports the script again.
        begin = f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\n"
        script.write_text(f"{begin}if __name__ == '__main__':\n    sys.exit({function}())\n", encoding="utf-8")
        script.chmod(0o755)
    # Not a link: Python finds its virtual environment by the path of the executable.
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)


class Kernel:
    """A Jupyter kernel, as a notebook has it."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        pytest.importorskip("ipykernel")
        from jupyter_client.manager import KernelManager

        # The files of its connection are beside the page's directory; sockets there, no ports.
        place = directory.parent / "kernel"
        self._manager = KernelManager(
            kernel_name="python3", transport="ipc", ip=str(place), connection_file=f"{place}.json"
        )
        # Its own folders: nobody's settings, and nothing left in a home directory.
        folders = {f"JUPYTER_{name}_DIR": str(directory.parent) for name in ("CONFIG", "RUNTIME")}
        folders["IPYTHONDIR"] = str(directory.parent / "ipython")
        self._manager.start_kernel(cwd=str(directory), env={**environment, **folders})
        self._client = self._manager.blocking_client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=daemons.DEADLINE_S)

    def run(self, code: str) -> tuple[str, str | None]:
        """What a cell shows, without pictures, and its traceback if it fails."""
        shown: list[str] = []

        def show(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                shown.append(content["text"])
            elif message["msg_type"] in ("execute_result", "display_data"):
                shown.append(content["data"]["text/plain"] + "\n")

        reply = self._client.execute_interactive(code, output_hook=show, timeout=daemons.DEADLINE_S, allow_stdin=False)
        content = reply["content"]
        return "".join(shown), None if content["status"] == "ok" else "\n".join(content["traceback"])

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


class Workplace:
    """Runs the blocks of one page in a new directory; `close` ends every process that they started, and removes it.

    Not pytest's temporary directory, which other users cannot enter: pages rely on that.
    """

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="pmm-page-")
        folder = Path(self._temporary.name)
        folder.chmod(0o755)
        self.directory = folder / "work"
        self.directory.mkdir()
        (folder / "run").mkdir(mode=0o700)
        self._site = folder / "site"
        self._site.mkdir()
        self._scratch = folder
        if not metadata.entry_points(group="pytest11", name="pmm_shm"):  # Installed before it had the plugin.
            pyproject = (ledgers.ROOT / "pyproject.toml").read_text(encoding="utf-8")
            install_entry_points(self._site, pyproject, "pmm_shm_plugin")
        commands_on_path(folder / "bin")
        variables = {name: None for name in os.environ if name.startswith(_VARIABLES)}
        self._environment = daemons.environment(
            **variables,
            PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            COLUMNS="100",
            LC_ALL="C.UTF-8",
            XDG_STATE_HOME=str(folder / "state"),
            XDG_RUNTIME_DIR=str(folder / "run"),  # Where gunicorn, too, puts sockets.
        )
        path = self._environment["PYTHONPATH"]
        self._environment["PYTHONPATH"] = os.pathsep.join([str(self._site), path])
        self._shell: subprocess.Popen[str] | None = None
        self._pythons: dict[str, subprocess.Popen[str]] = {}
        self._terminals: dict[str, pexpect.spawn[str]] = {}
        self._kernel: Kernel | None = None

    def install(self, package: Path) -> None:
        """Let the page's Pythons import a package that is installed elsewhere."""
        (self._site / package.name).symlink_to(package)

    def run(self, block: Block) -> None:
        """Run one block and compare its output."""
        where = f"line {block.line}"
        if "." in block.name:
            self._write(block)
        elif block.language == "sh":
            self._compare(block, self._in_shell(block.body, where))
        elif (block.language, block.name) == ("python", "notebook"):
            self._compare(block, self._in_kernel(block.body, where))
        elif block.language == "python":
            self._compare(block, self._in_python(block.name, block.body, where))
        elif block.language == "console":
            self._on_terminal(block)
        else:
            raise AssertionError(f"{where}: nobody runs {block.language}")

    def close(self) -> None:
        """End the shell, the Pythons, the terminals, and the daemons that they started."""
        for terminal in self._terminals.values():
            terminal.close(force=True)
        if self._kernel is not None:
            self._kernel.close()
        for process in (self._shell, *self._pythons.values()):
            if process is not None:
                process.kill()
                process.communicate()
        end_all_in(self.directory)
        self._temporary.cleanup()

    def _compare(self, block: Block, printed: str) -> None:
        if block.shown is not None:
            assert is_as_shown(block.shown, printed), f"line {block.line} printed:\n{printed}\nand not:\n{block.shown}"

    def _write(self, block: Block) -> None:
        (self.directory / block.name).write_text(block.body, encoding="utf-8")
        if block.name == "pyproject.toml":
            install_entry_points(self._site, block.body, "page_fold")
            for module in self.directory.glob("*.py"):
                (self._site / module.name).write_text(module.read_text(encoding="utf-8"), encoding="utf-8")

    def _in_shell(self, code: str, where: str) -> str:
        shell = self._shell
        if shell is None:
            shell = self._shell = self._start("bash", "--noprofile", "--norc", "-s")
        script, output = self._scratch / "block.sh", self._scratch / "block.out"
        script.write_text(code + "\n", encoding="utf-8")
        done = self._ask(shell, f"set -e; . '{script}' >'{output}' 2>&1 </dev/null; set +e; echo done\n")
        # Bash reports a killed job with the place in this script; on a terminal the line would look different.
        printed = re.sub(
            rf"^{script}: line \d+: .* (Killed|Terminated) .*\n", "", output.read_text("utf-8"), flags=re.M
        )
        assert done == "done\n", f"{where} failed:\n{code}\n{printed}"
        return printed

    def _in_python(self, name: str, code: str, where: str) -> str:
        if name not in self._pythons:
            self._pythons[name] = self._start(sys.executable, "-c", _INTERPRETER)
        answer = self._ask(self._pythons[name], json.dumps({"code": code, "name": where}) + "\n")
        assert answer, f"{where}: the interpreter died"
        printed, failure = json.loads(answer)
        assert failure is None, f"{where}:\n{failure}"
        return str(printed)

    def _in_kernel(self, code: str, where: str) -> str:
        if self._kernel is None:
            self._kernel = Kernel(self.directory, self._environment)
        printed, failure = self._kernel.run(code)
        assert failure is None, f"{where}:\n{failure}"
        return printed

    def _start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def _ask(self, process: subprocess.Popen[str], request: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.flush()
        return process.stdout.readline()

    def _on_terminal(self, block: Block) -> None:
        lines = block.body.splitlines()
        if lines[0].startswith("$ "):
            self._terminals[block.name] = pexpect.spawn(
                "bash",
                ["-c", lines.pop(0)[2:]],
                cwd=str(self.directory),
                env={**self._environment, "TERM": "dumb", "NO_COLOR": "1", "INPUTRC": "/dev/null"},
                encoding="utf-8",
                dimensions=(40, 100),
                timeout=daemons.DEADLINE_S,
            )
            self._terminals[block.name].delaybeforesend = None
            typed, found = "", _until_prompt(self._terminals[block.name])
        else:
            typed, found = "", ""
        told: list[str] = []
        for line in [*lines, PROMPT]:
            if not line.startswith(PROMPT.rstrip()):
                told.append(line)
                continue
            assert is_as_shown("\n".join(told), found), f"line {block.line}: {typed!r} was answered by:\n{found}"
            typed, told = line[len(PROMPT) :], []
            if typed:
                self._terminals[block.name].sendline(typed)
                found = _until_prompt(self._terminals[block.name]).partition("\n")[2]


def _until_prompt(terminal: pexpect.spawn[str]) -> str:
    """The output up to the next prompt, or the end."""
    terminal.expect_exact([PROMPT, pexpect.EOF])
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.before or "").replace("\r", "")


def end_all_in(directory: Path) -> None:
    """End every process that runs in `directory`, or names it in its arguments."""
    for pid in _at_work_in(directory):
        daemons.end(pid)


def _at_work_in(directory: Path) -> Iterator[int]:
    """Pids of the processes that run in `directory`, or name it in their arguments."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            arguments = (folder / "cmdline").read_bytes()
            if os.fsencode(directory) in arguments or Path(os.readlink(folder / "cwd")) == directory:
                yield int(folder.name)


def option_names(command: Any) -> set[str]:
    """All options of a click command, as typed; of a group, of all its commands."""
    names = {name for one in command.params for name in (*one.opts, *one.secondary_opts) if name.startswith("-")}
    return names.union({"-h", "--help"}, *map(option_names, getattr(command, "commands", {}).values()))


def code_in(text: str) -> Iterator[str]:
    """All code on a page: shell blocks, indented lines, and code within sentences."""
    for language, _, body in _FENCED.findall(text):
        if language in ("sh", "console"):
            yield from body.splitlines()
    yield from indented(text)
    for line in _FENCED.sub("", text).splitlines():
        if not line.startswith("    "):
            yield from re.findall(r"`([^`]+)`", line)


def commands_named(code: str) -> Iterator[tuple[str, str, list[str]]]:
    """(program, command, options) for each use of our programs; the command is "" if none is given."""
    for program, rest in re.findall(r"(?<![\w@./-])(pmm-shm|pmm-cached)((?= |$)[^|;&#)]*)", code):
        words = rest.split()
        command = words[0] if program == "pmm-shm" and words and re.fullmatch(r"[a-z]+", words[0]) else ""
        if command == "run":
            # What follows the module or program is its own.
            words = words[: next((n for n, word in enumerate(words) if n and _is_target(words, n)), len(words))]
        yield program, command, [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]


def _is_target(words: list[str], number: int) -> bool:
    """Whether a word of `pmm-shm run` is the module or program to run, and no option or value of one."""
    return not words[number].startswith("-") and words[number - 1] not in ("--ledger", "--report-to")
