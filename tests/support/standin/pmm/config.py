"""The switches of the two caches, read from the environment when this module executes."""

import os


def _switch(name):
    return os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"}


USE_PROJECTION_CACHE = _switch("PMM_USE_PROJECTION_CACHE")
USE_METRICS_CACHE = _switch("PMM_USE_METRICS_CACHE")
