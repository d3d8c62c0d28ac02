"""One model of a base model and its adapter: a safetensors folder or a GGUF file, checked before it gets its name.

>>> from deepseek_tune.merge import merge
>>> merge("customer_service-lora", "customer_service.gguf", dtype="q8_0")
"""

from deepseek_tune.merge.check import Check
from deepseek_tune.merge.run import FORMATS, MergeResult, merge

__all__ = ["FORMATS", "Check", "MergeResult", "merge"]
