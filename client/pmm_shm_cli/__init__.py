"""The command `pmm-shm`, a program on top of the client library."""
