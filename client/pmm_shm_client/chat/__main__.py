"""`python -m pmm_shm_client.chat`: the same as `pmm-shm chat`."""

import sys

from pmm_shm_client.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "chat")
    main()
