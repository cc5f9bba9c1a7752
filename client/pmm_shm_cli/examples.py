"""The examples of `--help` and the manual pages. The tests run them, in this order, in one directory."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "demo": ("pmm-shm demo --seconds 2", "pmm-shm demo --workers 2 --seconds 2 --keep demo-files"),
    "generate": ("pmm-shm generate sample.db --events 3000 --seed 7",),
    "append": (
        "pmm-shm append agent.db user 'hello again' --create",
        "pmm-shm append agent.db reflection 'It went well.' --meta '{\"tone\": \"calm\"}'",
        "echo 'a longer text' | pmm-shm append agent.db user -",
    ),
    "chat": ("pmm-shm chat agent.db", "echo 'What did I ask for?' | pmm-shm chat agent.db --no-autostart"),
    "log": (
        "pmm-shm log agent.db -n 3",
        "pmm-shm log agent.db --kind user --since 2h --json",
    ),
    "context": ("pmm-shm context agent.db", "pmm-shm context agent.db 'What did I ask for?' --messages 4"),
    "status": ("pmm-shm status agent.db", "pmm-shm status agent.db --json"),
    "top": ("pmm-shm top agent.db --once",),
    "doctor": ("pmm-shm doctor agent.db", "pmm-shm doctor --json"),
    "read": (
        "pmm-shm read agent.db identity",
        "pmm-shm read agent.db metrics --json",
        "pmm-shm read agent.db frame --consistency wait",
    ),
    "replay": ("pmm-shm replay agent.db metrics", "pmm-shm replay sample.db identity --until 1000 --json"),
    "embed": ("pmm-shm embed agent.db", "pmm-shm embed agent.db --text 'a flat tyre'"),
    "search": ("pmm-shm search agent.db 'a longer text' -k 2", "pmm-shm search agent.db hello --scope 1,2 --json"),
    "recall": ("pmm-shm recall agent.db 'a longer text' -k 1",),
    "verify": ("pmm-shm verify agent.db", "pmm-shm verify agent.db --fold metrics --no-chain"),
    "invalidate": ("pmm-shm invalidate agent.db --fold stage",),
    "backup": ("pmm-shm backup agent.db backup.db",),
    "restore": (
        "pmm-shm restore backup.db agent.db",
        "pmm-shm restore backup.db agent.db --no-keep --json",
    ),
    "export": ("pmm-shm export agent.db > agent.jsonl",),
    "import": ("pmm-shm import agent.jsonl copy.db", "pmm-shm export copy.db | pmm-shm import - second.db --json"),
    "explain": (
        "pmm-shm explain agent.db identity.name",
        "pmm-shm explain agent.db trait o --limit 0",
        "pmm-shm explain agent.db metrics --until 1000 --json",
    ),
    "web": ("pmm-shm web agent.db --open",),
    "plot": ("pmm-shm plot agent.db -o agent.svg",),
    "bench": ("pmm-shm bench agent.db --seconds 1", "pmm-shm bench sample.db --json"),
    "run": (
        "pmm-shm run --ledger agent.db -m pmm.cli.chat",
        "pmm-shm run --report uvicorn pmm.api.server:app --workers 2",
        "PMM_SHM_PATCHES=log,projection pmm-shm run --no-daemon worker.py",
    ),
    "mcp": ("pmm-shm mcp agent.db", "pmm-shm mcp agent.db --write user_message,assistant_message"),
    "stop": ("pmm-shm stop agent.db",),
    "cluster": (),
    "completion": ("source <(pmm-shm completion bash)",),
}
"""By command: lines for a shell (bash, if it matters)."""


def epilog(lines: tuple[str, ...]) -> str:
    """The examples in the form that click prints below the options without wrapping."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
