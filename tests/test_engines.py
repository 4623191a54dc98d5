# SPDX-License-Identifier: Apache-2.0
"""Which engines are refused, and that each is recognised; the engine for one process."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType, ParallelismConfig
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.training_args import ParallelMode

from hf_sam import SAMTrainer, SAMTrainingArguments
from hf_sam.engine.accelerated import AcceleratedEngine
from hf_sam.engine.choice import check_engine
from hf_sam.engine.table import ENGINES, reentrant
from hf_sam.landscape import Engine
from tests.cases import CASES
from tests.toys import CHECKPOINTING, bert, examples, make_trainer, train

# The package of each of these is missing here, or it wants several devices, so a real trainer is
# given the marks that transformers and accelerate leave on one.


def deepspeed(stage: int = 2, reentrant: bool = False, **config: Any) -> Callable[[Any], None]:
    def mark(trainer: Any) -> None:
        plugin = SimpleNamespace(zero_stage=stage, deepspeed_config=config)
        trainer.accelerator = stand_in(trainer, state=SimpleNamespace(deepspeed_plugin=plugin))
        if reentrant:
            setattr(trainer.args, CHECKPOINTING, True)
            setattr(trainer.args, f"{CHECKPOINTING}_kwargs", {"use_reentrant": True})

    return mark


def fsdp(version: int) -> Callable[[Any], None]:
    def mark(trainer: Any) -> None:
        plugin = SimpleNamespace(fsdp_version=version)
        trainer.accelerator = stand_in(trainer, state=SimpleNamespace(fsdp_plugin=plugin))

    return mark


def fsdp_by_argument(trainer: Any) -> None:
    trainer.args.fsdp = True


def fsdp_by_parallelism(trainer: Any) -> None:
    trainer.accelerator = stand_in(trainer, parallelism_config=ParallelismConfig(dp_shard_size=2))


def loaded(**sizes: int) -> Callable[[Any], None]:
    def mark(trainer: Any) -> None:
        known = inspect.signature(DistributedConfig).parameters
        if not sizes.keys() <= known.keys():
            pytest.skip(f"this transformers knows no {', '.join(sizes.keys() - known.keys())}")
        trainer.is_distributed_loading_by_transformers = True
        trainer.model.config.distributed_config = DistributedConfig(**sizes)

    return mark


def tensor_parallel_model(trainer: Any) -> None:
    trainer.model._tp_size = 2


def parallelism(**sizes: int) -> Callable[[Any], None]:
    def mark(trainer: Any) -> None:
        trainer.accelerator = stand_in(trainer, parallelism_config=ParallelismConfig(**sizes))

    return mark


def several_gpus(trainer: Any) -> None:
    assert trainer.args.parallel_mode == ParallelMode.NOT_PARALLEL
    trainer.args._n_gpu = 2
    assert trainer.args.parallel_mode == ParallelMode.NOT_DISTRIBUTED


def static_graph(trainer: Any) -> None:
    handler = SimpleNamespace(static_graph=True)
    trainer.accelerator = stand_in(trainer, num_processes=2, ddp_handler=handler)


def fp8(trainer: Any) -> None:
    trainer.accelerator = stand_in(trainer, mixed_precision="fp8")


def kind(name: str) -> Callable[[Any], None]:
    def mark(trainer: Any) -> None:
        trainer.accelerator = stand_in(trainer, distributed_type=DistributedType(name))

    return mark


def mode(which: ParallelMode) -> Callable[[Any], None]:
    def mark(trainer: Any) -> None:
        trainer.args = SimpleNamespace(parallel_mode=which, n_gpu=1, fsdp=None)

    return mark


def stand_in(trainer: Any, **differs: Any) -> Any:
    """The trainer's accelerator, but for some attributes."""
    names = ("distributed_type", "parallelism_config", "ddp_handler", "num_processes", "state")
    found = {name: getattr(trainer.accelerator, name, None) for name in names}
    precision = {"mixed_precision": trainer.accelerator.mixed_precision}
    return SimpleNamespace(**found | precision | differs)


