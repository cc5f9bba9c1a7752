"""The daemon `pmm-cached`: follows one ledger and publishes its projections in LMDB."""

import os

# The daemon multiplies no matrices, and idle threads of numpy's library would keep its cores from the workers.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
