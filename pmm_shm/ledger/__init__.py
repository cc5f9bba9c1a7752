"""The ledger: the truth. Rows, connections, the hash chain, the tail and the freshness mark."""
