# SPDX-License-Identifier: Apache-2.0
"""Micro-batch-averaged SAM (mSAM), and `PerGroup`, which does the same with any method."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..landscape import Landscape
from ..parts.radius import Rho
from ..vector import Vector
from .base import Method, Perturbing
from .rehearsal import asks
from .sam import SAM


@dataclass
class PerGroup(Method):
    """Applies `method` to each group of the update's examples by itself.

    The update is the weighted mean of the groups' updates.

    Attributes:
        groups: the number of contiguous groups into which the rank's examples are cut; None makes
            a group of every micro-batch.
        method: the method of each group. It keeps no state, because one update would change the
            state several times.

    Example:
        >>> from hf_sam import ASAM
        >>> from hf_sam.methods import asks
        >>> asks(PerGroup(4, ASAM())).groups
        4
    """

    passes = "as the method, on parts of the batch"
    memory = "as the method, + 1"

    groups: int | None = field(
        metadata={"help": "groups per rank", "low": 1, "whole": True, "optional": True}
    )
    method: Method = field(metadata={"help": "what each group does"})

    def __post_init__(self) -> None:
        """Refuse a method with state, and one that changes layers once per update."""
        super().__post_init__()
        keepers = sorted({type(p).__name__ for p in self.method.walk() if p.stateful})
        if keepers:
            raise ValueError(
                f"{', '.join(keepers)} carries state from update to update, and groups of one "
                "update would each move it: use a method without state per group, or "
                "sam_accumulation='window'"
            )
        if asks(self.method).layers:
            raise ValueError(
                f"{type(self.method).__name__} works on the adapters once per update, not once for "
                "each group of its examples: use sam_accumulation='window'"
            )

    def update(self, at: Landscape) -> Vector:
        """Return the mean of the groups' updates, weighted as their examples or tokens."""
        return mean_of_groups(at, self.groups, self.method)

    @property
    def local_ascent(self) -> bool:
        """Whether the method of a group allows each process an ascent gradient of its own."""
        return self.method.local_ascent


@dataclass
class MSAM(Perturbing):
    """Micro-batch-averaged SAM (mSAM). Behdin et al., arXiv 2302.09693; not Momentum-SAM.

    Update::

        for each group j of the batch's examples:
            here_j  = gradient of L_j at w
            eps_j   = rho here_j / |here_j|
            there_j = gradient of L_j at w + eps_j
        u = weighted mean of the there_j

    Cost: 2 passes' worth of work (smaller batches use a GPU less well), 2 P extra (snapshot and
    sum), no state. An embedding's gradient is dense, so that each of the 2 micro_batches passes
    writes all of it, however few words a group has: 30522 x 384 numbers take one core 27 ms, of
    which 23 go into fresh pages of memory (3 to 4 ms are left under MALLOC_MMAP_MAX_=0 and
    MALLOC_TRIM_THRESHOLD_=4000000000, which make glibc keep its pages).

    Defaults: rho = 0.05 as SAM, 4 groups; expect a smaller best rho with more groups. The paper's
    GLUE settings were not found.

    Deviations: none known. Groups are contiguous and differ by one example at most. Each group has
    the weight that its examples or labels have in the loss of the batch, which is measured in a
    Trainer. Under DDP with local ascent every rank has its own groups, so there are micro_batches
    times as many as there are ranks.

    When it does not help: groups of a few examples perturb along noise. That is wanted against
    wrong labels: with micro_batches = "examples", SAM of each example by itself, the gain comes
    from how single gradients are weighed (Baek et al., ICML 2024, arXiv 2405.03676). Its passes
    have one example each, which takes many times as long.

    Attributes:
        rho: radius of each group's perturbation, weight-space L2 norm, or a schedule for it.
        micro_batches: groups per update and rank; 1 is SAM, "examples" a group of each example.
    """

    paper = "Behdin et al., 2023, arXiv 2302.09693"
    passes = "2"
    memory = "2"
    use = "flatter than SAM at the same work, where the batch is large"
    needs_here = False

    rho: Rho = field(default=0.05, metadata={"help": "radius, weight-space L2 norm", "low": 0.0})
    micro_batches: int | str = field(
        default=4,
        metadata={
            "help": "groups per update and rank",
            "choices": ("examples",),
            "low": 1,
            "whole": True,
            "grid": (2, 4, 8),
        },
    )

    def update(self, at: Landscape) -> Vector:
        """Return the weighted mean of the groups' updates."""
        sam = SAM(self.rho, ascent_fraction=self.ascent_fraction)
        if self.micro_batches == 1:  # bit for bit SAM, without the cost of cutting
            return sam.update(at)
        # There are never more groups than examples.
        groups = AS_MANY if isinstance(self.micro_batches, str) else self.micro_batches
        return mean_of_groups(at, groups, sam)


AS_MANY = 1 << 30
"""A number of groups that no update has examples for."""


def mean_of_groups(at: Landscape, groups: int | None, method: Method) -> Vector:
    """Return the weighted mean of a method's updates for each of several groups of examples.

    Args:
        at: the Landscape of all examples.
        groups: the number of contiguous groups; None makes a group of every micro-batch.
        method: the method of each group.
    """
    alone = method.local_ascent
    total: Vector | None = None
    for share, group in at.groups(None if groups is None else int(groups), descent_only=alone):
        mine = method(group)
        total = mine.mul_(share) if total is None else total.add_(mine, share)
        del mine  # it would take up memory during the next group's passes
    assert total is not None
    # With ascents of their own, ranks need no communication before this one average.
    return at.average_(total) if alone else total
