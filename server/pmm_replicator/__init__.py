"""The follower of a log of record in PostgreSQL: a process of its own, and the only writer of a replica.

`pmm-cached --source` starts and supervises it. The daemon imports nothing of it, and so needs no psycopg.
"""
