"""An exported bundle, as those who use it open it: does it embed as it did in training?

`libraries` embeds with FlagEmbedding and sentence-transformers and compares, `onnx_model` writes the heads as a graph
and runs it.

Uses: scoring. Knows nothing of trials.
"""
