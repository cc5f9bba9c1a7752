"""Entry point of `pmm-shm`: `run`, which becomes another program, does not wait for the imports of the others."""

from __future__ import annotations

import sys

# That of `typing` would take as long to import as all else.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Run `pmm-shm` with the arguments of this process."""
    if sys.argv[1:2] == ["run"]:
        _run_at_once(sys.argv[2:])
    import signal

    # Ctrl-C during the imports ends the process without a traceback; then `run_program` handles it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pmm_shm_cli.main import main as main_of_all

    main_of_all()


def _run_at_once(words: list[str]) -> None:
    """Become the program; returns where something is wrong or unusual, which the command itself tells."""
    from pmm_shm_pmm.launching import become, plain_options

    options = plain_options(words)
    if options is not None:
        try:
            become(**options)
        except Exception:
            return
