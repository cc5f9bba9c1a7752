"""The daemon `pmm-cached`: follows one ledger and publishes its projections in LMDB."""
