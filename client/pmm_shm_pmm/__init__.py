"""PMM on the shared cache: `pmm-shm run` replaces functions of an unmodified PMM by ones that read what pmm-shm knows.

Importing this package changes nothing; `import pmm_shm_pmm.auto` does.
"""
