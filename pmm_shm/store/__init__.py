"""The store: projections in LMDB. `layout` has the keys and records, `snapshot` reads them, the daemon writes them by
`writer`.
"""
