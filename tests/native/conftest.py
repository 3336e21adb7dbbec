"""The library, for every test that needs it: skipped with the reason that apr itself gives."""

import shutil

import pytest

from apr import native


@pytest.fixture(scope="session")
def library():
    """libapr_native, loaded."""
    path = native.library_path()
    if not path.exists() and not (path.parent / "not_built.txt").exists():
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler:
            pytest.fail(f"{compiler} is here, but nothing was built: python scripts/dev.py native")
    if not path.exists():
        pytest.skip(native.unavailable())
    return native.load()
