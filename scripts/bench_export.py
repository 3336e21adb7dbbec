"""Measure `apr export` of a large random model: its speed against cp, and its peak memory.

    python scripts/bench_export.py --work DIR [--gigabytes 3] [--repeat 5] [--with-proof]

The model is that of bench_import.py: a random Llama in bfloat16, imported into an .apr file in DIR
(a `random.apr` that bench_import.py --keep left there is used as it is). Every case is paired with
cp of the .apr file, in turn and flushed to disk; each export runs in a process of its own, so that
its peak resident size is its own. The proof is left out of the write's time and, with --with-proof,
also measured as a user sees it, without peers. One JSON document with the receipt goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench_import import architecture_of, in_child, make_folder, paired, remove

from apr.receipt import receipt

CASES = [
    ("gguf", None),
    ("gguf", "q8_0"),
    ("gguf", "f32"),
    ("safetensors", None),
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size in 10^9 bytes")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--with-proof", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave the .apr file there")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    source = work / "random.apr"
    if not source.exists():
        folder = work / "random-folder"
        if not folder.exists():
            make_folder(folder, architecture_of(options.gigabytes))
        in_child("import", folder, source, prove=False)
        remove(folder)
    rows: list[dict[str, Any]] = []
    for format, quantize in CASES:
        target = work / f"out.{format}-{quantize}"
        chosen = {"format": format, "quantize": quantize}
        row = paired("export", source, target, options.repeat, **chosen)
        if options.with_proof:
            remove(target)
            row["with_proof"] = in_child(
                "export", source, target, prove=True, peers=False, **chosen
            )
        remove(target)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    result = {
        "source_bytes": source.stat().st_size,
        "page_cache": "the source's pages are in memory where they fit, for both",
        "exports": rows,
        "receipt": receipt("cpu"),
    }
    print(json.dumps(result, indent=1))
    if not options.keep:
        remove(source)


if __name__ == "__main__":
    main()
