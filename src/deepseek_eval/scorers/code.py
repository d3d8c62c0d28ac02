"""Programs, judged by tests that run in the sandbox."""

from __future__ import annotations

import re

from deepseek_eval.metrics import pass_at, unbiased_pass
from deepseek_eval.sandbox import run_program
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.task import Item, Metric, Output, Score, Scorer

TIMEOUT_SECONDS = 5.0
MEMORY_BYTES = 1 << 30
_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|$)", re.DOTALL | re.IGNORECASE)


def code_metrics(ks: tuple[int, ...] = (1,)) -> tuple[Metric, ...]:
    """pass@k for each k."""
    return tuple(pass_at(k) for k in ks)


def program(text: str, prompt: str, entry_point: str) -> str:
    """The program that an answer makes: what is fenced in it, else the answer, behind the prompt unless it defines the
    function itself."""
    fenced = _FENCE.findall(text)
    body = next((one for one in fenced if entry_point in one), fenced[0] if fenced else text)
    if re.search(rf"^def {re.escape(entry_point)}\b", body, re.MULTILINE):
        # Imports and helpers of the prompt may be needed; its function is defined again by the answer.
        return f"{prompt}    pass\n\n{body}"
    return prompt + body


def code(ks: tuple[int, ...] = (1,)) -> Scorer:
    """Whether programs pass their tests. ``target``: {"prompt", "test", "entry_point"}.

    Metrics: ``pass@k`` of the samples; those with more samples than there are are left out.
    """

    def score(item: Item, output: Output) -> Score:
        outcomes = []
        for sample in output.samples:
            source = program(sample.text, item.target["prompt"], item.target["entry_point"])
            tests = f"\n\n{item.target['test']}\n\ncheck({item.target['entry_point']})\n"
            outcomes.append(run_program(source + tests, timeout=TIMEOUT_SECONDS, memory_bytes=MEMORY_BYTES))
        right = sum(outcome.passed for outcome in outcomes)
        samples = len(outcomes)
        return Score(
            statistics={f"pass@{k}": (unbiased_pass(samples, right, k), 1.0) for k in ks if k <= samples},
            answer=output.samples[0].text,
            explanation="; ".join(dict.fromkeys("passed" if one.passed else one.reason for one in outcomes)),
            refused=right == 0 and is_refusal(output.samples[0].text),
            expected=f"a program that passes\n{item.target['test'].strip()}",
        )

    return score
