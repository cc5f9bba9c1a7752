"""The instance directory of a ledger: its paths, its permissions, the file systems it may be on."""
