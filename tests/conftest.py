"""Before anything imports Triton: without a GPU its kernels run through its interpreter.

Triton asks for the variable once, at its import, and transformers imports Triton where it is
installed. So it is set here, for the whole process, and only where no CUDA device is.
"""

import importlib.util
import os

if importlib.util.find_spec("triton") is not None and "TRITON_INTERPRET" not in os.environ:
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
