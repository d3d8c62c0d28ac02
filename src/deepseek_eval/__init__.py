"""Know how good a model is, and whether two differ.

>>> from deepseek_eval import evaluate
>>> evaluate(model="smollm2-135m-instruct", suite="core", output_dir="results")
"""
