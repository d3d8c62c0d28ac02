"""Pages in a file: the same answers to the bit, found corruption, and nothing left behind."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from deepseek.attention import policy
from deepseek.config import EngineConfig
from deepseek.engine import spill_file
from deepseek.engine.block_pool import BlockPool
from deepseek.engine.engine import MOST_RECOMPUTED, Engine
from deepseek.engine.events import EngineEvent, GenerateRequest, TokenEvent
from deepseek.engine.memory import PagePlan, SpillPlan, plan_pages
from deepseek.engine.spill import least_resident
from deepseek.engine.spill_file import open_spill_file
from deepseek.errors import ConfigurationError, ContextLengthError
from deepseek.kernels.cpu.extension import obstacle
from deepseek.models.base import SPILL_UNIT, SpillSpace
from deepseek.models.native import NativeDecoder
from deepseek.models.registry import load_native_model
from deepseek.sampling import SamplingParams
from tests.fakes import make_engine, run
from tests.parity import tiny

PAGE = 16
RESIDENT = 32
TOTAL = 32 + 160
needs_native = pytest.mark.skipif(obstacle() is not None, reason=f"native kernels: {obstacle()}")


@cache
def model(kv_dtype: str = "fp16") -> NativeDecoder:
    checkpoint = tiny.checkpoint(tiny.build("llama-large"))
    return load_native_model(checkpoint, scheme="int8", kv_dtype=kv_dtype, threads=2)


@pytest.fixture(autouse=True)
def free() -> Iterator[None]:
    yield
    model.cache_clear()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that counts as one on a disk, wherever the tests run."""
    monkeypatch.setattr(spill_file, "_IN_MEMORY", ())
    return tmp_path


def spilled_engine(decoder: NativeDecoder, folder: Path, **settings: Any) -> tuple[Engine, int]:
    """An engine with RESIDENT pages in memory, and a descriptor of its file."""
    file = open_spill_file(str(folder), (TOTAL - RESIDENT) * decoder.spill_page_bytes(PAGE))
    return engine(decoder, spill=SpillSpace(file, RESIDENT), **settings), file


def engine(decoder: NativeDecoder, **settings: Any) -> Engine:
    options: dict[str, Any] = {"page_size": PAGE, "num_pages": TOTAL, "max_context": 2048}
    options |= {"max_batch_tokens": 64, "max_running": 4}
    return make_engine(decoder, **options | settings)  # type: ignore[arg-type]


