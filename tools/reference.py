"""Writes `docs/reference` (API, CLI, MODULES, SETTINGS) from the code: docstrings, signatures and click commands.

`make docs` runs it. With `--check` it writes nothing, and exits with 1 if a page is out of date. To correct a page,
correct the code.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any, is_typeddict

import click

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
sys.path[:0] = [str(ROOT), str(ROOT / "server"), str(ROOT / "client")]  # this checkout, whatever is installed
_NOTE = "<!-- Written by tools/reference.py from the code: `make docs`. -->"
_WIDTH = 120

# What users meet, in that order. None stands for everything public that a module defines.
_API: tuple[tuple[str, str, tuple[tuple[str, tuple[str, ...] | None], ...]], ...] = (
    (
        "Opening",
        "",
        (
            ("pmm_shm_client", ("connect", "connect_async")),
            ("pmm_shm_client", ("build_self_model_cached", "get_or_compute_ias_gas")),
        ),
    ),
    ("The cache", "", (("pmm_shm_client", ("Cache", "AsyncCache", "Frame")),)),
    ("The ledger", "", (("pmm_shm_client", ("EventLog", "EventDict")), ("pmm_shm.ledger.chain", ("ChainReport",)))),
    (
        "Results",
        "All of them are immutable, except dicts, which are the caller's own. `as_of` is the id of the newest event "
        "that an answer includes. `to_dict()` of a named tuple is a new dict by field names, plain at every depth, "
        "and `to_json()` the same as JSON.",
        (
            ("pmm_shm_client", ("Model", "Identity", "Commitments", "Metrics", "Stage", "Recent")),
            ("pmm_shm.folds.recent", ("Entry", "Telemetry")),
            ("pmm_shm_client.results", ("History", "SelfModelDict", "IdentityDict", "CommitmentsDict")),
            ("pmm_shm.folds.self_model", ("OpenCommitment", "ExpiredCommitment")),
            ("pmm_shm.folds.stage", ("StageSnapshot",)),
            ("pmm_shm.folds.directives", ("Directive", "ActiveDirective")),
            ("pmm_shm.folds.history", ("Point", "StageChange", "NameChange")),
            ("pmm_shm_client", ("Context",)),
            ("pmm_shm_client.context", ("Reflection", "Recalled")),
            ("pmm_shm_client.hits", ("Hits", "Hit", "Recollection")),
            ("pmm_shm.projection.verification", ("VerifyReport",)),
            ("pmm_shm_client.stats", None),
            ("pmm_shm.wire.protocol", ("Announcement",)),
        ),
    ),
    ("Tests", "", (("pmm_shm_client.testing", None), ("pmm_shm_client.pytest_plugin", None))),
    (
        "Folds",
        "[How to write one](../howto/own-fold.md).",
        (
            ("pmm_shm.folds.contract", None),
            ("pmm_shm.folds.state", ("State", "Table", "Touched")),
            ("pmm_shm.folds.helpers", None),
            ("pmm_shm.ledger.rows", ("Event",)),
            ("pmm_shm.frozen", ("frozen",)),
            ("pmm_shm.projection.replay", ("replay",)),
        ),
    ),
    (
        "Embedders",
        "[How to use your own](../howto/own-embedder.md).",
        (
            ("pmm_shm.vectors.embedder", None),
            ("pmm_shm.vectors.function", ("FunctionEmbedder",)),
            ("pmm_shm.vectors.registry", ("find_embedder",)),
        ),
    ),
    (
        "Errors",
        "Each message is one line with the file or value concerned and, if one is known, the remedy; see also "
        "[troubleshooting](../TROUBLESHOOTING.md).",
        (("pmm_shm.errors", None),),
    ),
)
# Classes of which only these methods are for users.
_METHODS: dict[str, tuple[str, ...]] = {"State": ("get", "table", "quarantine"), "Touched": (), "Announcement": ()}
# Variables of other programs that our code reads, each with the file that reads it: checked, so that none is stale.
_OTHERS_VARIABLES: tuple[tuple[str, str, str], ...] = (
    ("NO_COLOR", "client/pmm_shm_terminal/output.py", "if set, the command line prints no colours"),
    (
        "FORCE_COLOR",
        "client/pmm_shm_terminal/output.py",
        "if set, it prints colours to files and pipes, too",
    ),
    ("OPENAI_API_KEY", "pmm_shm/openai_client.py", "the key for an OpenAI-compatible endpoint"),
    ("OPENAI_BASE_URL", "pmm_shm/openai_client.py", "that endpoint, if it is not OpenAI's own"),
    (
        "NOTIFY_SOCKET",
        "server/pmm_cached/notify.py",
        "set by a service manager: the socket to which the daemon reports its status",
    ),
    ("WATCHDOG_USEC", "server/pmm_cached/notify.py", "set by a service manager: how often it expects a sign of life"),
)


def pages() -> dict[str, str]:
    """File name to its up-to-date text."""
    return {"API.md": api(), "CLI.md": cli(), "MODULES.md": modules(), "SETTINGS.md": settings()}


# API.md


def api() -> str:
    parts = ["# API", _NOTE, "Names that begin with an underscore, and modules that are not listed here, are internal."]
    contents = [f"- [{title}](#{title.lower().replace(' ', '-')})" for title, _, _ in _API]
    parts.append("\n".join(contents))
    for title, about, sources in _API:
        parts += [f"## {title}", *([about] if about else [])]
        for module, names in sources:
            for name in names if names is not None else public_names(module):
                parts += described(name, getattr(import_module(module), name), home_of(module))
    return "\n\n".join(parts) + "\n"


def home_of(module: str) -> str:
    """The import that a reader types."""
    return f"from {module} import "


def public_names(module_name: str) -> list[str]:
    """Classes and functions that a module defines itself, in the order of its text."""
    module = import_module(module_name)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]


def described(name: str, found: Any, home: str) -> Iterator[str]:
    yield f"### {name}"
    if inspect.isclass(found) and issubclass(found, Exception):
        bases = " and ".join(f"`{base.__name__}`" for base in found.__bases__)
        yield f"{dressed(inspect.getdoc(found) or '')}\n\nDerives from {bases}."
        return
    own_kind = import_module("pmm_shm.typed").TypedDict
    if is_typeddict(found) or (inspect.isclass(found) and issubclass(found, own_kind)):
        kinds = {key: str(getattr(kind, "__forward_arg__", kind)) for key, kind in found.__annotations__.items()}
        # In the house's quotes: the annotations come without those of the source.
        fields = ["    " + f"{key}: {kind}".replace("'", '"') for key, kind in kinds.items()]
        yield "\n".join(["```python", home + name, "", "", f"class {name}(TypedDict):", *fields, "```"])
        yield dressed(own_doc(found))
        return
    head = f"{name}{signature(found)}" if has_signature(found) else ""
    yield "\n".join(
        ["```python", home + name, *([head if len(head) < _WIDTH else folded(head)] if head else []), "```"]
    )
    yield dressed(own_doc(found))
    if inspect.isclass(found):
        yield from members(found)


def members(kind: type) -> Iterator[str]:
    """The public methods of a class: its own, and those of bases that are not documented themselves."""
    for member, owner in public_methods(kind):
        if member in ("to_dict", "to_json") and hasattr(kind, "_fields"):
            continue  # Said once, above all results.
        function = inspect.getattr_static(owner, member)
        if isinstance(function, property):
            head = member
        else:
            function = getattr(function, "__func__", function)
            prefix = "async " if inspect.iscoroutinefunction(function) else ""
            head = f"{prefix}{member}{signature(function)}"
        assert inspect.getdoc(function), f"{kind.__name__}.{member} has no docstring"
        text = dressed(inspect.getdoc(function) or "")
        first, _, rest = text.partition("\n\n")
        yield f"**`{head}`**\n\n{first}" + (f"\n\n{rest}" if rest else "")


def public_methods(kind: type) -> list[tuple[str, type]]:
    documented = {name for _, _, sources in _API for _, names in sources for name in names or ()}
    result: dict[str, type] = {}
    for owner in reversed(kind.__mro__):
        is_elsewhere = any(issubclass(base, owner) for base in kind.__mro__[1:] if base.__name__ in documented)
        if owner.__module__.split(".")[0] not in ("pmm_shm", "pmm_shm_client") or is_elsewhere:
            continue
        for name, value in vars(owner).items():
            if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
                # An override is listed where it is implemented.
                result.pop(name, None)
                result[name] = owner
    return [(name, owner) for name, owner in result.items() if name in _METHODS.get(kind.__name__, result)]


def has_signature(found: Any) -> bool:
    """Whether users call it: functions, records, and the classes that users construct themselves."""
    if inspect.isfunction(found):
        return True
    is_record = is_dataclass(found) or hasattr(found, "_fields")
    return inspect.isclass(found) and (is_record or found.__name__ in ("EventLog", "FunctionEmbedder"))


def signature(found: Callable[..., Any]) -> str:
    """The signature as written, without `self`, with numbers for constants."""
    own = inspect.signature(found)
    parameters = [one for one in own.parameters.values() if one.name != "self"]
    text = str(own.replace(parameters=parameters))
    text = re.sub(
        r"'([^'\"]*)'", lambda m: m[1] if m.start() and text[m.start() - 2 : m.start()] in (": ", "> ") else m[0], text
    )
    text = re.sub(r"ForwardRef\('(.+?)'\)", r"\1", text)
    if inspect.isclass(found):
        text = text.removesuffix(" -> None")
    return re.sub(r"= (\d+\.\d+)\b", lambda m: f"= {float(m[1]):g}", text)


def folded(head: str) -> str:
    """A long signature with one line per parameter."""
    name, _, rest = head.partition("(")
    inner, _, result = rest.rpartition(")")
    depth, start, found = 0, 0, []
    for index, char in enumerate(inner):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            found.append(inner[start:index].strip())
            start = index + 1
    found.append(inner[start:].strip())
    return "\n".join([f"{name}(", *(f"    {one}," for one in found), f"){result}"])


def own_doc(found: Any) -> str:
    text = inspect.getdoc(found) or ""
    # Without a docstring, `dataclass` and `NamedTuple` generate one from the signature.
    assert text.partition("(")[0] != getattr(found, "__name__", ""), f"{found} has no docstring"
    assert text, f"{found} has no docstring"
    return text


_SECTION = re.compile(r"^(Parameters|Raises|Attributes|Returns):(?: (.+))?$")


def dressed(text: str) -> str:
    """A docstring in Markdown: sections become lists, indented examples stay as they are."""
    parts: list[str] = []
    for paragraph in re.split(r"\n\n+", text.strip()):
        lines = paragraph.splitlines()
        match = _SECTION.match(lines[0])
        if match and match[2] is None and len(lines) > 1:
            parts += [f"{match[1]}:", entries("\n".join(lines[1:]))]
        elif lines[0].startswith("    "):
            parts.append(paragraph)
        else:
            parts.append(" ".join(line.strip() for line in lines))
    return "\n\n".join(parts)


def entries(text: str) -> str:
    """Lines of `name: meaning` as a list; continuation lines are joined."""
    result: list[str] = []
    for line in dedent(text).splitlines():
        if line.startswith("    ") or not re.match(r"[\w, ]+: ", line):
            if not result:
                return " ".join(dedent(text).split())
            result[-1] += " " + line.strip()
        else:
            names, _, meaning = line.partition(": ")
            result.append(f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {meaning}")
    return "\n".join(result)


# CLI.md


def cli() -> str:
    from pmm_shm_cli.main import cli as group

    parts = [
        "# Command line",
        _NOTE,
        help_text(group),
        "Commands: " + ", ".join(f"[{n}](#pmm-shm-{n})" for n in group.commands) + ".",
    ]
    parts += ["## Exit codes of pmm-shm", exit_codes()]
    for name, command in group.commands.items():
        parts += [f"## pmm-shm {name}", *command_page(command, f"pmm-shm {name}")]
    daemon = daemon_command()
    parts += ["## pmm-cached", *command_page(daemon, "pmm-cached")]
    return "\n\n".join(parts) + "\n"


def daemon_command() -> click.Command:
    from pmm_cached import main

    return next(value for value in vars(main).values() if isinstance(value, click.Command))


def command_page(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"    {path} {usage}"
    yield help_text(command)
    rows = [option_row(option) for option in command.params if isinstance(option, click.Option)]
    if any(rows):
        yield table(("option", "default", "meaning"), [row for row in rows if row])
    epilog = (command.epilog or "").replace("\b", "").strip("\n")
    if epilog.strip():
        first, _, rest = epilog.partition("\n")
        yield f"{first}\n\n" + "\n".join(f"    {line.strip()}" for line in rest.splitlines())
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield f"### {path} {name}"
            yield from command_page(below, f"{path} {name}")


def help_text(command: click.Command) -> str:
    """A help text in Markdown; paragraphs that click must not wrap stay as they are."""
    result = []
    for paragraph in re.split(r"\n\n+", inspect.cleandoc(command.help or "")):
        if paragraph.startswith("\b"):
            title, *lines = paragraph[1:].strip("\n").splitlines()
            if title.startswith("Exit codes"):
                result.append(" ".join([title, *(line.strip() for line in lines)]).rstrip(".") + ".")
                continue
            result += [title] if title.endswith(":") else []
            result.append("\n".join(f"    {line.strip()}" for line in ([] if title.endswith(":") else [title]) + lines))
        else:
            result.append(" ".join(paragraph.split()))
    return "\n\n".join(result)


def option_row(option: click.Option) -> tuple[str, str, str] | None:
    if option.name in ("help", "version") or option.hidden:
        return None
    assert option.help, f"{option.opts[0]} has no help"
    names = " / ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f" {value_of(option)}"
    default = (
        ""
        if option.is_flag or option.default is None or not isinstance(option.default, (str, int, float))
        else f"`{shown(option.default)}`"
    )
    if option.secondary_opts:
        default = f"`{option.opts[0] if option.default else option.secondary_opts[0]}`"
    return names + (f" {value.strip()}" if value else ""), default, option.help


def value_of(option: click.Option) -> str:
    """The value's placeholder; not click's own, which differs between its versions."""
    if option.metavar is not None:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    return option.type.name.upper()


def shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"2^{value.bit_length() - 1}" if isinstance(value, int) and value > 1 << 30 else str(value)


def exit_codes() -> str:
    from pmm_shm_cli.main import cli as group
    from pmm_shm_terminal import exits

    told = help_text(group).split("Exit codes: ")[1].split(".")[0]
    said = {int(code): meaning for code, meaning in re.findall(r"(\d) ([^,]+)", told)}
    rows: dict[int, list[str]] = {}
    for kind, code in exits.CODES:
        rows.setdefault(code, []).append(f"`{kind.__name__}`")
    meanings = {**said, **exits.BY_SIGNALS}
    assert meanings.keys() == {
        value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)
    }
    return table(
        ("code", "meaning", "errors that give it"),
        [(str(code), meanings[code], ", ".join(rows.get(code, [])) or other(code)) for code in sorted(meanings)],
    )


def other(code: int) -> str:
    from pmm_shm_terminal import exits

    return "all others" if code == exits.FAILURE else ""


# MODULES.md

_PRODUCT = ("pmm_shm", "server", "client")


def modules() -> str:
    """Every package with its modules: the first sentence of each docstring, and its invariants."""
    parts = [
        "# Modules",
        _NOTE,
        "Every module of the product, by package, with its purpose and its invariants. "
        "[The architecture](../ARCHITECTURE.md#code-map) says where to begin.",
    ]
    for package in sorted(path.parent for top in _PRODUCT for path in (ROOT / top).rglob("__init__.py")):
        lines = []
        for module in sorted(package.glob("*.py")):
            text = docstring_of(module)
            if module.stem not in ("__init__", "__main__"):
                assert text, f"{module} has no docstring"
                lines.append(f"- `{module.name}`: {first_sentence(text)}")
            lines += [f"  - Invariant: {invariant}" for invariant in invariants(text)]
        parts += [f"## {package.relative_to(ROOT)}", first_sentence(docstring_of(package / "__init__.py"))]
        parts += ["\n".join(lines)] if lines else []
    return "\n\n".join(parts) + "\n"


def docstring_of(module: Path) -> str:
    """The docstring of a module's file; nothing is imported."""
    return ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""


