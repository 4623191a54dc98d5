# SPDX-License-Identifier: Apache-2.0
"""What every test starts from: no network, an empty cache, one thread, the same seed."""

import gc
import logging
import os
import random
import sys
import tempfile

# Before torch or transformers are imported: they read these once.
_CACHE = tempfile.TemporaryDirectory(prefix="hf_sam_tests_", ignore_cleanup_errors=True)
os.environ.update(
    HF_HOME=_CACHE.name,
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from hf_sam.methods import Method, rehearsal  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("hf_sam", deadline=None, derandomize=True)
settings.load_profile("hf_sam")


OURS = ("hf_sam", "glue_scripts", "shared_scripts", "vision_scripts")


def _missing(item: pytest.Item) -> str | None:
    """Says what this machine lacks for the test, or None."""
    if item.get_closest_marker("gpu") and not torch.accelerator.is_available():
        return "torch sees no accelerator"
    if item.get_closest_marker("distributed") and not torch.distributed.is_available():
        return "this build of torch has no torch.distributed"
    if item.get_closest_marker("real") and not _data().is_dir():
        return f"HF_SAM_DATA={str(_data())!r} is no folder with real data (see tests/README.md)"
    return None


def _data() -> Path:
    return Path(os.environ.get("HF_SAM_DATA", "real_data"))


@pytest.fixture(autouse=True)
def _usual_verbosity() -> None:
    """Undoes what a benchmark in another test has switched off; the scripts' logs follow it."""
    if transformers_logging.get_verbosity() != logging.WARNING:  # to set it takes a while
        transformers_logging.set_verbosity_warning()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips, with the reason, what this machine cannot run."""
    for item in items:
        if reason := _missing(item):
            item.add_marker(pytest.mark.skip(reason=reason))


_frozen_at = 0


def pytest_runtest_setup() -> None:
    """Lets the garbage collector pass over the libraries: every `train()` calls it, twice."""
    global _frozen_at
    # Much of them is imported by the first trainings only.
    if len(sys.modules) > _frozen_at + 20:
        gc.collect()
        gc.freeze()
        _frozen_at = len(sys.modules)


@pytest.fixture(autouse=True, scope="session")
def _rehearse_once() -> Iterator[None]:
    """Rehearses each method once: a rehearsal takes as long as a quarter of a tiny training."""
    known: dict[Any, Any] = {}
    rehearse = rehearsal._rehearse

    def once(method: Method, batches: int) -> Any:
        # By its classes and hyper-parameters, as a test may define another class of that name.
        key = (*map(type, method.walk()), repr(method), batches)
        if key not in known:
            known[key] = rehearse(method, batches)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "_rehearse", once)
        yield


@pytest.fixture(autouse=True)
def _loggers_speak() -> None:
    """Undoes what a library's logging configuration (alembic's, under optuna) switched off.

    And torch's sixty loggers hand on what they are told: pytest hangs two handlers on each one that
    does not, three times per test.
    """
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith((*OURS, "torch")) and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    """Makes a test's result independent of the tests before it."""
    random.seed(0)
    np.random.seed(0)
    if torch.accelerator.is_available():
        torch.manual_seed(0)
    else:  # it formats the whole stack for devices that are not there
        torch.default_generator.manual_seed(0)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data that HF_SAM_DATA names; for tests marked `real`."""
    return _data()
