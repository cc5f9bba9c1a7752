"""`python -m pmm_shm_cli`"""

from pmm_shm_cli.entry import main

if __name__ == "__main__":
    main()