def first_sentence(text: str) -> str:
    """Up to the first full stop, in one line."""
    return re.split(r"(?<=[^.]\.)\s", " ".join(text.split("\n\n")[0].split()))[0]


def invariants(text: str) -> list[str]:
    """What follows each "Invariant: " of a docstring, in one line each."""
    return [" ".join(part.split("\n\n")[0].split()) for part in text.split("Invariant: ")[1:]]


# SETTINGS.md


def settings() -> str:
    parts = ["# Settings", _NOTE, "## Environment", *variables()]
    parts += ["## Environment variables of others", table(("variable", "meaning"), others_variables())]
    options = [option_row(one) for one in daemon_command().params if isinstance(one, click.Option)]
    parts += ["## Options of the daemon", table(("option", "default", "meaning"), [one for one in options if one])]
    parts += [
        "## Settings of the service",
        "One file per instance, `/etc/pmm-cached/NAME.env` ([how to](../howto/service.md)):",
        service_settings(),
        "## Limits",
        "They are defined in `pmm_shm/limits.py`. Only those with an option above can be changed.",
        table(("limit", "value", "what it bounds"), limits()),
    ]
    return "\n\n".join(parts) + "\n"


def variables() -> Iterator[str]:
    from pmm_shm import flags

    for function in vars(flags).values():
        text = inspect.getdoc(function) or "" if inspect.isfunction(function) else ""
        match = re.match(r"`(PMM_\w+)`: (.+)", text, re.DOTALL)
        if match:
            yield f"### {match[1]}"
            yield dressed(match[2][0].upper() + match[2][1:])


