"""`import pmm_shm_pmm.auto`: from here on, PMM in this process runs on the shared cache.

Import it before PMM. Afterwards is allowed where every reference to PMM's functions can be replaced.
"""

from __future__ import annotations

from pmm_shm_pmm.installing import install

install()
