"""The names of the answers that a command line can ask for (WHAT)."""

from __future__ import annotations

NAMES = (
    "self-model",
    "identity",
    "commitments",
    "metrics",
    "stage",
    "directives",
    "active-directives",
    "recent",
    "history",
    "frame",
)
"""Every WHAT except the names of registered folds."""

CHOICES = f"one of {', '.join(NAMES)}, or the name of a registered fold (or MODULE:CLASS of another)"
"""What WHAT can be, in words."""

STRICT = frozenset({"self-model", "frame"})
"""The answers for which `--strict` has a meaning."""

WHY_NOT_APPLICABLE = "this is a ledger of PMM 2, which has no adopted name, OCEAN traits, IAS, GAS or stage"
"""Why some answers do not apply to a ledger; `Cache.not_applicable` has their names."""
