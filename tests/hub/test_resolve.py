"""Names to files, without any network."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deepseek.errors import CheckpointError, DownloadError, ModelNotFoundError
from deepseek.hub import registry
from deepseek.hub.cache import cache_dir
from deepseek.hub.resolve import is_repository, resolve, resolve_published


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))


def test_cache_dir(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("DEEPSEEK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "deepseek"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "deepseek"


def test_local_file_and_folders(tmp_path, small_gguf, monkeypatch):
    assert resolve(str(small_gguf)).path == small_gguf
    assert resolve(str(small_gguf)).name == "small"
    assert resolve(str(tmp_path)).path == small_gguf  # the only GGUF of a folder
    monkeypatch.chdir(tmp_path)
    assert resolve("small.gguf").path == Path("small.gguf")
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve(str(folder)).path == folder
    assert resolve("org/model").path == Path("org/model")  # an existing folder wins over a repository
    assert resolve("./org/model/").name == "model"


def test_a_published_name_is_never_a_path(tmp_path, small_gguf, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").write_text("{}")
    with pytest.raises(DownloadError, match="not in the cache"):
        resolve_published("org/model", offline=True)
    for name in ("small.gguf", "./small.gguf", str(small_gguf), "../x", "", "\0", "a/b/c"):
        with pytest.raises(ModelNotFoundError):
            resolve_published(name, offline=True)
        assert not is_repository(name)


def test_a_folder_does_not_hide_a_built_in_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m-instruct").mkdir()
    with pytest.raises(DownloadError, match="deepseek pull smollm2-135m-instruct"):
        resolve("smollm2-135m-instruct", offline=True)
    with pytest.raises(CheckpointError, match="not a model folder"):
        resolve("./smollm2-135m-instruct", offline=True)


def test_local_things_that_are_no_models(tmp_path, small_gguf):
    small_gguf.unlink()
    with pytest.raises(CheckpointError, match="neither a config"):
        resolve(str(tmp_path))
    other = tmp_path / "model.bin"
    other.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"give a \.gguf file"):
        resolve(str(other))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"name one of them: a\.gguf, b\.gguf"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("smollm2-135m-instuct", "smollm2-135m-instruct"),
        ("SmolLM2", "smollm2-135m-instruct"),
        ("deepseek-v2", "deepseek-v2.1"),
        ("qwen2.5-coder", "qwen2.5-coder-1.5b-instruct"),
        ("gemma3-270m", "gemma-3-270m"),
        ("./gemma-3-270m.gguf", "gemma-3-270m"),
    ],
)
def test_unknown_names_get_the_nearest(name, suggestion):
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(name, offline=True)
    assert suggestion in caught.value.suggestions
    assert suggestion in str(caught.value)


NOTHING = ["", " ", "no-such-thing", "a/b/c", "../nowhere", "x\0y", "-/-", "é/ü", "~no-user-1/x", "a" * 5000]


@pytest.mark.parametrize("name", NOTHING)
def test_names_that_are_nothing(name):
    with pytest.raises(ModelNotFoundError):
        resolve(name, offline=True)


def test_repository_that_is_not_cached():
    with pytest.raises(DownloadError, match="network is switched off"):
        resolve("some-org/some-model", offline=True)


def test_models_command(tmp_path, monkeypatch):
    import typer

    from deepseek_cli.models import models

    app = typer.Typer()
    app.command()(models)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    for known in registry.known_models():
        line = next(line for line in result.output.splitlines() if line.startswith(known.name))
        assert known.licence in line
        assert " no " in line
    assert "= deepseek-v2.1" in result.output
