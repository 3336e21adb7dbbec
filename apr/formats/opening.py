"""`open_model`: which of the three formats a path holds, by its content, and the model in it."""

from __future__ import annotations

from pathlib import Path

from apr.errors import InvalidFormat, NotFound, StrPath
from apr.formats.opened import FormatName, OpenedModel
from apr.mapped import unreadable

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
INSTEAD_OF_PICKLE = (
    "get the model as safetensors or GGUF; or, where its source is trusted and nothing else can be "
    "harmed, load it with transformers and save it with save_pretrained"
)
_APR_MAGICS = (b"APR\x00", b"APRN", b"APR1", b"APR2")  # the older ones are refused by its reader
_SUFFIXES: dict[str, FormatName] = {".apr": "apr", ".gguf": "gguf"}
_READABLE: dict[FormatName, str] = {"apr": "an .apr file", "gguf": "a GGUF file", "hf": "a folder"}


def detect_format(path: StrPath) -> FormatName:
    """The format by content; a name that claims another one is an error.

    Raises:
        NotFound: the path does not exist.
        InvalidFormat: none of the three; the message says what it is where that can be told.
    """
    target = Path(path)
    if target.is_dir():
        return "hf"
    if not target.is_file():
        raise NotFound(path, "is not a file or folder" if target.exists() else "does not exist")
    try:
        with target.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise unreadable(error, path) from error
    found: FormatName
    if head[:4] in _APR_MAGICS:
        found = "apr"
    elif head[:4] == b"GGUF":
        found = "gguf"
    else:
        raise _unknown(target, head)
    claimed = _SUFFIXES.get(target.suffix.lower())
    if claimed is not None and claimed != found:
        raise InvalidFormat(
            path,
            f"is {_READABLE[found]}, although its name ends in {target.suffix}",
            f"rename it to {target.with_suffix('.' + found).name}",
        )
    return found


def _unknown(path: Path, head: bytes) -> InvalidFormat:
    if not head:
        return InvalidFormat(path, "is empty (0 bytes)")
    if head[8:9] == b"{" and path.suffix.lower() == ".safetensors":
        return InvalidFormat(
            path,
            "is a single safetensors file: it has no architecture and no tokenizer",
            f"give the folder that holds it together with config.json: {path.parent}",
        )
    # A pickle begins with its protocol's number, torch's newer files are zip archives of one.
    if head[:2] == b"PK" or (head[:1] == b"\x80" and 2 <= head[1] <= 5):
        return InvalidFormat(
            path,
            "is a pickle or zip archive of PyTorch: reading it would run code from it",
            INSTEAD_OF_PICKLE,
        )
    if path.suffix.lower() in PICKLES:
        return InvalidFormat(
            path,
            f"is named {path.suffix} as PyTorch's pickles are, which are never read: reading one "
            "would run code from it",
            INSTEAD_OF_PICKLE,
        )
    if path.suffix.lower() in _SUFFIXES:
        kind = _READABLE[_SUFFIXES[path.suffix.lower()]]
        return InvalidFormat(
            path, f"is not {kind}: it begins with {head[:4]!r}", "the file is damaged or misnamed"
        )
    return InvalidFormat(
        path,
        f"is no model that apr knows: it begins with {head[:4]!r}",
        "give an .apr file, a .gguf file or a Hugging Face folder",
    )


def open_model(path: StrPath) -> OpenedModel:
    """Open an `.apr` file, a GGUF file or a Hugging Face folder; no weight is read.

    The tensors are not yet compared with what the family requires: `OpenedModel.check_tensors`.

    Raises:
        NotFound: the path does not exist, or is no model.
        InvalidFormat, CorruptFile: damaged, incomplete, unknown, or not what its name says.
        ModelLoadError: readable, but its parts do not fit together.
    """
    target = Path(path)
    kind = detect_format(target)
    if kind == "apr":
        from apr.formats.apr_reader import open_apr

        return open_apr(target)
    if kind == "gguf":
        from apr.formats.gguf_model import open_gguf

        return open_gguf(target)
    from apr.formats.hf_reader import open_hf

    return open_hf(target)