MARKS: list[tuple[str, Callable[[Any], None]]] = [
    ("DeepSpeed with ZeRO-3, for all other methods", deepspeed(3)),
    ("DeepSpeed without ZeRO (stage 0)", deepspeed(0)),
    (
        "DeepSpeed's own autocast (torch_autocast in its configuration)",
        deepspeed(torch_autocast={"enabled": True}),
    ),
    ("DeepSpeed with reentrant activation checkpointing", deepspeed(reentrant=True)),
    ("FSDP1 (accelerate's plugin with fsdp_version 1)", fsdp(1)),
    ("FSDP that accelerate does not apply (its plugin needs a GPU)", fsdp_by_argument),
    ("FSDP that accelerate does not apply (its plugin needs a GPU)", fsdp_by_parallelism),
    ("tensor, expert or pipeline parallelism", loaded(tp_size=2)),
    ("tensor, expert or pipeline parallelism", loaded(pp_size=2)),
    ("tensor, expert or pipeline parallelism", loaded(ep_size=2, tp_size=2)),
    ("tensor, expert or pipeline parallelism", tensor_parallel_model),
    ("tensor, expert or pipeline parallelism", parallelism(tp_size=2)),
    ("context or sequence parallelism", parallelism(cp_size=2)),
    ("context or sequence parallelism", parallelism(sp_size=2)),
    ("DDP with a static graph (ddp_static_graph=True)", static_graph),
    ("DataParallel (several GPUs in one process)", several_gpus),
    ("fp8 mixed precision", fp8),
    ("Megatron-LM", kind("MEGATRON_LM")),
    ("SageMaker parallelism", mode(ParallelMode.SAGEMAKER_MODEL_PARALLEL)),
    ("SageMaker parallelism", mode(ParallelMode.SAGEMAKER_DATA_PARALLEL)),
    ("XLA (TPU)", kind("XLA")),
    ("XLA (TPU)", mode(ParallelMode.TPU)),
]


@pytest.mark.parametrize(("name", "mark"), MARKS)
def test_an_engine_is_refused(tmp_path: Path, name: str, mark: Callable[[Any], None]) -> None:
    """By the row's name, with the row's reason."""
    trainer = make_trainer(tmp_path)
    check_engine(trainer)
    mark(trainer)
    row = next(row for row in ENGINES if row.name == name)
    with pytest.raises(NotImplementedError) as refused:
        check_engine(trainer)
    assert str(refused.value) == f"hf_sam does not support {name}: {row.why}"


@pytest.mark.parametrize("key", ["momentum_sam", "previous_sam", "bar", "bi_lora", "head_sam"])
def test_zero_3_is_for_methods_that_see_neither_weights_nor_gradients(
    tmp_path: Path, key: str
) -> None:
    """One pass does not suffice: what is kept of it, or scaled after it, is nobody's to touch."""
    case = next(case for case in CASES if case.key == key)
    trainer = make_trainer(tmp_path, model=case.toy("bert"), sam=key)
    deepspeed(3)(trainer)
    if key == "head_sam":
        check_engine(trainer)
        return
    with pytest.raises(NotImplementedError, match="its gradients are not handed out.*'head_sam'"):
        check_engine(trainer)


ALLOWED = [deepspeed(1), deepspeed(2, fp16={"enabled": True}), fsdp(2), loaded(fsdp_size=2)]


@pytest.mark.parametrize("mark", ALLOWED)
def test_sharding_of_gradients_and_weights_is_allowed(
    tmp_path: Path, mark: Callable[[Any], None]
) -> None:
    trainer = make_trainer(tmp_path)
    mark(trainer)
    check_engine(trainer)


@pytest.mark.parametrize("mark", [fsdp(2), loaded(fsdp_size=2), loaded(dp_replicate_size=2)])
def test_fsdp2_has_no_gradient_of_a_rank_of_its_own(
    tmp_path: Path, mark: Callable[[Any], None]
) -> None:
    trainer = make_trainer(tmp_path, sam_ascent_sync="local")
    mark(trainer)
    with pytest.raises(ValueError, match="'local' is not possible under FSDP2.*'global'"):
        check_engine(trainer)


ASKED: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"use_reentrant": False}, False),
    ({"use_reentrant": True}, True),
    ({"preserve_rng_state": True}, True),  # torch's own choice
]


@pytest.mark.filterwarnings("ignore:.*use_reentrant parameter should be passed:UserWarning")
@pytest.mark.parametrize("by_arguments", [True, False])
@pytest.mark.parametrize(("chosen", "expected"), ASKED)
def test_the_mode_of_activation_checkpointing(
    tmp_path: Path, chosen: dict[str, Any], expected: bool, by_arguments: bool
) -> None:
    """It is known when the trainer is built; torch leaves parts of a gradient out in it."""
    network = bert()
    arguments = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": chosen} if by_arguments else {}
    if not by_arguments:
        getattr(network, f"{CHECKPOINTING}_enable")(chosen or None)
    trainer = make_trainer(tmp_path, built=network, max_steps=1, **arguments)
    assert reentrant(trainer) is expected
    trainer.train()
    assert trainer._run.engine._whole_backward is expected
    batch = trainer._prepare_inputs(trainer.data_collator(examples("bert", 2)))
    refused = (
        pytest.raises(RuntimeError, match="to not have been used") if expected else nullcontext()
    )
    with refused:
        torch.autograd.grad(network(**batch).loss, network.bert.encoder.layer[0].output.dense.bias)


