# SPDX-License-Identifier: Apache-2.0
"""The output head of a Trainer's model, and the rest of a pass as a function of its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..landscape import HeadOnly, HeadTap, RandomStates, Replay, Restore
from .contexts import attribute
from .head_search import REMEDY, find_head

RunStep = Callable[[nn.Module, bool], Tensor]
"""Runs `training_step` of a batch with a model, and says whether it does so from inside a pass."""


class Head:
    """The output head of a model, behind which a tap stands during a pass.

    A method asks for the rest of the pass as a function of the logits. The loss may come from the
    model, a function of the user's, a smoother or any `compute_loss`, so nobody holds such a
    function. But `training_step` can be called once more from inside of the head. If that call
    finds every module in front of the head done (it gets back what the module has just returned)
    and the head's output given, it is that function. It runs the model's own code on a graph that
    begins at the logits, without hooks and wrappers: an engine, checkpointing and autocast see one
    forward and one backward. `torch.compile` leaves the head and that call out of its graphs.

    Args:
        accelerator: the Trainer's accelerator.
        model: the model, without a wrapper for several processes.
        head: its output head.
        replay: all state that a pass changes.
    """

    def __init__(self, accelerator: Any, model: nn.Module, head: nn.Module, replay: Replay) -> None:
        self._accelerator, self._model, self._replay = accelerator, model, replay
        self._head, self._around = head, _path(model, head)
        self._before = list(_beside(self._around, head))
        self._outputs: list[list[Any]] = [[] for _ in self._before]
        self._random = RandomStates({p.device for p in model.parameters()})
        pairs = zip(self._before, self._outputs, strict=True)
        # Made once, because compiled code is for these functions only.
        self._forwards = [_recording(module.forward, outputs) for module, outputs in pairs]
        self._forward, self._tapped = head.forward, torch.compiler.disable(self._run)

    def backward(self, run: RunStep, model: nn.Module, tap: HeadTap) -> Tensor:
        """Run a pass with the tap behind the head; without a graph, the pass ends at the loss.

        Args:
            run: runs the pass.
            model: the model, as accelerate has prepared it.
            tap: the tap.

        Returns:
            The `()` loss of the logits that the tap has returned.

        Raises:
            NotImplementedError: the head does not run, or runs more than once.
        """
        self._tap, self._run_step, self._graph = tap, run, torch.is_grad_enabled()
        self._calls: list[Tensor] = []
        self._done = self._again = False
        self._start = self._random.remember()
        modules = [*self._before, self._head]
        to_nothing = nullcontext() if self._graph else self._backward_is(lambda *_, **__: None)
        try:
            with to_nothing, _attributes("forward", modules, [*self._forwards, self._tapped]):
                loss = run(model, False)
        finally:
            self._forget()
        if self._done:
            return loss
        raise NotImplementedError(
            f"the output head ({type(self._head).__name__}) does not run in a pass: a fused cross "
            "entropy (use_liger_kernel) makes the loss from its weight, without logits; switch "
            f"that off, or {REMEDY}"
        )

    def _backward_is(self, backward: Callable[..., None]) -> AbstractContextManager[None]:
        """Replace `accelerator.backward` inside the block."""
        return attribute(self._accelerator, "backward", backward)

    def _forget(self) -> None:
        """Let go of the outputs, which would stay in memory during the backward."""
        for outputs in self._outputs:
            outputs.clear()

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the head in a pass, and have the tap replace its output."""
        output = self._forward(*args, **kwargs)
        # A call without a graph beside others, as of a reference model, is not the loss's.
        if self._again or (self._graph and not torch.is_grad_enabled()):
            self._calls.append(output)
            return output
        if self._done and not self._graph:
            return output  # nothing is wanted of this pass any more
        if self._done:
            raise NotImplementedError(f"the output head runs more than once in a pass; {REMEDY}")
        h = args[0] if args else next(iter(kwargs.values()))
        _check_linear(self._head, h, output)
        given = [list(outputs) for outputs in self._outputs]
        rest = partial(self._loss_of, given, list(self._calls), self._random.remember())
        self._calls.append(output)
        try:
            output = self._tap(h, output, rest)
        except HeadOnly:
            pass
        except _NotThisCall:
            return output
        self._done = True
        self._forget()
        return output

    def _loss_of(
        self, given: list[list[Any]], before: list[Tensor], at_head: Restore, logits: Tensor
    ) -> Tensor:
        """Return the loss of logits, by another call of `training_step`."""
        modules: list[nn.Module] = [*self._around, *self._before, self._head]
        calls: list[Callable[..., Any]] = [_bare(module) for module in self._around]
        calls += [
            _replaying(module, outputs) for module, outputs in zip(self._before, given, strict=True)
        ]
        calls.append(self._answering(before, at_head, logits))
        losses: list[Tensor] = []
        self._again = True
        try:
            with self._replay.no_trace(), self._backward_is(lambda one, **_: losses.append(one)):
                self._start()
                with _attributes("_compiled_call_impl", modules, calls):  # what a call looks for
                    self._run_step(self._model, True)
        finally:
            self._again = False
            at_head()
        return losses[0]

    def _answering(
        self, before: list[Tensor], at_head: Restore, logits: Tensor
    ) -> Callable[..., Any]:
        """Return the head's stand-in: it gives back earlier outputs, then the logits, then runs."""
        answers = iter(before)
        answered = False

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal answered
            for answer in answers:
                return answer
            if answered and torch.is_grad_enabled():
                raise NotImplementedError(
                    f"the output head runs more than once in a pass; {REMEDY}"
                )
            if answered:
                return self._head._call_impl(*args, **kwargs)
            if not torch.is_grad_enabled():
                raise _NotThisCall
            answered = True
            at_head()  # dropout behind the head draws what it draws in the pass
            return logits

        return call


