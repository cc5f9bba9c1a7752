"""Every command has examples."""

from __future__ import annotations

import click

from pmm_shm_cli.examples import EXAMPLES
from pmm_shm_cli.main import cli

# Examples.


def test_every_command_has_examples() -> None:
    assert set(EXAMPLES) == set(cli.commands)
    for name, lines in EXAMPLES.items():
        assert 1 <= len(lines) <= 3
        assert any(f"pmm-shm {name}" in line for line in lines)
        shown = click.Context(cli.commands[name], info_name=name).get_help()
        assert "Examples:\n" in shown
        assert all(f"    {line}\n" in shown + "\n" for line in lines)
