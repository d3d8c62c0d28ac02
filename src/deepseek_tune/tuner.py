"""A tuner: a model, data and settings in, an adapter that everybody reads out."""

from __future__ import annotations

import json
import shlex
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from deepseek.errors import CheckpointError, ConfigurationError, DeepSeekError
from deepseek.machine import describe_machine
from deepseek.threads import wait_politely
from deepseek_tune.adapters import REPORT, RUN
from deepseek_tune.checkpoints import FOLDER, check_writable
from deepseek_tune.settings import TuningSettings, make_settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deepseek_tune.base import BaseFiles
    from deepseek_tune.data.cache import TokenCache
    from deepseek_tune.estimate import Estimate
    from deepseek_tune.forward import PackedModel
    from deepseek_tune.loop import Batches, RunState, Trainer
    from deepseek_tune.method import Method
    from deepseek_tune.parallel import World
    from deepseek_tune.progress import Reporter

_NEEDED = ("torch", "transformers", "peft")

Settings = TypeVar("Settings", bound=TuningSettings)


class TuningResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run gave.

    Attributes:
        output_dir: the folder with adapter_config.json, adapter_model.safetensors and run.json.
        steps: optimizer steps.
        loss: of the last step, nats per answer token.
        validation_loss: of the adapter on the held-out examples; None if there are none.
        best_step: the step that the adapter is from.
        trainable_parameters, trainable_share: of the adapter, and their share of all.
        tokens_per_second: of training, judgements not counted.
        stopped: why the run was over.
    """

    output_dir: str
    steps: int
    loss: float
    validation_loss: float | None
    best_step: int
    trainable_parameters: int
    trainable_share: float
    tokens_per_second: float
    stopped: str


@dataclass(frozen=True)
class _Data:
    """What is known before the model is loaded."""

    base: BaseFiles
    cache: TokenCache
    device: torch.device
    dtype: torch.dtype
    identity: dict[str, Any]
    world: World


@dataclass(frozen=True)
class _Prepared:
    """Everything that a run needs. ``base_bytes``: of the base model's weights."""

    data: _Data
    batches: Batches
    method: Method
    trainer: Trainer
    base_bytes: int