def wanted(name: str, length: int, answer: int = 40, start: int = 0) -> GenerateRequest:
    prompt = [(5 * i * i + 11 * i + i // 97) % tiny.VOCAB for i in range(start, start + length)]
    params = SamplingParams(max_tokens=answer, seed=3, temperature=1.2, ignore_eos=True, logprobs=4)
    return GenerateRequest(name, prompt, params)


def said(events: list[EngineEvent], name: str) -> list[tuple[int | None, Any]]:
    return [(e.token_id, e.logprobs) for e in events if isinstance(e, TokenEvent) and e.request_id == name]


def answers(served: Engine, *requests: GenerateRequest) -> list[list[tuple[int | None, Any]]]:
    for request in requests:
        served.add(request)
    events = run(served, 5000)
    return [said(events, request.request_id) for request in requests]


def damage(file: int) -> None:
    """Change a byte in each 64 of what is in the file."""
    size = os.fstat(file).st_size
    data = bytearray(os.pread(file, size, 0))
    for i in range(0, size, 64):
        data[i] ^= 0x55
    os.pwrite(file, bytes(data), 0)


@needs_native
@pytest.mark.parametrize("kv_dtype", ["fp16", "int8"])
def test_answers_are_those_of_pages_in_memory_to_the_bit(kv_dtype: str, disk: Path) -> None:
    decoder = model(kv_dtype)
    edge = RESIDENT * PAGE
    requests = [wanted(f"r{n}", n, start=n) for n in (edge - 1, edge, edge + 1, 800, 20)]
    expected = answers(engine(decoder), *requests)
    served, _ = spilled_engine(decoder, disk)
    assert answers(served, *requests) == expected
    stats = served.stats()
    assert stats.kv_spill_moved > 0
    assert stats.kv_spill_checked > 0
    assert stats.kv_spill_corrupt == 0
    assert stats.pages_free == TOTAL


@needs_native
@pytest.mark.parametrize("kv_dtype", ["fp16", "int8"])
def test_sparse_attention_reads_the_same_from_the_file(
    kv_dtype: str, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "SPARSE_DENSE_UNTIL", 448)
    checkpoint = tiny.checkpoint(tiny.build("llama-large"))
    decoder = load_native_model(checkpoint, scheme="int8", kv_dtype=kv_dtype, threads=2, indexed=True)
    options: dict[str, Any] = {"page_size": 64, "num_pages": 96, "attention": "sparse", "attention_error": 0.1}
    options |= {"question_tokens": 100, "max_running": 2}
    requests = [wanted("a", 1500), wanted("b", 1100, start=300), wanted("short", 90, start=7)]
    expected = answers(engine(decoder, **options), *requests)
    assert expected != answers(engine(decoder, **options | {"attention": "dense"}), *requests)
    file = open_spill_file(str(disk), 80 * decoder.spill_page_bytes(64))
    served = engine(decoder, spill=SpillSpace(file, 16), **options)
    assert answers(served, *requests) == expected
    assert served.stats().kv_spill_moved > 0


@needs_native
def test_pages_that_are_written_are_in_memory(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = model()
    served, _ = spilled_engine(decoder, disk)
    slots: list[int] = []
    forward = decoder.forward

    def watched(batch: Any, store: Any) -> Any:
        slots.extend(batch.layout.write_slots.tolist())
        return forward(batch, store)

    monkeypatch.setattr(decoder, "forward", watched)
    answers(served, wanted("a", 1500), wanted("b", 700, start=9), wanted("c", 3, start=77))
    assert slots
    assert max(slots) < RESIDENT * PAGE


@needs_native
def test_prefixes_are_found_in_the_file_and_checked(disk: Path) -> None:
    served, _ = spilled_engine(model(), disk)
    (first,) = answers(served, wanted("a", 1000))
    answers(served, wanted("b", 900, start=5000))
    checked = served.stats().kv_spill_checked
    moved = served.stats().kv_spill_moved
    assert moved > 0
    served.add(wanted("again", 1000))
    events = run(served, 5000)
    assert said(events, "again") == first
    assert next(e.cached_tokens for e in events if isinstance(e, TokenEvent)) >= 900
    assert served.stats().kv_spill_checked >= checked + 20


@needs_native
def test_a_corrupt_prefix_is_computed_again(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    served, file = spilled_engine(model(), disk)
    (first,) = answers(served, wanted("a", 1000))
    damage(file)
    served.add(wanted("again", 1000))
    events = run(served, 5000)
    assert said(events, "again") == first
    assert next(e.cached_tokens for e in events if isinstance(e, TokenEvent)) < 500
    assert served.stats().kv_spill_corrupt >= 1
    assert "corrupt" in caplog.text


@needs_native
def test_a_disk_that_damages_everything_fails_a_request(disk: Path) -> None:
    served, file = spilled_engine(model(), disk)
    served.add(wanted("a", 1000, answer=400))
    events: list[EngineEvent] = []
    for _ in range(5000):
        events += served.step()
        if not served.has_work:
            break
        damage(file)
    last = events[-1]
    assert isinstance(last, TokenEvent)
    assert last.finish_reason == "error"
    assert "spill file damaged" in str(last.error)
    assert served.stats().kv_spill_corrupt > MOST_RECOMPUTED
    assert served.stats().pages_free == TOTAL


@needs_native
def test_corruption_under_a_running_request_is_found_and_its_pages_computed_again(disk: Path) -> None:
    request = wanted("a", 1000, answer=400)
    (expected,) = answers(engine(model()), request)
    served, file = spilled_engine(model(), disk)
    served.add(request)
    events: list[EngineEvent] = []
    while not events:
        events += served.step()
    damage(file)
    sound = len(said(events, "a"))
    events += served.step()  # checks before it computes
    for _ in range(2 * TOTAL):
        if served.stats().kv_spill_corrupt:
            break
        events += served.step()
    assert served.stats().kv_spill_corrupt
    assert served.stats().preemptions == 1
    assert len(said(events, "a")) <= sound + 2 * TOTAL
    (sequence,) = [*served.scheduler.running]
    prefix = list(sequence.tokens)
    events += run(served, 5000)
    assert len(said(events, "a")) == 400
    if len(prefix) - 1000 == sound:  # found before anything was sampled from it
        assert said(events, "a") == expected


@needs_native
def test_preempted_sequences_find_their_pages_in_the_file(disk: Path) -> None:
    requests = [wanted(f"r{i}", 900, answer=300, start=1000 * i) for i in range(4)]
    expected = answers(engine(model(), num_pages=400), *requests)
    served, _ = spilled_engine(model(), disk)
    assert answers(served, *requests) == expected
    assert served.stats().preemptions > 0
    assert served.stats().kv_spill_moved > 0


@needs_native
def test_a_context_beyond_memory_and_file_is_refused_at_once(disk: Path) -> None:
    served, _ = spilled_engine(model(), disk, max_context=2**20)
    assert (served.max_context, served.context_limit) == (TOTAL * PAGE, "kv_cache")
    with pytest.raises(ContextLengthError, match=str(TOTAL * PAGE)):
        served.add(wanted("x", TOTAL * PAGE))
    assert not served.has_work


@needs_native
def test_a_file_that_is_too_small_is_refused(disk: Path) -> None:
    file = open_spill_file(str(disk), 4096)
    with pytest.raises(ValueError, match="too small"):
        engine(model(), spill=SpillSpace(file, RESIDENT))


def test_the_file_has_no_name_and_its_room_is_taken(disk: Path) -> None:
    file = open_spill_file(str(disk), 2**20 + 1)
    status = os.fstat(file)
    assert list(disk.iterdir()) == []
    assert (status.st_size, status.st_nlink, status.st_mode & 0o777) == (2**20 + 1, 0, 0o600)
    assert status.st_blocks * 512 >= 2**20
    os.close(file)


def test_file_systems_without_nameless_files_lose_the_name_at_once(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without(path: Any, flags: int, *mode: int, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", without)
    file = open_spill_file(str(disk), 4096)
    assert list(disk.iterdir()) == []
    assert os.fstat(file).st_mode & 0o777 == 0o600
    os.close(file)


def test_a_process_that_is_killed_leaves_nothing(disk: Path) -> None:
    script = f"""
        from deepseek.engine import spill_file
        spill_file._IN_MEMORY = ()
        spill_file.open_spill_file({str(disk)!r}, 2**20)
        print("open", flush=True)
        import time
        time.sleep(60)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    child.stdout.close()
    assert list(disk.iterdir()) == []


def test_a_disk_without_room_is_an_error_at_the_start(disk: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"1048576\.00 GiB are needed .* GiB are free there"):
        open_spill_file(str(disk), 2**50)


def test_a_disk_that_fills_up_meanwhile_is_an_error_too(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ConfigurationError, match="are free there"):
        open_spill_file(str(disk), 4096)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_limit_on_file_sizes_is_an_error_at_the_start(disk: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(ConfigurationError, match="ulimit -f"):
            open_spill_file(str(disk), 2**21)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a folder"):
        open_spill_file(str(tmp_path / "none"), 4096)
    if Path("/dev/shm").is_dir():
        with pytest.raises(ConfigurationError, match="memory itself"):
            open_spill_file("/dev/shm", 4096)


def test_settings_go_together() -> None:
    for alone in ({"kv_spill_bytes": 1}, {"kv_spill_dir": "/x"}):
        with pytest.raises(ConfigurationError, match="go together"):
            EngineConfig(**alone)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="kv_spill_bytes"):
        EngineConfig(kv_spill_bytes=0, kv_spill_dir="/x")


def plan(room: int, file: int, *, context: int = 64_000, kept: int = 10) -> PagePlan:
    spill = SpillPlan(file, each=100 - kept, unit=SPILL_UNIT, least=30)
    return plan_pages(100, page_size=64, max_context=context, max_running=1, budget=room, spill=spill)


@pytest.mark.parametrize("kept", [0, 10])
@pytest.mark.parametrize("room", [3200, 3299, 4000, 9999, 50_000, 99_999])
@pytest.mark.parametrize("file", [1, 90 * SPILL_UNIT - 1, 90 * SPILL_UNIT, 9000, 10**6])
def test_plans_keep_to_memory_and_file(room: int, file: int, kept: int) -> None:
    made = plan(room, file, kept=kept)
    assert made.resident * 100 + made.spilled * kept <= room
    assert made.spilled * (100 - kept) <= file
    assert made.resident >= 32
    assert made.resident % SPILL_UNIT == made.spilled % SPILL_UNIT == 0
    assert made.total < 1000 + 2 * SPILL_UNIT


def test_what_fits_in_memory_gets_no_file() -> None:
    assert plan(100_000, 10**6) == PagePlan(1000)
    assert plan(99_900, 10**6) == PagePlan(992, 16)
    with pytest.raises(ConfigurationError, match="its least is"):
        plan(3199, 10**6)


def test_the_least_in_memory_counts_both_ends_of_chunks() -> None:
    assert least_resident(4, 64, 16) == 2 * 4 + 2 * 4 + 2


def test_swapping_keeps_the_books() -> None:
    pool, rng = BlockPool(48, resident=16), random.Random(5)
    live: list[list[int]] = []
    for step in range(4000):
        if live and rng.random() < 0.45:
            pool.release(live.pop(rng.randrange(len(live))))
        elif (pages := pool.allocate(rng.randint(1, 5))) is not None:
            if rng.random() < 0.6:
                pool.seal(pages[0], step.to_bytes(32, "big"))
            live.append(pages)
        for pages in live:
            for i, page in enumerate(pages):
                if page < 16 or i == 0:
                    continue
                victim = pool.blank_resident()
                victim = pool.cached_resident() if victim is None else victim
                if victim is not None:
                    pool.swap(victim, page)
                    pages[i] = victim
        held = {page for pages in live for page in pages}
        assert pool.num_free == 48 - len(held)
        assert all(pool.is_held(page) == (page in held) for page in range(48))
    for pages in live:
        pool.release(pages)
    everything = pool.allocate(48)
    assert everything is not None
    assert sorted(everything) == list(range(48))


def test_content_that_is_swapped_or_forgotten() -> None:
    pool = BlockPool(4, resident=2)
    names = [bytes([i]) * 32 for i in range(2)]
    pages = pool.allocate(2)
    assert pages == [0, 1]
    for page, name in zip(pages, names, strict=True):
        pool.seal(page, name)
    pool.release(pages)
    (new,) = pool.allocate(1) or []
    assert new >= 2
    victim = pool.cached_resident()
    assert victim == 1
    pool.swap(victim, new)
    assert pool.match(names) == [0, new]
    pool.forget([0])
    assert pool.match(names) == []
    assert pool.num_free == 3
