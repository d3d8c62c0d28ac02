"""Another engine as a benchmark worker. Run by path with the Python that has the engine; imports nothing of ours.

    python peer_worker.py {openvino,vllm,transformers}

Answers one JSON object per line with one line, as `deepseek.benchmark.worker` does: ``load`` (model, dtype, threads,
device, max_context, requests), ``run`` (prompts, output, ignore_eos).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

Prompts = list[list[int]]

RANDOM_WEIGHTS = "random_weights.json"
"""The file that tells a folder of a published shape, which has no weights: they are drawn here."""


class Backend(Protocol):
    """An engine that tells when each token came."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        """Load the model. Returns ``version`` and ``flags``."""
        ...

    def generate(self, prompts: Prompts, output: int, ignore_eos: bool) -> list[list[float]]:
        """For each prompt the seconds, from the start of the call, at which its tokens came."""
        ...


class OpenVINO:
    """OpenVINO GenAI; reads GGUF itself."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        import openvino_genai

        settings = {"INFERENCE_NUM_THREADS": options["threads"], "PERFORMANCE_HINT": "LATENCY"}
        self._pipe = openvino_genai.LLMPipeline(options["model"], "CPU", **settings)
        flags = " ".join(f"{key}={value}" for key, value in settings.items())
        return {"version": openvino_genai.__version__, "flags": flags}

    def generate(self, prompts: Prompts, output: int, ignore_eos: bool) -> list[list[float]]:
        import numpy
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = output, False, ignore_eos
        if ignore_eos:
            config.min_new_tokens = output
        ids = numpy.array(prompts, dtype=numpy.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        start = time.perf_counter()
        result = self._pipe.generate(inputs, config)
        total = time.perf_counter() - start
        # Stamps of the steps, in milliseconds of another clock; the last one is taken as the end of the call.
        stamps = list(result.perf_metrics.raw_metrics.m_new_token_times)
        steps = [total - (stamps[-1] - stamp) / 1000 for stamp in stamps]
        return [steps[-len(tokens) :] for tokens in result.tokens]


class VLLM:
    """vLLM on the CPU, stepped in this process."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import vllm

        settings: dict[str, Any] = {
            "dtype": {"fp32": "float32", "bf16": "bfloat16"}[options["dtype"]],
            "max_model_len": options["max_context"],
            "max_num_seqs": options["requests"],
            "enable_prefix_caching": False,
        }
        model = vllm.LLM(model=options["model"], skip_tokenizer_init=True, disable_log_stats=True, **settings)
        self._engine = model.llm_engine
        self._llm = model  # the engine lives as long as it does
        self._count = 0
        return {"version": vllm.__version__, "flags": " ".join(f"{key}={value}" for key, value in settings.items())}

    def generate(self, prompts: Prompts, output: int, ignore_eos: bool) -> list[list[float]]:
        import vllm

        if not ignore_eos:
            raise NotImplementedError("without a tokenizer it knows no end token")
        params = vllm.SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=ignore_eos, detokenize=False)
        names = []
        start = time.perf_counter()
        for prompt in prompts:
            self._count += 1
            names.append(str(self._count))
            self._engine.add_request(names[-1], {"prompt_token_ids": prompt}, params)
        # It may put a suffix on a request's name.
        times: dict[str, list[float]] = {}
        while self._engine.has_unfinished_requests():
            answers = self._engine.step()
            now = time.perf_counter() - start
            for answer in answers:
                seen = times.setdefault(answer.request_id, [])
                seen += [now] * (len(answer.outputs[0].token_ids) - len(seen))
        return list(times.values())


class Transformers:
    """Hugging Face transformers with its own `generate` and SDPA attention. On a GPU its cache is static, and it
    compiles the steps behind the first one."""

    def load(self, options: dict[str, Any]) -> dict[str, Any]:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        import transformers

        torch.set_num_threads(options["threads"])
        self._device = options["device"]
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options["dtype"]]
        settings = {"dtype": dtype, "attn_implementation": "sdpa"}
        models = transformers.AutoModelForCausalLM
        if (Path(options["model"]) / RANDOM_WEIGHTS).exists():
            with torch.device(self._device):
                network = models.from_config(transformers.AutoConfig.from_pretrained(options["model"]), **settings)
        else:
            network = models.from_pretrained(options["model"], **settings)
        self._network = network.to(self._device).eval()
        self._cache = {} if self._device == "cpu" else {"cache_implementation": "static"}
        flags = f"dtype={options['dtype']} attn_implementation=sdpa threads={options['threads']}"
        if self._cache:
            flags += " cache_implementation=static, compiled (reduce-overhead)"
        return {"version": f"{transformers.__version__}, torch {torch.__version__}", "flags": flags}

    def generate(self, prompts: Prompts, output: int, ignore_eos: bool) -> list[list[float]]:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        on_gpu = self._device != "cpu"
        steps: list[float] = []

        class Clock(StoppingCriteria):  # type: ignore[misc, unused-ignore]  # untyped base
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                if on_gpu and not steps:
                    torch.cuda.synchronize()
                steps.append(time.perf_counter() - start)
                return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        tokens = torch.tensor(prompts, device=self._device)
        ends: dict[str, Any] = {"eos_token_id": None} if ignore_eos else {}
        start = time.perf_counter()
        with torch.inference_mode():
            answers = self._network.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=output,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Clock()]),
                **self._cache,
                **ends,
            )
        if on_gpu:
            # Behind the first token the host does not wait for the GPU: only the first and the last moment are true.
            torch.cuda.synchronize()
            total = time.perf_counter() - start
            steps = [steps[0]] + [total] * (answers.shape[1] - tokens.shape[1] - 1)
        return [steps] * len(prompts)


def summary(times: list[list[float]]) -> dict[str, Any]:
    """What is told of a run: see `deepseek.benchmark.scenarios.Timing`."""
    first = max(moments[0] for moments in times)
    every = [moment for moments in times for moment in moments]
    return {"first": first, "total": max(every), "tokens": len(every), "after": sum(m > first for m in every)}


def main(name: str) -> None:
    # Only replies may go to standard output: what libraries print there goes to standard error.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    backends: dict[str, type[Backend]] = {"openvino": OpenVINO, "vllm": VLLM, "transformers": Transformers}
    backend = backends[name]()
    for line in sys.stdin:
        message = json.loads(line)
        reply: dict[str, Any]
        if message["op"] == "load":
            reply = backend.load(message)
        else:
            reply = summary(backend.generate(message["prompts"], message["output"], message["ignore_eos"]))
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])
