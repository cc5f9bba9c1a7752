"""The commands of `pmm-shm`, one module for one or a few of them."""
