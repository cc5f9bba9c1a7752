"""The contract that daemon and clients share: ledger, folds, store, protocol. Imports neither of them."""
