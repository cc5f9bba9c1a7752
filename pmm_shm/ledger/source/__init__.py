"""The log of record in PostgreSQL, the source of a replica: an SQLite ledger that a follower fills.

Nothing outside of this package imports psycopg, which is in the extra `postgres`.
"""
