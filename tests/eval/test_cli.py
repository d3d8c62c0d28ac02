"""`deepseek eval` as its users call it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from markupsafe import escape
from tests.eval.test_stored import stored
from tests.eval.test_task_file import written
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


def test_two_models_are_compared_in_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = answers(tmp_path, ""), answers(tmp_path, "travel")
    monkeypatch.setattr("deepseek_eval.run.open_all", _open_without_the_catalogue)
    both = str(tmp_path / "both")
    arguments = ["run", "--stored", str(good), "--stored", str(bad), "--tasks", "sib200_en", "-o", both]
    result = RUNNER.invoke(command, [*arguments, "--data", str(tmp_path / "data"), "--published", "gpt-4o"])
    assert result.exit_code == 0, result.output
    table = result.stdout.split("travel against right")[1]
    assert "p (Holm)" in table and "-85.7%" in table and "worse" in table
    page = (tmp_path / "both" / "report.html").read_text()
    assert "1 worse" in page and "gpt-4o-2024-08-06" in page
    assert RUNNER.invoke(command, ["compare", both, "--fail-if", "worse"]).exit_code == 2
    one = json.loads((tmp_path / "both" / "results.json").read_text())["models"][0]["folder"]
    assert isinstance(RUNNER.invoke(command, ["compare", f"{both}#{one}"]).exception, ConfigurationError)


def test_the_command_is_recorded_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek_eval.run.open_all", _open_without_the_catalogue)
    output = tmp_path / "a run"
    arguments = ["run", "--stored", str(answers(tmp_path, "")), "--tasks", "sib200_en", "-o", str(output), "--limit=9"]
    arguments += ["--data", str(tmp_path / "data")]
    monkeypatch.setattr("sys.argv", ["/somewhere/deepseek", "eval", *arguments])
    assert RUNNER.invoke(command, arguments).exit_code == 0
    recorded = json.loads((output / "results.json").read_text())["command"]
    assert shlex.split(recorded) == ["deepseek", "eval", *arguments]
    assert f'<pre tabindex="0">{escape(recorded)}</pre>' in (output / "report.html").read_text()


def test_a_page_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek_eval.run.open_all", _open_without_the_catalogue)
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    arguments = ["run", "--stored", str(answers(tmp_path, "")), "--tasks", "sib200_en", "-o", str(tmp_path / "out")]
    result = RUNNER.invoke(command, [*arguments, "--data", str(tmp_path / "data")])
    assert result.exit_code == 0
    assert "report.html is not written: " in result.stderr and "directory" in result.stderr
    assert "for a browser" not in result.stdout and "100.0%" in result.stdout


def test_nine_models_have_two_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek_eval.run.open_all", _open_without_the_catalogue)
    stored_files = [argument for n in range(9) for argument in ("--stored", str(answers(tmp_path, f"travel{n}")))]
    arguments = ["run", *stored_files, "--tasks", "sib200_en", "-o", str(tmp_path / "out"), "--data"]
    result = RUNNER.invoke(command, [*arguments, str(tmp_path / "data")])
    assert result.exit_code == 0, result.output
    assert "models 1 to 8 of 9" in result.stdout and "models 9 to 9 of 9" in result.stdout
    pages = [(tmp_path / "out" / name).read_text() for name in ("report.html", "report-2.html")]
    assert ["travel7" in page for page in pages] == [True, False]
    assert ["travel8" in page for page in pages] == [False, True]


def test_tasks_of_users_are_reported_and_compared(tmp_path: Path) -> None:
    task = written(tmp_path, id="{city}")
    runs = []
    for name, lima in (("good", "Lima"), ("bad", "Rome")):
        lines = [{"task": "capitals", "id": "Paris", "text": "Paris"}, {"task": "capitals", "id": "Lima", "text": lima}]
        path = stored(tmp_path / f"{name}.jsonl", *lines)
        runs.append(str(tmp_path / name))
        result = RUNNER.invoke(command, ["run", "--stored", str(path), "--tasks", str(task), "-o", runs[-1]])
        assert result.exit_code == 0, result.output
    own = ["--tasks", str(task)]
    compared = RUNNER.invoke(command, ["compare", *runs, *own, "--json", "-o", str(tmp_path / "d.html")])
    assert json.loads(compared.stdout)["tasks"][0]["difference"]["second"] == 0.5
    assert "1 lost" in (tmp_path / "d.html").read_text()
    assert isinstance(RUNNER.invoke(command, ["compare", *runs]).exception, ConfigurationError)
    assert RUNNER.invoke(command, ["report", *runs, *own, "-o", str(tmp_path / "r.html")]).exit_code == 0
    assert "1 lost" in (tmp_path / "r.html").read_text()


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
        (["run", "-o", "x", "-m", "m", "--base-url", "https://me:secret@host/v1"], ConfigurationError),
        (["compare", "nothing", "nothing"], DataError),
        (["compare", "a", "b", "--tasks", "gone.yaml"], DataError),
        (["report", "a", "--tasks", "gsm9k"], ConfigurationError),
        (["compare", "a", "b", "--fail-if", "better"], ConfigurationError),
        (["list", "--suite", "cor"], ConfigurationError),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: type[Exception]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(RUNNER.invoke(command, arguments).exception, error)
