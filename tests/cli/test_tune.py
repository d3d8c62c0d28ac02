"""``deepseek tune`` as a user calls it: options, settings files, a run that is stopped, merging."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from deepseek.errors import ConfigurationError
from deepseek_cli.settings_options import documented, read_config
from deepseek_cli.tune import _kept
from deepseek_tune.data.cache import DataSettings
from deepseek_tune.settings import LoRASettings
from tests.cli.test_commands import deepseek
from tests.tune.conftest import questions, tiny_model, tokenizer, write_jsonl  # noqa: F401  # fixtures


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "support.jsonl", questions(40))


def test_every_setting_has_words() -> None:
    words = documented(DataSettings) | documented(LoRASettings)
    for field in msgspec.structs.fields(LoRASettings):
        assert len(words[field.name]) > 8 and "``" not in words[field.name], field.name
    help_text = deepseek("tune", "lora", "--help").stdout
    assert "passes over the data. (default: 3)" in help_text
    for field in msgspec.structs.fields(LoRASettings):
        assert f"--{field.name.replace('_', '-')}" in help_text


def test_estimate_train_merge(tiny_model: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    config = tmp_path / "run.yaml"
    config.write_text(
        f"base_model: {tiny_model}\ntrain_data: {data}\nlora_rank: 8\nlearning_rate: 1e-2\nepochs: 7\n"
        f"cache_dir: {tmp_path / 'cache'}\nbatch_tokens: 512\ndtype: fp32\n"
    )
    estimated = deepseek("tune", "estimate", "--config", str(config), "--epochs", "2")
    assert estimated.returncode == 0, estimated.stderr
    assert "parameters (" in estimated.stdout and "held out" in estimated.stdout and "GiB at most" in estimated.stdout
    output = tmp_path / "adapter"
    options = ("--config", str(config), "--epochs", "2", "--target-modules", "q_proj", "--target-modules", "v_proj")
    trained = deepseek("tune", "lora", *options, "--output-dir", str(output), "--rslora")
    assert trained.returncode == 0, trained.stderr
    assert f"deepseek tune merge {output}" in trained.stdout and "--adapter adapter=" in trained.stderr
    run = json.loads((output / "run.json").read_text())
    settings = run["settings"]
    assert (settings["epochs"], settings["lora_rank"], settings["learning_rate"]) == (2, 8, 0.01)
    assert settings["target_modules"] == ["q_proj", "v_proj"] and settings["rslora"] is True
    merged = deepseek("tune", "merge", str(output), str(tmp_path / "merged.gguf"), "--dtype", "f32")
    assert merged.returncode == 0, merged.stderr
    assert "checked: on" in merged.stdout and (tmp_path / "merged.gguf").exists()
    again = deepseek("tune", "merge", str(output), str(tmp_path / "merged.gguf"))
    assert again.returncode == 1 and "exists" in again.stderr


def test_stopped_and_gone_on(tiny_model: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    output = tmp_path / "adapter"
    command = [
        *(sys.executable, "-m", "deepseek_cli.main", "tune", "lora", "--base-model", str(tiny_model)),
        *("--train-data", str(data), "--output-dir", str(output), "--cache-dir", str(tmp_path / "cache")),
        *("--batch-tokens", "256", "--checkpoint-every", "2", "--patience", "0", "--dtype", "fp32"),
    ]
    process = subprocess.Popen(
        [*command, "--epochs", "5000"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's children ignore it
    )
    deadline = time.monotonic() + 120
    while not list((output / "checkpoints").glob("step-*[0-9+]")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what was learned until step" in errors and "The same command goes on from there" in errors
    assert "Traceback" not in errors


def test_what_is_kept_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    assert "the same command starts again" in _kept(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert "holds a finished adapter" in _kept(tmp_path)
    (tmp_path / "checkpoints" / "step-00000012").mkdir(parents=True)
    assert "until step 12 is in" in _kept(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--base-model and --train-data must be given"),
        (["--base-model", "x"], "--train-data must be given"),
        (["--config", "nosuch.yaml"], "nosuch.yaml cannot be read"),
        (["--base-model", "nosuch", "--train-data", "x.jsonl"], "unknown model 'nosuch'"),
        (["--base-model", "x", "--train-data", "y", "--columns", "prompt"], "takes NAME=VALUE"),
        (["--base-model", "x", "--train-data", "y", "--preset", "huge"], "preset must be one of"),
    ],
)
def test_mistakes(arguments: list[str], words: str) -> None:
    result = deepseek("tune", "lora", *arguments)
    assert result.returncode == 1 and words in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def test_settings_files(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-4\nwarmup: 5E-2\nepochs: 3\nlora_alpha: 16.0\nnote: e5\n")
    found = read_config(file)
    assert found == {"learning_rate": 1e-4, "warmup": 0.05, "epochs": 3, "lora_alpha": 16.0, "note": "e5"}
    file.write_text("# nothing yet\n")
    assert read_config(file) == {}
    for text, words in (("- a\n- b\n", "names and values"), ("a: [1\n", "is not YAML"), ("1: 2\n", "names and values")):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=words):
            read_config(file)
    file.write_text("base_model: x\ntrain_data: y\nlora_rnak: 4\n")
    result = deepseek("tune", "lora", "--config", str(file))
    assert result.returncode == 1 and "Did you mean lora_rank" in result.stderr
    file.write_text("!!python/object/apply:os.system [touch /tmp/no]\n")
    with pytest.raises(ConfigurationError, match="is not YAML"):
        read_config(file)
