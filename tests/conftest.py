"""What holds for all tests. Without a GPU, Triton's kernels run through its interpreter.

Triton asks for that variable once, at its import, and transformers imports Triton where it is
installed. So it is set here, for the whole process, and only where no CUDA device is.
"""

import gc
import importlib.util
import os

# Tokenizers of 150,000 texts and torch's own millions of objects are walked through by each full
# collection; with Python's thresholds that was a fifth of the time of whole folders.
gc.set_threshold(200_000, 50, 100)

if importlib.util.find_spec("triton") is not None and "TRITON_INTERPRET" not in os.environ:
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
