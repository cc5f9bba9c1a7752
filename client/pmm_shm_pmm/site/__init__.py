"""The folder that `pmm-shm run` puts on PYTHONPATH; it holds nothing else, because every Python there looks into it."""
