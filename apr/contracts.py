"""What must hold, as data: the YAML files of `contracts/`, read at run time.

They ship in the wheel (as `apr/_contracts`) and stand at the top of the repository for whoever
works from a checkout. A rule has an id; `tests/test_contracts.py` proves for each that it can fail.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from apr.errors import NotFound


def directory() -> Path:
    """The folder that holds the contracts of the running code."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "_contracts", here.parent / "contracts"):
        if candidate.is_dir():
            return candidate
    raise NotFound(here, "the contracts are missing from this installation", "install apr again")


@cache
def load(name: str) -> dict[str, Any]:
    """The contract `name` (a path below `contracts/`, without `.yaml`).

    Raises:
        NotFound: there is none of that name.
    """
    import yaml

    path = directory() / f"{name}.yaml"
    if not path.is_file():
        known = sorted(
            p.relative_to(directory()).with_suffix("").as_posix()
            for p in directory().rglob("*.yaml")
        )
        raise NotFound(path, f"no such contract; there are {', '.join(known)}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open(encoding="utf-8") as file:
        data = yaml.load(file, Loader=loader)
    if not isinstance(data, dict):
        raise NotFound(path, "holds no mapping")
    return data


def names(folder: str) -> list[str]:
    """The contracts in a sub-folder, e.g. the families."""
    return sorted(p.stem for p in (directory() / folder).glob("*.yaml"))
