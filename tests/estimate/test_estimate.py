# SPDX-License-Identifier: Apache-2.0
"""`hf-sam estimate`: counts against the table of methods, bytes by hand, measured cells."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import machine
from benchmarks.costs import costs
from hf_sam import METHODS, cli
from hf_sam.estimate import command, rehearsal
from hf_sam.estimate.costs import PLAIN, Setting, estimate, moved, sent, time
from hf_sam.estimate.work import Moved, flops_of
from tests.cases import CASES, Case
from tests.estimate.stand_in import CORE, flops_and_weights, passes_of

TWO = rehearsal.Passes(2.0, 2.0, 2.0, 16.0)
BYTES = 4e6
"""Of a million numbers in fp32."""


@pytest.fixture(autouse=True)
def _fewer_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "UPDATES", 40)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_passes_are_those_of_the_table(case: Case) -> None:
    """Of a mean update over the run; renewals and passes of a part of a batch count apart."""
    options = {k: v for k, v in case.options.items() if k != "fisher_samples"}
    found = rehearsal.passes(METHODS[case.key](**options), 8)
    total = rehearsal.UPDATES
    wanted = statistics.fmean(case.passes(step, total) for step in range(total))
    apart = {"esam": 1.5, "msam": 2.0, "ssam_f": 2.0, "tail_sam": 1.075}
    wanted = apart.get(case.key, wanted)
    assert found.backwards == pytest.approx(wanted, abs=0.02)


def test_a_schedule_and_a_part_of_the_batch_are_cheaper() -> None:
    method = command.the_method("sam:when=after:0.7,ascent_fraction=0.25")
    found = rehearsal.passes(method, 8)
    assert found.forwards == found.backwards == pytest.approx(1 + 0.3 * 0.25)


@pytest.mark.parametrize(
    "key", ["sam", *(pytest.param(k, marks=pytest.mark.slow) for k in METHODS if k != "sam")]
)
def test_memory_is_that_of_the_table(key: str) -> None:
    found = rehearsal.memory(METHODS[key], METHODS["none"])
    case = next((case for case in CASES if case.key == key), None)
    wanted = 0.0 if case is None else (case.mask_p or case.extra_p)
    slack = 0.1 * max(wanted, 1.0)
    if key in ("rsam", "flat_lora"):  # which draw noise outside of torch
        assert max(found.values()) <= wanted + slack
    elif key != "esam":  # perturbs some tensors by chance
        assert max(found.values()) == pytest.approx(wanted, abs=slack)


def test_bytes_by_hand() -> None:
    """A million weights on four devices: a ring sends 3/4 of them, an all-reduce twice that."""
    ring = BYTES * 3 / 4
    ddp = Setting(1e6, 1e6, 4, "ddp", "bf16")
    assert sent(ddp, 1, 1, plain=True) == 2 * ring
    assert sent(ddp, 2, 1, plain=False) == 2 * ring  # local ascent: no more than none
    assert sent(ddp, 2, 2, plain=False) == 4 * ring
    fsdp2 = Setting(1e6, 1e6, 4, "fsdp2", "fp32")
    assert sent(fsdp2, 1, 1, plain=True) == 3 * ring
    assert sent(fsdp2, 2, 2, plain=False) == 6 * ring
    zero = Setting(1e6, 1e6, 4, "zero2", "fp32")
    assert sent(zero, 1, 1, plain=True) == 3 * ring
    assert sent(zero, 2, 1, plain=False) == 5 * ring
    assert sent(zero, 2, 2, plain=False) == 7 * ring
    half = Setting(1e6, 1e6, 4, "fsdp2", "bf16")
    assert sent(half, 1, 1, plain=True) == 1.5 * ring
    lora = Setting(1e6, 1e4, 4, "ddp", "fp32")
    assert sent(lora, 1, 1, plain=True) == pytest.approx(2 * ring / 100)
    assert sent(Setting(1e6, 1e6, 1, "ddp"), 2, 2, plain=False) == 0


@pytest.mark.parametrize(
    ("engine", "gpus", "precision", "p"),
    [
        ("one", 1, "bf16", BYTES),
        ("ddp", 8, "bf16", BYTES),
        ("fsdp2", 8, "bf16", BYTES / 8),
        ("zero2", 8, "fp32", BYTES),
        ("zero2", 8, "bf16", BYTES / 2),
    ],
)
def test_one_copy_on_a_device(engine: str, gpus: int, precision: str, p: float) -> None:
    setting = Setting(1e6, 1e6, gpus, engine, precision)
    assert setting.p == p
    assert estimate(setting, TWO, {"descent": 1.5}, False).memory == {"descent": 1.5 * p}


def measured() -> Any:
    result = machine.read(machine.RESULTS / "methods-minilm-mrpc.json")
    found = costs(result)
    # How often AE-SAM perturbs is up to the data.
    rows = [row for row in result["rows"] if row["sam"] not in ("none", "ae_sam")]
    return [(row, found[row["text"]], result) for row in rows]


@pytest.mark.parametrize(("row", "cost", "result"), measured())
def test_the_measured_costs_are_within_a_tenth(row: Any, cost: Any, result: Any) -> None:
    """Processor seconds of MiniLM on MRPC."""
    settings = result["settings"]
    found = passes_of(row["sam"], row["options"], settings["batch_size"])
    assert found.backwards == pytest.approx(row["predicted"]["backwards"], rel=0.1)
    flops, weights = flops_and_weights("minilm", settings["batch_size"], settings["length"])
    setting = Setting(weights, result["parameters"], 1, "one", "fp32", flops, CORE)
    assert time(setting, found) == pytest.approx(cost.cpu, rel=0.1)


def test_time_by_hand() -> None:
    """A million weights, half of them trained, and a batch of 4e6 FLOPs at one FLOP per byte.

    A forward takes 4e6 and a backward 6e6; a pass moves 8e6 + 2e6, two walks 4e6, AdamW 20e6.
    """
    setting = Setting(1e6, 0.5e6, 1, "one", "fp32", 4e6, 1.0)
    assert moved(setting, PLAIN) == 10e6 + 10e6 + 20e6
    passes = rehearsal.Passes(2.0, 2.0, 2.0, 2.0)
    assert time(setting, passes) == (20e6 + 20e6 + 4e6 + 20e6) / 40e6
    large = replace(setting, flops=4e12)
    assert time(large, passes) == pytest.approx(2, rel=1e-4), "only computing grows with the batch"
    sharded = replace(setting, gpus=4, engine="fsdp2")
    assert moved(sharded, PLAIN) == 10e6 + 10e6 + 5e6
    assert moved(replace(setting, balance=0.0), PLAIN) == 1e6 + 10e6 + 20e6, "10 in fp32"


def test_bytes_that_operations_move() -> None:
    a, b = torch.ones(8), torch.ones(8)  # 32 bytes each
    with Moved() as found:
        operations = {
            "a sum": lambda: a + b,
            "in place": lambda: a.add_(b),
            "only written": lambda: a.copy_(b),
            "a view": lambda: a.view(2, 4),
            "of a list": lambda: torch._foreach_mul_([a, b], 2.0),
        }
        bytes = {}
        for name, operation in operations.items():
            before = found.bytes
            operation()
            bytes[name] = found.bytes - before
    wanted = {"a sum": 96, "in place": 96, "only written": 64, "a view": 0, "of a list": 128}
    assert bytes == wanted


def test_flops_of_a_forward(tmp_path: Any) -> None:
    """Of tokens and images by torch's counter; of a model it cannot run, two for each weight."""
    from tests.toys import bert

    model = bert().to("meta")
    one, two = (flops_of(model, 4, length) for length in (8, 16))
    assert two > 2 * one > 0, "attention grows with the square of the length"
    layer = model.bert.encoder.layer[0]
    matrices = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    assert one > len(model.bert.encoder.layer) * 2 * 4 * 8 * sum(m.weight.numel() for m in matrices)
    other = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 3)).to("meta")
    assert flops_of(other, 5, 7) == 2 * 12 * 35


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "memory", lambda make, plain: {"descent": 1.0})
    words = ["--parameters", "7B", "--trainable", "20M", "--gpus", "8", "--scale"]
    words += ["--batch", "1x1", "--balance", "1"]
    assert cli.main(["estimate", "--sam", "sam:rho=0.1", *words]) == 0
    shown = capsys.readouterr().out
    assert "extra memory a device, descent (MB)" in shown and " 76 " in shown
    # GB, or GFLOP at one per byte, of a token: none computes 28 and moves 56 + 0.8, sam moves
    # 16 copies of 0.08 besides twice as much of the first two: 170.3 / 84.9.
    assert re.search(r"^ *time +2.01 +1.00", shown, re.M)
    assert "local ascent" in shown and "70 B" in shown and "512 devices" in shown


