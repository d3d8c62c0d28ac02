"""How often a seeded answer changes with what else is in the batch: `python -m benchmarks.batch_invariance`.

The random numbers do not depend on the batch; logits may differ in their last bits, because matrix libraries choose
kernels by the number of rows. This counts the answers in which that decided a token.
"""

from __future__ import annotations

import argparse

from deepseek import LLM, SamplingParams

TOPICS = ("the sea", "a lost key", "winter", "prime numbers", "a train", "bread", "the moon", "an old map")
STYLES = ("Write a short poem about", "Explain to a child", "Tell a joke about", "List five facts about")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    llm = LLM(options.model, dtype=options.dtype, prefix_cache=False)
    prompts = [f"{style} {topic}." for style in STYLES for topic in TOPICS]
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=1, max_tokens=options.tokens, ignore_eos=True)
    together = [generation.choices[0].token_ids for generation in llm.generate(prompts, params)]
    alone = [llm.generate(prompt, params)[0].choices[0].token_ids for prompt in prompts]
    changed = sum(a != b for a, b in zip(together, alone, strict=True))
    tokens = len(prompts) * options.tokens
    print(f"{options.model}, {llm.info.dtype}: {changed} of {len(prompts)} answers ({tokens} tokens) changed")


if __name__ == "__main__":
    main()
