"""Adapters: small additions to a model's weights or prompts, in the files that peft writes."""
