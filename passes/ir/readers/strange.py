"""What a file is by its first bytes where it is not what its name says: a pointer, a web page, an archive, another format."""

from __future__ import annotations

from passes.errors import InputError

PICKLE_REMEDY = (
    "Pickle files can run code when loaded. Use a safetensors version of the model, "
    "or convert it with transformers' save_pretrained."
)
_FETCH = "Fetch the file itself: `hf download REPOSITORY FILE`, which goes on where it stopped."
_CONVERT = "Convert the model to GGUF with a current llama.cpp, or take a GGUF of it."
#: How many bytes are looked at, and how many of a text are shown.
LOOKED_AT, _SHOWN = 64, 40

#: How a file begins -> what it is, what to do. GGML's magic numbers of before GGUF: llama.cpp's `llama.h` of 2023.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs", "a Git LFS pointer",
        "Fetch what it points to: `git lfs pull` in its folder, or `hf download`.",
    ),
    (b"<!doctype", "a web page", _FETCH),
    (b"<html", "a web page", _FETCH),
    (b"<?xml", "a server's answer in XML", _FETCH),
    (b"gguf", "a GGUF file", "Give it a name that ends in .gguf, and name that."),
    (b"pk\x03\x04", "a pickle (PyTorch .bin), or another ZIP archive", PICKLE_REMEDY),
    *((b"\x80" + bytes([protocol]), "a pickle (PyTorch .bin)", PICKLE_REMEDY) for protocol in range(2, 6)),
    (b"\x89hdf", "an HDF5 file (Keras)", "Use a safetensors version of the model."),
    *((magic, "a GGML file of before GGUF", _CONVERT) for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")),
    (b"\x1f\x8b", "a gzip archive", "Unpack it, and name what is in it."),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "Unpack it, and name what is in it."),
    (b"\xfd7zxz", "an xz archive", "Unpack it, and name what is in it."),
)  # fmt: skip


def strange(first: bytes, where: str, expected: str) -> InputError | None:
    """Return the error that names what a file is by how it begins; None where that does not tell. `expected`: what it should be."""
    begins = first[:LOOKED_AT].lstrip().lower()
    found = next(((what, remedy) for magic, what, remedy in _BEGINNINGS if begins.startswith(magic)), None)
    if found is None:
        found = _otherwise(first[:LOOKED_AT])
    if found is None or found[0] == f"a {expected} file":  # the right kind, damaged or cut short
        return None
    return InputError(f"{where}: {found[0]}, not {expected}", remedy=found[1])


def _otherwise(first: bytes) -> tuple[str, str] | None:
    if first[8:9] == b"{" and first[7:8] == b"\x00":
        return "a safetensors file", "Name the folder that holds it, with its config.json."
    if first and not any(first):
        return "zeros, as a download leaves that was never filled", _FETCH
    text = first.decode("ascii", "ignore")
    if len(first) > 8 and len(text) == len(first) and all(letter.isprintable() or letter.isspace() for letter in text):
        return f"text ({' '.join(text[:_SHOWN].split())!r}), as a server answers that refuses a file", _FETCH
    return None
