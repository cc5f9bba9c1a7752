"""A conversation: each line of the standard input is a message, each line of the output a reply."""

import os
import sys

from pmm.runtime.loop import Runtime
from pmm.storage.eventlog import EventLog


def main():
    runtime = Runtime(EventLog(os.environ["PMM_DB"]))
    for line in sys.stdin:
        print(runtime.handle_user(line.strip()), flush=True)


if __name__ == "__main__":
    main()
