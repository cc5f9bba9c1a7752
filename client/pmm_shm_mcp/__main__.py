"""`python -m pmm_shm_mcp`: the same as `pmm-shm mcp`."""

from pmm_shm_mcp.command import mcp
from pmm_shm_terminal.program import run_program

if __name__ == "__main__":
    run_program(mcp, "pmm-shm mcp")
