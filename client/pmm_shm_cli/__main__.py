"""`python -m pmm_shm_cli`"""

from pmm_shm_cli.main import main

if __name__ == "__main__":
    main()