def test_a_model_is_counted_without_its_weights(tmp_path: Any) -> None:
    from tests.toys import bert

    model = bert()
    model.config.architectures = ["BertForSequenceClassification"]
    model.config.save_pretrained(tmp_path)
    found = command.model_of(str(tmp_path))
    assert all(p.is_meta for p in found.parameters())
    assert sum(map(torch.numel, found.parameters())) == sum(map(torch.numel, model.parameters()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sam", "sma"], "'sma' is not a method"),
        (["--sam", "sam,asam"], "give one method"),
        (["--sam", "sam", "--engine", "zero3"], "--engine zero3 is refused: .*use zero2"),
        (["--sam", "sam", "--engine", "fsdp3"], "--engine fsdp3: choose from one, ddp"),
        (["--sam", "sam", "--engine", "one", "--gpus", "2"], "--gpus 2 --engine one"),
        (["--sam", "sam", "--engine", "fsdp2", "--ascent", "local"], "refused under fsdp2"),
        (["--sam", "friendly_sam", "--ascent", "local"], "refused with friendly_sam"),
        (["--sam", "sam", "--trainable", "2B"], "--trainable 2e\\+09: the model has 1e\\+09"),
    ],
)
def test_what_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["estimate", "--parameters", "1B", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("text", ["7X", "", "-1M", "B", "nan"])
def test_numbers(text: str) -> None:
    assert command.number("1.5M") == 1.5e6 and command.number("12") == 12
    with pytest.raises(Exception, match="no number|above zero"):
        command.number(text)
