"""`python -m pmm_shm_chat`: the same as `pmm-shm chat`."""

from pmm_shm_chat.command import chat
from pmm_shm_terminal.program import run_program

if __name__ == "__main__":
    run_program(chat, "pmm-shm chat")
