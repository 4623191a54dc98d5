# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from benchmarks import figures, methods, tables
from benchmarks.costs import costs
from glue_scripts.embedded import write_all


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny data and a tiny model."""
    folder = tmp_path_factory.mktemp("embedded")
    write_all(folder, None)
    return folder


ROWS = "none,ssam_f:fisher_samples=3,looksam:k=2,esam"
MEMORY_UPDATES = 4


@pytest.fixture(scope="module")
def result(task: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The result of a measurement of four rows, with a shorter run for memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "MEMORY_UPDATES", MEMORY_UPDATES)
        patch.setattr(methods, "MEMORY_INTERVAL", MEMORY_UPDATES - 1)
        path = methods.main([
            f"--model_name_or_path={task}/model",
            f"--data_dir={task}",
            "--task_name=mrpc",
            f"--methods={ROWS}",
            f"--output_dir={tmp_path_factory.mktemp('results')}",
            *("--updates=4", "--batch_size=4", "--length=32", "--learning_rate=1e-3"),
        ])
    assert path.name == "methods-model-mrpc.json"
    return json.loads(path.read_text())


def test_rows_are_complete(result: dict) -> None:
    assert ",".join(row["text"] for row in result["rows"]) == ROWS
    for row in result["rows"]:
        for name in ("seconds", "cpu_seconds", "forwards", "losses"):
            assert len(row[name]) == 4
        assert len(row["memory"]["peaks"]) == MEMORY_UPDATES


def test_all_start_alike_and_learn(result: dict) -> None:
    assert len({row["fixed_loss"][0] for row in result["rows"]}) == 1
    for row in result["rows"]:
        before, after = row["fixed_loss"]
        assert after < before


def test_passes_are_as_predicted(result: dict) -> None:
    for row in result["rows"]:
        found, predicted = costs(result)[row["text"]], row["predicted"]
        assert found.forwards == pytest.approx(predicted["forwards"]), row["text"]
        assert found.backwards == pytest.approx(predicted["backwards"]), row["text"]
    masked = next(row for row in result["rows"] if row["sam"] == "ssam_f")
    assert masked["forward_examples"] == [8 + 3, 8, 8, 8]


def test_memory_is_measured(result: dict) -> None:
    found = costs(result)
    size = result["parameter_bytes"]
    assert found["none"].extra == 0
    assert found["looksam:k=2"].extra / size == pytest.approx(2.0, abs=0.3)
    assert found["ssam_f:fisher_samples=3"].extra_renewal is not None


def test_memory_alone(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SAM's copy of the weights is seen; nothing is timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "MEMORY_UPDATES", 3)
        path = methods.main([
            *(f"--model_name_or_path={task}/model", f"--data_dir={task}", "--task_name=mrpc"),
            *("--methods=none,sam", "--batch_size=2", "--length=32", "--no-time"),
            f"--output_dir={tmp_path}",
        ])
    assert path.name == "memory-model-mrpc.json"
    found = json.loads(path.read_text())
    none, sam = (max(row["memory"]["peaks"]) for row in found["rows"])
    extra = (sam - none) / found["parameter_bytes"]
    assert extra == pytest.approx(1.0, abs=0.3) and "seconds" not in found["rows"][0]
    assert none > 3 * found["parameter_bytes"]  # gradients and AdamW's two averages
    assert f"{extra:.2f} P)" in capsys.readouterr().out


def test_no_folder_of_the_machine_is_written(result: dict, task: Path) -> None:
    assert "--model_name_or_path=model --data_dir=" in result["command"]
    assert str(task.parent) not in json.dumps(result)


def test_page_and_picture(result: dict, tmp_path: Path) -> None:
    page = tables.readme({"methods-model-mrpc": result})
    assert "| `looksam:k=2` |" in page
    assert "(results/methods-model-mrpc.png)" in page
    assert "(results/methods-model-mrpc-memory.png)" in page
    figures.draw_costs(result, tmp_path / "costs.png")
    figures.draw_memory(result, tmp_path / "memory.png")
    for name in ("costs.png", "memory.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "flags", [["--updates=2", "--drop=2"], ["--batch_size=0"], ["--methods=sam"]]
)
def test_bad_settings_are_refused(flags: list[str]) -> None:
    with pytest.raises(ValueError, match="--"):
        methods.main(["--model_name_or_path=x", "--task_name=mrpc", *flags])
