"""The contract that daemon and clients share: ledger, folds, store, protocol. Imports neither of them."""

DISTRIBUTION = "pmm-shm"
"""The name of the package that pip installs."""
