"""The command `pmm-shm`: a program above the client library, which does not know it."""
