"""Whether a model still finds, follows and counts what a long context says when its attention is sparse.

The kinds of tasks are those of RULER (Hsieh et al. 2024, arXiv:2404.06654), in English and Chinese, together with
questions about real passages. Texts are made from a seed to an exact number of tokens; many questions are asked of one
text, so that its prefill is paid once for each way of attending.
"""