def test_the_mode_of_checkpointing_that_is_off_or_of_some_layers(tmp_path: Path) -> None:
    """Keywords that are not torch's leave the choice to transformers."""
    trainer = make_trainer(tmp_path)
    setattr(trainer.args, f"{CHECKPOINTING}_kwargs", {"use_reentrant": True})
    assert not reentrant(trainer)
    setattr(trainer.args, CHECKPOINTING, True)
    assert reentrant(trainer)
    setattr(trainer.args, f"{CHECKPOINTING}_kwargs", {"every_n_layers": 2, "offload": False})
    assert not reentrant(trainer)


def test_fsdp_without_a_device_to_shard_over(tmp_path: Path, monkeypatch: Any) -> None:
    """As `accelerate launch --config_file accelerate_configs/fsdp2.yaml` on a CPU asks for it."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"distributed_type=FSDP .* runs on cpu.*DistributedConf"):
        make_trainer(tmp_path)


def test_every_row_that_refuses_is_tested() -> None:
    assert {row.name for row in ENGINES if row.applies is not None} == {name for name, _ in MARKS}


def test_the_table() -> None:
    """Supported engines have no test for being found; the others say what to do instead."""
    for row in ENGINES:
        some = "head_sam, none" if "for head_sam" in row.name else "all"
        assert row.methods == ("refused" if row.applies else some)
        assert row.why and not row.why.endswith(".")
    remedies = ("use ", "start one", "leave it out")
    assert all(any(r in row.why for r in remedies) for row in ENGINES if row.applies)
    assert len({row.name for row in ENGINES}) == len(ENGINES)


def test_a_trainer_refuses_when_it_is_built(tmp_path: Path) -> None:
    """Before any data is read or step trained."""
    args = SAMTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    args._n_gpu = 2
    with pytest.raises(NotImplementedError, match="DataParallel.*torchrun --nproc_per_node"):
        SAMTrainer(model=bert(), args=args, train_dataset=examples("bert"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_ascent_of_each_rank_needs_a_method_that_allows_it(tmp_path: Path, case: Any) -> None:
    """Those whose state or update looks at the ascent gradient refuse it, others take it."""
    settings = {"sam": case.key, "sam_options": case.options or None, "model": case.toy("bert")}
    trainer = make_trainer(tmp_path, **settings)
    if trainer._method.local_ascent:
        make_trainer(tmp_path, **settings, sam_ascent_sync="local")
        return
    assert case.stateful or trainer._method.needs_here
    with pytest.raises(ValueError, match=f"'local' is not possible with {case.key}.*'global'"):
        make_trainer(tmp_path, **settings, sam_ascent_sync="local")


def test_one_process_averages_nothing(tmp_path: Path) -> None:
    """Gradients change hands without a copy, and a local ascent does not exist."""
    trainer = train(tmp_path, max_steps=1, sam_ascent_sync="local")
    engine = trainer._run.engine
    assert isinstance(engine, AcceleratedEngine) and not engine.local_ascent
    params = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    for one in (engine, Engine()):
        grad = torch.full((2,), 3.0)
        params[0].grad = grad
        taken = one.take_grads(params)
        assert taken[0] is grad and taken[1] is None
        assert params[0].grad is None
        assert one.give(params, taken) is None and params[0].grad is grad
        mean = torch.tensor([2.0])
        one.average_([mean])
        assert mean == 2.0 and one.average_gradients_(params, taken) is taken


def test_a_partial_backward_leaves_the_accelerator_as_it_was(tmp_path: Path) -> None:
    """Also one whose backward somebody has replaced, and after an exception."""
    trainer = train(tmp_path, max_steps=1)
    accelerator, calls = trainer.accelerator, []

    def own(loss: Any, **kwargs: Any) -> None:
        calls.append(sorted(kwargs))
        loss.backward(**kwargs)

    accelerator.backward = own
    params = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    with pytest.raises(RuntimeError), trainer._run.engine.passes(params, [True, False]):
        accelerator.backward((params[0] * params[1]).sum())
        raise RuntimeError
    assert accelerator.backward is own and calls == [["inputs"]]
    assert params[0].grad is not None and params[1].grad is None
