"""One thread for torch, set before anything imports it, here and in what tests start.

Several threads wait for each other at every operation. Where other processes keep the cores busy, a test of a second
then takes minutes, and the limit of time ends it. What is equal bit for bit is equal at equal thread counts.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
