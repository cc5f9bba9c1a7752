"""The store: projections in LMDB. `layout` says what lies where, `snapshot` reads it, `writer` is the daemon's."""
