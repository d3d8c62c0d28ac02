"""Recorded steps: replayed on other batches than they were recorded with, they are those batches' steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deepseek.adapters.adapter import Host
from deepseek.adapters.read import WEIGHTS
from deepseek.adapters.settings import CONFIG
from deepseek.attention.policy import SparsePolicy
from deepseek.engine.computation import CudaLauncher, Launcher
from deepseek.engine.events import GenerateRequest
from deepseek.kernels.ops import Ops
from deepseek.kernels.paging import PagedLayout
from deepseek.kernels.registry import Backend, Registry
from deepseek.kernels.triton import ops as triton_ops
from deepseek.models.base import Batch, KVCache, Model
from deepseek.models.decoder import Decoder
from deepseek.models.graphed import GraphedDecoder, Replay, cuda_recorder
from deepseek.models.registry import load_model
from deepseek.sampling import SamplingParams
from tests.engine.launchers import Late
from tests.fakes import make_engine, run, tokens_of
from tests.kernels.cases import randn
from tests.kernels.triton.devices import DEVICE
from tests.parity import tiny

PROMPTS = [[5, 17, 3, 88, 41, 2, 9], [11, 12, 13], [7] * 20, [1, 2], [90, 4, 4, 4]]


class Recorder:
    """On a GPU CUDA graphs; elsewhere the computation itself, on whatever its buffers then hold."""

    def __init__(self) -> None:
        self.count = 0
        self.replayed = 0
        self._cuda = cuda_recorder(DEVICE) if DEVICE.type == "cuda" else None

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        self.count += 1
        if self._cuda is not None:
            return self._cuda(compute)
        result = torch.empty(0)

        def replay() -> None:
            self.replayed += 1
            result.set_(compute())

        replay()
        return replay, result


def decoder(name: str, backend: str) -> Decoder:
    functions = (
        triton_ops.functions
        if backend == "triton"
        else __import__("deepseek.kernels.torch_ops", fromlist=["x"]).functions
    )
    registry = Registry([Backend(backend, DEVICE.type, 1, functions)])
    ops = Ops(registry.bind(DEVICE.type))
    return load_model(tiny.checkpoint(tiny.build(name)), ops=ops, dtype=torch.float32, device=DEVICE)


def answers(model: object, lengths: list[int], launcher: Launcher | None = None) -> list[list[int]]:
    engine = make_engine(model, page_size=16, num_pages=40, launcher=launcher)  # type: ignore[arg-type]
    for index, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=False)):
        engine.add(GenerateRequest(f"r{index}", prompt, SamplingParams(temperature=0.0, max_tokens=length)))
    events = run(engine)
    return [tokens_of(events, f"r{index}") for index in range(len(lengths))]


def save_adapter(folder: Path, host: Host, rank: int, targets: tuple[str, ...], seed: int) -> None:
    """As peft would, which is not on every machine with a GPU."""
    tensors: dict[str, Tensor] = {}
    for name, site in host.sites.items():
        if name.rpartition(".")[2] in targets:
            for part, shape in (("lora_A", (rank, site.inputs)), ("lora_B", (site.outputs, rank))):
                tensors[f"base_model.model.{name}.{part}.weight"] = randn(*shape, seed=seed + len(tensors)) * 0.2
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / CONFIG).write_text(json.dumps(config))


def adapted(model: Model, folders: list[Path]) -> list[list[int]]:
    """Answers of the model alone, of an adapter, and of one that comes while the first is used and changes more
    matrices."""
    engine = make_engine(model, page_size=16, num_pages=40)
    engine.load_adapter("first", str(folders[0]))
    sampling = SamplingParams(temperature=0.0, max_tokens=4)
    engine.add(GenerateRequest("alone", PROMPTS[1], sampling))
    engine.add(GenerateRequest("early", PROMPTS[1], sampling, adapter="first"))
    events = [event for _ in range(2) for event in engine.step()]
    engine.load_adapter("second", str(folders[1]))
    engine.add(GenerateRequest("late", PROMPTS[1], sampling, adapter="second"))
    events += run(engine)
    return [tokens_of(events, name) for name in ("alone", "early", "late")]


def test_steps_with_adapters_are_recorded_too(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    plain = decoder("llama-wide", "torch")
    save_adapter(folders[0], plain.host, 4, ("q_proj", "up_proj"), seed=1)
    save_adapter(folders[1], plain.host, 17, ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"), seed=50)
    expected = adapted(plain, folders)
    record = Recorder()
    assert adapted(GraphedDecoder(decoder("llama-wide", "triton"), record), folders) == expected
    assert len({tuple(answer) for answer in expected}) == 3, "adapters must make a difference"
    assert 0 < record.count < record.replayed


@pytest.mark.parametrize("name", ["llama-wide", "deepseek-v2-wide"])
def test_recorded_steps_give_the_same_answers(name: str) -> None:
    lengths = [12, 9, 11, 8]
    expected = answers(decoder(name, "torch"), lengths)
    record = Recorder()
    recorded = GraphedDecoder(decoder(name, "triton"), record)
    assert answers(recorded, lengths) == expected
    assert record.count == 2  # of 4 rows, which three are padded to, and of 2


@pytest.mark.parametrize(
    "name,kv_dtype", [("llama-wide", "auto"), ("llama-wide", "int8"), ("deepseek-v2-wide", "int8")]
)
def test_recorded_steps_take_the_tokens_of_the_step_before(name: str, kv_dtype: str) -> None:
    lengths = [12, 9, 11, 8]
    plain, own = decoder(name, "torch"), decoder(name, "triton")
    plain.set_cache_dtype(kv_dtype)
    own.set_cache_dtype(kv_dtype)
    expected = answers(plain, lengths)
    recorded = GraphedDecoder(own, Recorder())
    launcher = CudaLauncher(DEVICE) if DEVICE.type == "cuda" else Late()
    assert answers(recorded, lengths, launcher) == expected


PAGES = 8


def copied(cache: KVCache, model: GraphedDecoder) -> KVCache:
    """A cache of ``model`` with the same contents."""
    mine = model.new_cache(cache.num_pages, cache.page_size)
    for source, target in zip(arrays(cache), arrays(mine), strict=True):
        target.copy_(source)
    return mine


def arrays(cache: KVCache) -> list[Tensor]:
    found = []
    for layer in cache.layers:
        index = layer.page_index
        assert index is not None
        found += [*layer.tensors, index.codes, index.alphas, index.key_means, index.value_means, index.scalars]
    return found


def rows_of(lengths: list[int], first: list[int], policies: tuple[SparsePolicy | None, ...] = ()) -> Batch:
    """Rows from ``first`` on of sequences that lie on :data:`PAGES` pages each, the pages backwards."""
    positions = [range(begin, length) for begin, length in zip(first, lengths, strict=True)]
    pages = [tuple(range((i + 1) * PAGES - 1, i * PAGES - 1, -1)) for i in range(len(lengths))]
    slots = [own[p // 64] * 64 + p % 64 for own, at in zip(pages, positions, strict=True) for p in at]
    starts = tuple(accumulate(map(len, positions), initial=0))
    layout = PagedLayout(64, starts, tuple(lengths), tuple(pages), torch.tensor(slots))
    flat = torch.tensor([p for at in positions for p in at])
    ids = (7 * flat * flat + 3 * flat) % tiny.VOCAB
    return Batch(ids, flat, layout, torch.arange(len(flat)), sparse=policies)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("name", ["llama-wide", "deepseek-v2-wide"])
def test_recorded_steps_attend_sparsely(name: str, kv_dtype: str) -> None:
    """Beside a dense row and alone, with a row that pads, and where a page is filled: as torch does."""
    own = decoder(name, "torch")
    own.sparse = True
    own.set_cache_dtype(kv_dtype)
    memory = own.new_cache(3 * PAGES, 64)
    own.forward(rows_of([447, 300, 384], [0, 0, 0]), memory)
    wanted = decoder(name, "triton")
    wanted.sparse = True
    wanted.set_cache_dtype(kv_dtype)
    record = Recorder()
    model = GraphedDecoder(wanted, record)
    mine = copied(memory, model)
    policy = SparsePolicy(error=0.05, dense_until=300)
    for lengths, policies in [
        ([448, 301, 385], (policy, None, policy)),
        ([449, 302, 386], (policy, policy, policy)),
    ]:
        batch = rows_of(lengths, [length - 1 for length in lengths], policies)
        expected = own.forward(batch, memory)
        torch.testing.assert_close(model.forward(batch, mine), expected, rtol=0.02, atol=0.02)
    truth, counted = own.attention_stats(), model.attention_stats()
    assert counted.outputs == truth.outputs > 0
    assert counted.context_tokens == truth.context_tokens
    assert counted.read_tokens == pytest.approx(truth.read_tokens, rel=0.02)
    assert counted.read_tokens < counted.context_tokens
    assert record.count == 2
