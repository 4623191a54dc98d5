# SPDX-License-Identifier: Apache-2.0
"""The process of one run: `python -m hf_sam.compare.child FOLDER EXAMPLES SCRIPT ARGS...`."""

from __future__ import annotations

import signal
import sys


def die_with_parent() -> None:
    """Let the kernel end this process when its parent is gone, even if that was killed (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    die_with_parent()  # before the imports, which take seconds
    from hf_sam.compare.record import main

    main(sys.argv[1:])
