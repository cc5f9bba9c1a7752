"""`python -m pmm_shm_client.cli`"""

from pmm_shm_client.cli import main

if __name__ == "__main__":
    main()
