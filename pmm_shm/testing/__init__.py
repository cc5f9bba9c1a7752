"""Tests of a fold: `check_fold(MyFold)` checks the laws that exact reads stand on, in any test framework or none."""

from pmm_shm.testing.laws import check_fold

__all__ = ["check_fold"]