class _NotThisCall(Exception):
    """Raised where the head has run without a graph for something else than the loss."""


def head_of(trainer: Any, method: Any, name: str, replay: Replay) -> Head:
    """Return the output head of a trainer's model.

    Args:
        trainer: the Trainer.
        method: the method, some part of which has the pattern of its name in `head`.
        name: the method's name, for messages.
        replay: all state that a pass changes.

    Raises:
        ValueError: there is no such head, or `sam_where` chooses weights for a method that
            perturbs nothing but the head.
    """
    where = getattr(trainer.args, "sam_where", ["all"])
    alone = any(getattr(p, "one_gradient", False) and hasattr(p, "head") for p in method.walk())
    if alone and where != ["all"]:
        raise ValueError(
            f"sam_where={where} chooses weights to perturb, and {name} perturbs the output head, "
            "whichever weights are trained: leave sam_where at 'all', and give "
            "sam_options={'head': REGEX} for another layer"
        )
    pattern = next(part.head for part in method.walk() if hasattr(part, "head"))
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    return Head(trainer.accelerator, model, find_head(model, pattern), replay)


def _path(module: nn.Module, head: nn.Module) -> list[nn.Module]:
    """Return the modules that the head is in, from the model on."""
    if module is head:
        return []
    child = next(c for c in module.children() if any(m is head for m in c.modules()))
    return [module, *_path(child, head)]


def _beside(around: list[nn.Module], head: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that those around the head may call, without what is inside of them."""
    known = {id(module) for module in (*around, head)}

    def called(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if id(child) in known:
                continue
            known.add(id(child))
            # A container has no forward: its modules are called one by one.
            yield from called(child) if isinstance(child, CONTAINERS) else (child,)

    for module in around:
        yield from called(module)


CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def _recording(forward: Callable[..., Any], outputs: list[Any]) -> Callable[..., Any]:
    """Return a forward that keeps what it returns."""

    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        outputs.append(output)
        return output

    return recorded


def _replaying(module: nn.Module, outputs: list[Any]) -> Callable[..., Any]:
    """Return a call that gives back outputs one by one, and runs the module when they are used."""
    left = iter(outputs)

    def call(*args: Any, **kwargs: Any) -> Any:
        for output in left:
            return output
        return module._call_impl(*args, **kwargs)

    return call


def _bare(module: nn.Module) -> Callable[..., Any]:
    """Return a call without hooks: those of engines expect that a backward follows."""
    return lambda *args, **kwargs: module.forward(*args, **kwargs)


@contextmanager
def _attributes(name: str, modules: list[nn.Module], values: list[Any]) -> Iterator[None]:
    """Give each module an attribute of its own inside the block."""
    with ExitStack() as stack:
        for module, value in zip(modules, values, strict=True):
            stack.enter_context(attribute(module, name, value))
        yield


def _check_linear(head: nn.Module, h: Any, z: Any) -> None:
    """Refuse a head whose output is not the product of its input with a matrix."""
    if isinstance(h, Tensor) and isinstance(z, Tensor) and h.shape[:-1] == z.shape[:-1]:
        return
    raise ValueError(
        f"the output head ({type(head).__name__}) makes of {_shape(h)} {_shape(z)}, which is not "
        f"what a linear layer does: {REMEDY}"
    )


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
