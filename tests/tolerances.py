"""One table of tolerances per precision, for every test that compares numbers of networks.

"golden": largest |ours - golden| over the golden tensor's std (float32's own figure stands in each golden file).
"cosine": smallest cosine between a half-precision feature and its float32 value. "neighbour": largest difference, over
the feature's std, between a row alone and the same row in a batch.
"""

TOLERANCES = {
    "fp32": {"golden": 2e-4, "cosine": 0.999999, "neighbour": 1e-4},
    "bf16": {"golden": 1e-1, "cosine": 0.999, "neighbour": 5e-2},
    "fp16": {"golden": 1e-2, "cosine": 0.9999, "neighbour": 1e-2},
}
