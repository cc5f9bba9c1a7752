"""The benchmarks of `make bench`: every figure is a ratio of two things measured in the same run, in turns.

`rows` has one module for each row or two of the table in `docs/BENCHMARKS.md`, `peers` what the product is compared
with; `report` is what comes out, `plots` and `page` what is made of it. Not shipped.

Invariant: no answer is timed before it was compared with what it must be.
"""
