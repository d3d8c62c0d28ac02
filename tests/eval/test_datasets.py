"""Where data is found, read and fetched."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from deepseek.errors import ConfigurationError, DataError, DownloadError, IntegrityError
from deepseek_eval import datasets
from deepseek_eval.datasets import Dataset, Files, SourceFile, catalogue, data_folder, known, open_dataset
from deepseek_eval.registry import all_tasks


def test_the_catalogue_is_complete() -> None:
    for name, dataset in catalogue().items():
        assert dataset.files and dataset.licence and dataset.credit, name
        assert len(dataset.commit) == 40 and dataset.repository.count("/") == 1, name
        paths = [file.path for file in dataset.files]
        assert len(set(paths)) == len(paths) and all(len(file.sha256) == 64 and file.size for file in dataset.files)
    used = {name for task in all_tasks().values() for name in task.datasets}
    assert used == set(catalogue())


def test_the_shared_folder_is_what_the_catalogue_says(shared_data: Path) -> None:
    for name, dataset in catalogue().items():
        files = open_dataset(name, shared_data)
        for file in dataset.files:
            assert len(files.data(file.path)) == file.size, file.path
            assert files.sha256(file.path) == file.sha256, file.path


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no dataset 'gsmk8'\. Did you mean gsm8k"):
        known("gsmk8")


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSEEK_EVAL_DATA", raising=False)
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "cache" / "eval-data"
    monkeypatch.setenv("DEEPSEEK_EVAL_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    with pytest.raises(ConfigurationError, match="nowhere does not exist"):
        data_folder(tmp_path / "nowhere")


def test_a_missing_dataset_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset("gsm8k", tmp_path)
    message = str(caught.value)
    assert "gsm8k is not in" in message and "test.jsonl" in message
    assert "openai/grade-school-math" in message and "MIT" in message and "--download" in message


def test_rows_of_every_kind(tmp_path: Path) -> None:
    files = Files("own", tmp_path)
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    (tmp_path / "b.json").write_text('\ufeff[{"x": 1}]')
    (tmp_path / "lines.json").write_text('{"x": 1}\n{"x": 2}')
    (tmp_path / "c.csv").write_text('x,y\r\n1,"a, b"\r\n')
    (tmp_path / "d.tsv").write_text('x\ty\n1\t"a\n')
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b'{"x": 3}'))
    with zipfile.ZipFile(tmp_path / "f.json.zip", "w") as archive:
        archive.writestr("f.json", '{"x": 4}')
    assert [row["x"] for row in files.read("a.jsonl")] == [1, 2]
    assert list(files.read("b.json")) == [{"x": 1}]
    assert len(list(files.read("lines.json"))) == 2
    assert list(files.read("c.csv")) == [{"x": "1", "y": "a, b"}]
    assert list(files.read("d.tsv")) == [{"x": "1", "y": '"a'}]
    assert list(files.read("e.jsonl")) == list(files.read("e.jsonl.gz")) == [{"x": 3}]
    assert files.json("f.json.zip") == {"x": 4}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", b'{"x": 1}\n{"x"', "line 2 is not JSON"),
        ("bad.jsonl", b'{"x": 1}\n[1]\n', "row 2 is not an object"),
        ("bad.json", b"[1, 2", "is not JSON"),
        ("bad.jsonl", b"\xff\xfe", "is damaged"),
        ("bad.jsonl.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9], "cannot be read|is damaged"),
        ("bad.zip", b"PK nonsense", "is damaged"),
        ("bad.txt", b"text", "has no rows"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(Files("own", tmp_path).read(name))
    assert name.removesuffix(".gz") in str(caught.value)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server on this machine in the place of the public one, with one small dataset."""
    root = tmp_path / "source"
    place = root / "owner" / "name" / ("0" * 40)
    place.mkdir(parents=True)
    (place / "rows.jsonl").write_text('{"x": 1}\n')
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    digest = hashlib.sha256(b'{"x": 1}\n').hexdigest()
    dataset = Dataset(
        title="t",
        languages=("en",),
        rows=1,
        licence="MIT",
        credit="c",
        repository="owner/name",
        commit="0" * 40,
        files=(SourceFile("deep/rows.jsonl", "rows.jsonl", 9, digest),),
    )
    monkeypatch.setattr(datasets, "SOURCE", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(datasets, "catalogue", lambda: {"tiny": dataset})
    yield place
    server.shutdown()
    server.server_close()


def test_a_dataset_is_fetched_once(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    files = open_dataset("tiny", folder, download=True)
    assert list(files.read("deep/rows.jsonl")) == [{"x": 1}]
    (source / "rows.jsonl").unlink()
    open_dataset("tiny", folder, download=True)  # asks nobody
    assert not list(folder.rglob("*.partial"))


def test_a_file_that_is_another_one_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "rows.jsonl").write_text('{"x": 2}\n')
    with pytest.raises(IntegrityError, match="is not the file that was promised"):
        open_dataset("tiny", tmp_path / "data", download=True)
    assert not (tmp_path / "data" / "tiny" / "deep" / "rows.jsonl").exists()


def test_a_source_that_does_not_have_it(source: Path, tmp_path: Path) -> None:
    (source / "rows.jsonl").unlink()
    with pytest.raises(DownloadError, match=r"rows.jsonl cannot be fetched"):
        open_dataset("tiny", tmp_path / "data", download=True)


def test_the_catalogue_is_what_the_loader_expects() -> None:
    raw = json.loads(Path(datasets.__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    assert json.loads(msgspec.json.encode(catalogue())) == raw
