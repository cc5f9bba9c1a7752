"""Python imports this module at its start where `pmm-shm run` has put its folder on PYTHONPATH.

It installs the replacements, and then runs the `sitecustomize` of the user's Python, if there is one. Pythons without
pmm-shm read it, too.
"""

import importlib
import os
import sys


def _start() -> None:
    try:
        from pmm_shm_pmm.starting import start

        start()
    except Exception as error:
        # Nothing of ours ends the program. Its children do not say it again.
        if os.environ.get("PMM_SHM_RUN") == str(os.getpid()) and sys.stderr is not None:
            has_none = isinstance(error, ImportError)
            why = f"{sys.executable} has no pmm-shm ({error})" if has_none else f"{type(error).__name__}: {error}"
            sys.stderr.write(f"pmm-shm: nothing is replaced: {' '.join(why.split())}\n")


def _run_next() -> None:
    here = os.path.dirname(__file__)
    sys.path[:] = [one for one in sys.path if one != here]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")
    finally:
        if ours is not None:
            sys.modules.setdefault("sitecustomize", ours)


_start()
_run_next()
