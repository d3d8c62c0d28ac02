"""`deepseek eval` as its users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.eval.test_stored import stored
from typer.testing import CliRunner

from deepseek.errors import ConfigurationError, DataError
from deepseek_cli.eval import eval as command

RUNNER = CliRunner()


def answers(path: Path, text: str) -> Path:
    folder = path / "data" / "sib200" / "annotated" / "eng_Latn"
    folder.mkdir(parents=True, exist_ok=True)
    topics = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
    for name in ("train", "test"):
        rows = [f"{i}\t{topics[i % 7]}\t{name} sentence {i}" for i in range(28)]
        (folder / f"{name}.tsv").write_text("\n".join(["index_id\tcategory\ttext", *rows]) + "\n")
    lines = [{"task": "sib200_en", "id": str(i), "text": text or topics[i % 7]} for i in range(28)]
    return stored(path / f"{text or 'right'}.jsonl", *lines)


def test_list_is_an_array_of_tasks() -> None:
    result = RUNNER.invoke(command, ["list", "--json"])
    assert result.exit_code == 0, result.output
    tasks = json.loads(result.stdout)
    assert len(tasks) >= 26 and {"name", "kind", "languages", "metrics"} <= tasks[0].keys()
    core = json.loads(RUNNER.invoke(command, ["list", "--json", "--suite", "core"]).stdout)
    assert 5 < len(core) < len(tasks)
    assert "sib200_en" in RUNNER.invoke(command, ["list", "--suite", "core"]).stdout


def test_run_and_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = answers(tmp_path, ""), answers(tmp_path, "travel")
    monkeypatch.setattr("deepseek_eval.run.open_all", _open_without_the_catalogue)
    data = ["--data", str(tmp_path / "data")]
    for path in (good, bad):
        run = ["run", "--stored", str(path), "--tasks", "sib200_en", "-o", str(tmp_path / path.stem), *data]
        result = RUNNER.invoke(command, run)
        assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "right" / "results.json").read_text())["models"][0]["evidence"] == "re-scored"
    pair = [str(tmp_path / "right"), str(tmp_path / "travel")]
    assert RUNNER.invoke(command, ["compare", *pair]).exit_code == 0
    failed = RUNNER.invoke(command, ["compare", *pair, "--fail-if", "worse", "--json"])
    assert failed.exit_code == 2
    assert json.loads(failed.stdout)["tasks"][0]["verdict"] == "worse"
    assert RUNNER.invoke(command, ["compare", *reversed(pair), "--fail-if", "worse"]).exit_code == 0


def _open_without_the_catalogue(names: tuple[str, ...], folder: Path, **_: object) -> object:
    """The made-up files above are fewer than those that the catalogue has."""
    from deepseek_eval.datasets import Files

    return {name: Files(name, folder / name) for name in names}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run", "-o", "x"], ConfigurationError),
        (["run", "-o", "x", "-m", "m", "--max-cost", "1"], ConfigurationError),
        (["run", "-o", "x", "-m", "m", "--tasks", "gsm9k"], ConfigurationError),
        (["run", "-o", "x", "-m", "m", "--api", "chat", "--extra-body", "[1]"], ConfigurationError),
        (["run", "-o", "x", "-m", "m", "--api", "chat", "--extra-body", "{"], ConfigurationError),
        (["run", "-o", "x", "--stored", "nothing.jsonl"], DataError),
        (["compare", "nothing", "nothing"], DataError),
        (["compare", "a", "b", "--fail-if", "better"], ConfigurationError),
        (["list", "--suite", "cor"], ConfigurationError),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: type[Exception]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(RUNNER.invoke(command, arguments).exception, error)