def others_variables() -> list[tuple[str, str]]:
    for name, path, _ in _OTHERS_VARIABLES:
        assert name in (ROOT / path).read_text(encoding="utf-8"), (name, path)
    return [(f"`{name}`", meaning) for name, _, meaning in _OTHERS_VARIABLES]


def service_settings() -> str:
    """The settings of the example file, with the comment above each."""
    text = (ROOT / "systemd" / "agent.env.example").read_text(encoding="utf-8")
    rows = []
    for paragraph in text.split("\n\n")[1:]:
        *comments, setting = paragraph.strip().splitlines()
        name, _, value = setting.lstrip("#").partition("=")
        rows.append((f"`{name}`", f"`{value}`" if value else "", " ".join(line.lstrip("# ") for line in comments)))
    return table(("setting", "for example", "meaning"), rows)


def limits() -> list[tuple[str, str, str]]:
    """Those that have a docstring."""
    from pmm_shm import limits as module

    body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    result = []
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            name = ast.unparse(node.targets[0])
            result.append((f"`{name}`", with_unit(name, getattr(module, name)), str(after.value.value)))
    return result


def with_unit(name: str, value: float) -> str:
    parts = name.split("_")
    unit = next((part for part in ("MS", "S", "BYTES", "CHARS") if part in parts), "")
    return f"{value:,g} {unit.lower()}".strip() if isinstance(value, float) else f"{value:,} {unit.lower()}".strip()


# All of them.


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines
    )


def main() -> int:
    stale = [name for name, text in pages().items() if not _holds(PAGES / name, text)]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/reference/{name} is out of date: make docs", file=sys.stderr)
        return 1 if stale else 0
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
