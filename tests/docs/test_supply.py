"""Supply: nothing in the packages runs what it was given as data; the dependencies are locked by hashes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ledgers import ROOT
from tests.support.sources import sources

# Code that users name, by configuration or by installing it: embedders and folds as `module:attribute`, entry points of
# folds, the program that is measured. The others import what stands there as a constant or in a table of this
# package: imports that can wait, modules of PMM, and what the import system asks of a loader.
IMPORTS = {
    "pmm_shm/user_objects.py": ["importlib.import_module(module_name)"],
    "client/pmm_shm_pmm/answers.py": ["import_module('pmm.config')"],
    "client/pmm_shm_pmm/hooks.py": ["self._loader.exec_module(module)"],
    "client/pmm_shm_pmm/installing.py": [
        "import_module(f'pmm_shm_pmm.{home}')",
        "import_module(module.__name__)",
    ],
    "client/pmm_shm_pmm/measured.py": ["import_module(module)"],
    "client/pmm_shm_pmm/site/sitecustomize.py": ["importlib.import_module('sitecustomize')"],
    "client/pmm_shm_pmm/tracker.py": [
        "import_module(f'{self._package}.config')",
        "import_module(f'{self._package}.runtime.metrics')",
    ],
    "pmm_shm/folds/registry.py": ["entry.load()"],
    "pmm_shm/ledger/shape.py": ["import_module('tomllib' if sys.version_info >= (3, 11) else 'tomli')"],
    "client/pmm_shm_client/__init__.py": ["import_module(home)"],
}


def imports(tree: ast.AST) -> list[str]:
    """Calls that import a module by its name, or load an entry point."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = [call for call in calls if ast.unparse(call.func).split(".")[-1] in ("import_module", "exec_module")]
    # That of an entry point takes no argument.
    found += [call for call in calls if ast.unparse(call).endswith(".load()")]
    return sorted(map(ast.unparse, found))


def test_modules_are_imported_by_name_only_where_users_name_them() -> None:
    assert {name: found for name, _, tree in sources() if (found := imports(tree))} == IMPORTS


@pytest.mark.parametrize("code", ["import importlib; importlib.import_module(name)", "entry.load()"])
def test_an_import_by_name_is_found(code: str) -> None:
    assert imports(ast.parse(code))


# The locks.


LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def pinned(lock: Path) -> dict[str, list[str]]:
    """Name to its lines, of a lock file."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(re.split(r"==| ", line)[0], []).append(line)
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_has_hashes_and_names_no_place(lock: Path) -> None:
    for name, lines in pinned(lock).items():
        for line in lines:
            assert re.match(rf"{name}==[^ ]+ ", line), line
            assert "--hash=sha256:" in line
    text = lock.read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted|^-|/(opt|tmp|work|home|root)/| @ ", text, re.M)


def test_the_locks_hold_what_the_project_asks_for() -> None:
    assert [lock.name for lock in LOCKS] == ["bench.txt", "dev.txt", "product.txt", "shapes.txt", "tools.txt"]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    asked = {
        section: {
            re.split(r"[\[<>=]", name)[0].lower().replace("_", "-") for name in re.findall(r'"([^"]+)"', block) if name
        }
        for section, block in re.findall(r"^(\w+) = \[\n(.*?)^\]", text.split("[project.scripts]")[0], re.M | re.S)
    }
    dev, bench = (pinned(ROOT / "requirements" / f"{name}.txt") for name in ("dev", "bench"))
    everyones = asked["dependencies"]
    assert everyones | asked["dev"] | asked["openai"] | asked["wordllama"] | {"hatchling"} <= dev.keys() | {"pmm-shm"}
    assert everyones | asked["bench"] <= bench.keys()
    product = pinned(ROOT / "requirements" / "product.txt")
    assert everyones | {"hatchling"} <= product.keys() <= dev.keys()
    # One environment takes all.
    for lock in (bench, product, pinned(ROOT / "requirements" / "tools.txt")):
        for name in dev.keys() & lock.keys():
            assert versions(lock[name]) <= versions(dev[name]), name


def versions(lines: list[str]) -> set[str]:
    return {line.split("==")[1].split(" ")[0] for line in lines}


MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "ruamel"}
MODULES |= {"code", "codeop", "runpy", "imp", "pty", "multiprocessing", "concurrent", "xmlrpc", "asyncore"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
OS_CALLS = re.compile(r"(system|popen|exec[lv]p?e?|spawn[lv]p?e?|posix_spawnp?|startfile)$")


def offences(tree: ast.AST) -> Iterator[str]:
    """What in a module could run data, or reaches a shell."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from (module for _ in [0] if module.split(".")[0] in MODULES)
            yield from (
                f"{module}.{alias.name}"
                for alias in node.names
                if (module == "os" and OS_CALLS.match(alias.name))
                or (module == "builtins" and alias.name in BUILTINS)
                or (module == "subprocess" and alias.name.startswith("get"))
            )
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.id
        elif isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if (
                (owner == "os" and OS_CALLS.match(node.attr))
                or (owner in ("builtins", "__builtins__") and node.attr in BUILTINS)
                or (owner == "subprocess" and node.attr in ("getoutput", "getstatusoutput"))
                or node.attr == "create_subprocess_shell"
                or node.attr == "read_pickle"
            ):
                yield ast.unparse(node)
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle", "trust_remote_code"):
            yield from (ast.unparse(node) for _ in [0] if ast.unparse(node.value) != "False")


def test_nothing_runs_data() -> None:
    found = {name: found for name, _, tree in sources() if (found := list(offences(tree)))}
    # `pmm-shm run` becomes the program that its user has typed.
    assert found == {"client/pmm_shm_pmm/launching.py": ["os.execvpe"]}


PLANTED = (
    "import pickle",
    "from pickle import loads",
    "import os, marshal",
    "import shelve as store",
    "import yaml",
    "from multiprocessing import Pool",
    "import concurrent.futures",
    "eval(text)",
    "run = eval",
    "exec(compile(text, '', 'exec'))",
    "__import__(name)",
    "import builtins; builtins.exec(text)",
    "from builtins import eval as harmless",
    "import os; os.system('ls')",
    "from os import popen",
    "import os; os.execvp('sh', ['sh'])",
    "import subprocess; subprocess.run('ls', shell=True)",
    "import subprocess; subprocess.run('ls', shell=flag)",
    "import subprocess; subprocess.getoutput('ls')",
    "from subprocess import getoutput",
    "import asyncio; asyncio.create_subprocess_shell('ls')",
    "import numpy as np; np.load(file, allow_pickle=True)",
)


@pytest.mark.parametrize("code", PLANTED)
def test_what_runs_data_is_found(code: str) -> None:
    assert list(offences(ast.parse(code)))


@pytest.mark.parametrize("code", ["import re; re.compile('x')", "run('ls', shell=False)", "import os; os.stat('x')"])
def test_what_is_harmless_is_not_found(code: str) -> None:
    assert not list(offences(ast.parse(code)))