class Tuner(ABC, Generic[Settings]):
    """What every kind of tuning does; a kind says what is trained.

    Args:
        kind: of the settings.
        given: what a user gave for them.
        reporter: hears of the run; None draws a progress bar, unless ``progress=False``.

    Raises ConfigurationError: a setting that is unknown, of the wrong type, or cannot work.
    """

    def __init__(self, kind: type[Settings], given: Mapping[str, Any], reporter: Reporter | None) -> None:
        self.settings: Settings = make_settings(kind, given, type(self).__name__)
        self._reporter = reporter

    @abstractmethod
    def _method(self, model: Any, packed: PackedModel, base_name: str) -> Method:
        """Put what is trained into ``model``, or before it."""

    def estimate(self) -> Estimate:
        """Read the data, load the model, time one step: what :meth:`train` will cost. Writes nothing but the cache of
        tokenized data. Raises as :meth:`train`."""
        from deepseek_tune.estimate import measure

        world = self._join()
        reporter = self._make_reporter(world)
        data = self._read(reporter, world)
        ready = self._load(data, reporter)
        return measure(
            ready.trainer,
            ready.batches,
            data.cache.answer_tokens,
            self.settings.epochs,
            ready.method.module,
            ready.base_bytes,
        )

    def train(self) -> TuningResult:
        """Train, and write the adapter to the output folder. A run that was cut off goes on from its last checkpoint
        with the same losses; one that is finished returns its result.

        Raises:
            DataError: the data cannot be read, or more of it is bad than ``max_bad_rows`` allows.
            HubError, CheckpointError, UnsupportedModelError: the base model or the adapter to start from.
            ConfigurationError: the settings do not fit the model, or the output folder is another run's.
            TrainingError: a loss is no number.
            DiskSpaceError: no room for a checkpoint or the result; earlier checkpoints are good.
        """
        output = self.settings.output
        world = self._join()
        reporter = self._make_reporter(world)
        data = self._read(reporter, world)
        if self.settings.resume and (done := _finished(output)):
            _check_identity(done["identity"], data.identity, output)
            reporter.note(f"{output} is finished already; resume=False starts over")
            reporter.note(_how_to_serve(self.settings))
            shutil.rmtree(output / FOLDER, ignore_errors=True)  # of a run that was cut off while it did the same
            return msgspec.convert(done["result"], TuningResult)
        if world.first:
            check_writable(output)
        result = self._train(self._load(data, reporter), reporter, output)
        if self.settings.report and world.first:
            self._report(data, reporter, output)
        reporter.note(_how_to_serve(self.settings))
        return result

    def _report(self, data: _Data, reporter: Reporter, output: Path) -> None:
        """The page beside the adapter. The training model is gone by now: there is room to load one for answers. The
        run is over and its result is whole, so whatever the page lacks is no error but a line that says so."""
        from deepseek_tune.loop import make_batches
        from deepseek_tune.report.answers import sample_answers
        from deepseek_tune.report.page import write_report

        if find_spec("matplotlib") is None:
            reporter.note("no report.html: it needs matplotlib: pip install 'deepseek-platform[tune]'")
            return
        held_out = make_batches(data.cache.lengths, self.settings).held_out.indices
        count = min(self.settings.samples, len(held_out))
        chosen = [int(held_out[at * len(held_out) // count]) for at in range(count)]  # from everywhere in the data
        try:
            samples = sample_answers(
                data.base,
                output,
                data.cache,
                chosen,
                dtype=data.dtype,
                device=data.device,
                base_dtype=self.settings.base_dtype,
            )
            reporter.note(f"the run on a page: {write_report(output, samples)}")
        except (DeepSeekError, OSError) as error:
            reporter.note(f"no report.html: {error}")

    def _train(self, ready: _Prepared, reporter: Reporter, output: Path) -> TuningResult:
        from deepseek_tune import checkpoints
        from deepseek_tune.adapters import CONFIG, WEIGHTS
        from deepseek_tune.quantized import parameter_count

        folder = output / FOLDER
        world = ready.data.world
        if not self.settings.resume:
            if world.first:
                for name in (RUN, CONFIG, WEIGHTS, REPORT):
                    (output / name).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
        elif found := checkpoints.latest(folder):
            tensors, values = checkpoints.load(found)
            _check_identity(values["identity"], ready.data.identity, output)
            ready.trainer.restore(tensors, values)
            reporter.note(f"going on from {found}")
        elif any((output / name).exists() for name in (CONFIG, WEIGHTS)):
            raise ConfigurationError(
                f"{output} holds an adapter that this did not make: set output_dir, or resume=False to replace it."
            )
        weights = ready.trainer.train()
        state = ready.trainer.state
        total = parameter_count(ready.method.module)
        trainable = sum(weight.numel() for weight in ready.method.module.parameters() if weight.requires_grad)
        best = state.best
        result = TuningResult(
            output_dir=str(output),
            steps=len(state.steps),
            loss=state.steps[-1].loss,
            validation_loss=best.loss if best else None,
            best_step=best.step if best else len(state.steps),
            trainable_parameters=trainable,
            trainable_share=trainable / total,
            tokens_per_second=state.tokens / sum(step.seconds for step in state.steps),
            stopped=state.finished,
        )
        if world.first:
            try:
                self._write(output, ready, state, weights, result)
            except OSError as error:
                raise checkpoints.disk_error(
                    error, output, "The run is in its last checkpoint: make room and run the same command again."
                ) from error
            shutil.rmtree(folder, ignore_errors=True)
        world.wait()
        return result

    def _write(
        self, output: Path, ready: _Prepared, state: RunState, weights: Mapping[str, Tensor], result: TuningResult
    ) -> None:
        """The adapter, and then run.json, which says that the adapter is whole."""
        import safetensors.torch

        from deepseek_tune.adapters import CONFIG, WEIGHTS
        from deepseek_tune.checkpoints import write_file

        config = _plain(ready.method.config()) | {"inference_mode": True}
        write_file(output / WEIGHTS, safetensors.torch.save(dict(weights), metadata={"format": "pt"}))
        write_file(output / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        cache = ready.data.cache
        run = {
            "result": msgspec.to_builtins(result),
            "identity": ready.data.identity,
            "settings": msgspec.to_builtins(self.settings),
            "base": {"dtype": self.settings.base_dtype or ready.data.identity["dtype"], "bytes": ready.base_bytes},
            "adapter": ready.method.choices(),
            "data": {
                "examples": len(cache),
                "answer_tokens": cache.answer_tokens,
                "tokens_per_epoch": ready.batches.train.tokens,
                "row_tokens": ready.batches.train.max_tokens,
                "rows_per_step": ready.batches.rows_per_step,
                "efficiency": ready.batches.train.efficiency(),
                "shape": asdict(cache.shape),
                "problems": cache.problems.to_json(),
            },
            "versions": {name: _version(name) for name in ("deepseek-platform", *_NEEDED)},
            "machine": describe_machine(),
            "steps": msgspec.to_builtins(state.steps),
            "evaluations": msgspec.to_builtins(state.evaluations),
        }
        write_file(output / RUN, (json.dumps(run, indent=1) + "\n").encode())

    def _join(self) -> World:
        if missing := [name for name in _NEEDED if find_spec(name) is None]:
            raise ConfigurationError(f"tuning needs {', '.join(missing)}: pip install 'deepseek-platform[tune]'.")
        wait_politely()
        from deepseek_tune.parallel import join

        return join(self.settings.device)

    def _make_reporter(self, world: World) -> Reporter:
        from deepseek_tune.progress import RichReporter, Silent

        if not world.first:
            return Silent()
        return self._reporter or (RichReporter() if self.settings.progress else Silent())

    def _read(self, reporter: Reporter, world: World | None = None) -> _Data:
        """Data first: a run that cannot work is refused before the model is loaded."""
        settings = self.settings
        from deepseek_tune.base import choose_device, choose_dtype, find_base
        from deepseek_tune.data.cache import tokenized
        from deepseek_tune.parallel import World

        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)
        base = find_base(settings.base_model, offline=settings.offline)
        root = None if settings.cache_dir is None else Path(settings.cache_dir).expanduser()
        path = Path(settings.train_data).expanduser()
        cache = tokenized(path, base.tokenizer, settings.data, root=root, say=reporter.note)
        for line in cache.problems.report():
            reporter.note(line)
        identity = settings.deciding() | {
            "data_sha256": cache.data_sha256,
            "base_model": base.files.name,
            "dtype": str(dtype).removeprefix("torch."),
        }
        return _Data(base, cache, device, dtype, identity, world or World())

    def _load(self, data: _Data, reporter: Reporter) -> _Prepared:
        """The model with its adapter, ready to be trained."""
        import torch

        from deepseek_tune import forward
        from deepseek_tune.base import load_base
        from deepseek_tune.data.problems import beginning
        from deepseek_tune.loop import Trainer, make_batches
        from deepseek_tune.quantized import resident_bytes

        settings, base, cache = self.settings, data.base, data.cache
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        model = load_base(base.files, data.dtype, data.device, settings.base_dtype)
        base_bytes = resident_bytes(model)
        _check_sizes(model, base.tokenizer.vocab_size, int(cache.lengths.max()))
        packed = forward.PackedModel(model)
        torch.manual_seed(settings.seed)
        method = self._method(model, packed, base.files.name)
        if not data.world.first:  # dropout differs between processes, as it does between rows
            torch.manual_seed(settings.seed + (data.world.rank << 32))
        if settings.gradient_checkpointing:
            forward.recompute_activations(model)
        batches = make_batches(cache.lengths, settings)
        trainer = Trainer(
            packed,
            method,
            settings,
            cache,
            batches,
            describe=lambda example: beginning(base.tokenizer.decode(cache.example(example)[0].tolist())),
            folder=settings.output / FOLDER,
            identity=data.identity,
            reporter=reporter,
            world=data.world,
        )
        return _Prepared(data, batches, method, trainer, base_bytes)


def _check_sizes(model: Any, vocab_size: int, longest: int) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if vocab_size > rows:
        raise CheckpointError(f"the tokenizer has {vocab_size} tokens and the base model {rows}: they do not match.")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest > context:
        raise ConfigurationError(
            f"the longest example has {longest} tokens and the base model a context of {context}: set max_tokens."
        )


def _how_to_serve(settings: TuningSettings) -> str:
    base, adapter = shlex.quote(settings.base_model), shlex.quote(f"{settings.output.name}={settings.output}")
    return f"serve it: deepseek serve {base} --adapter {adapter}"


def _finished(output: Path) -> dict[str, Any] | None:
    """run.json of a finished run; None if there is none."""
    try:
        run: dict[str, Any] = json.loads((output / RUN).read_bytes())
        return run if isinstance(run, dict) and "result" in run and "identity" in run else None
    except (OSError, ValueError):
        return None


def _check_identity(stored: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Raises ConfigurationError if a run was made with other settings or data than this one."""
    different = [name for name in now if stored.get(name) != now[name]]
    if different:
        shown = ", ".join(f"{name} ({stored.get(name)!r}, now {now[name]!r})" for name in different[:8])
        raise ConfigurationError(
            f"{output} holds a run that differs in {shown}. Set another output_dir, or resume=False to start over."
        )


def _plain(value: Any) -> Any:
    """peft's config for JSON: its sets as lists, its enumerations as their values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
