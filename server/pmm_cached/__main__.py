"""`python -m pmm_cached`."""

from pmm_cached.main import main

if __name__ == "__main__":
    main()
