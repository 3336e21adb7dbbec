"""The same tiny models as in tests/formats."""

import importlib.util
from pathlib import Path

_path = Path(__file__).resolve().parents[1] / "formats" / "conftest.py"
_spec = importlib.util.spec_from_file_location("apr_formats_conftest", _path)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

_few_threads = _module._few_threads
tokenizer = _module.tokenizer
tiny_apr = _module.tiny_apr
tied_apr = _module.tied_apr
shared = _module.shared
