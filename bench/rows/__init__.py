"""The rows of the table: number to what measures it."""

from __future__ import annotations

from collections.abc import Callable

from bench.context import Bench
from bench.report import Row
from bench.rows.after_append import not_applied_yet, published
from bench.rows.append import append_alone
from bench.rows.append_and_read import append_and_read
from bench.rows.crowd import crowd
from bench.rows.daemon_start import daemon_start
from bench.rows.file_size import file_size
from bench.rows.message import message
from bench.rows.repeated import repeated
from bench.rows.to_published import to_published
from bench.rows.views import views
from bench.rows.worker import first_read, private_memory
from bench.rows.writers import writers

ROWS: dict[int, Callable[[Bench], Row]] = {
    1: repeated,
    2: published,
    3: not_applied_yet,
    4: append_and_read,
    5: append_alone,
    6: daemon_start,
    7: first_read,
    8: private_memory,
    9: to_published,
    10: writers,
    11: message,
    12: file_size,
    13: views,
    14: crowd,
}
