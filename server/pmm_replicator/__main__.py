"""`python -m pmm_replicator`."""

from pmm_replicator.main import main

main()
