"""Parcels: their sizes, their checksums, and what comes out of them."""

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.gpu.pack import GGUF, WHEELS, pack, pinned

LIMIT = 1 << 20


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One wheel, written by hand."""
    folder = tmp_path_factory.mktemp("wheels")
    with zipfile.ZipFile(folder / "carried_along-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_along.py", "")
        about = "carried_along-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: carried-along\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return folder


def test_every_wheel_has_a_version() -> None:
    versions = dict(item.split("==") for item in pinned())
    assert list(versions) == WHEELS
    assert (versions["antlr4-python3-runtime"], versions["hydra-core"], versions["trl"]) == ("4.9.3", "1.3.8", "1.16.0")


def test_parcels_are_of_at_most_the_limit_and_give_the_whole_back(tmp_path: Path, wheels: Path) -> None:
    gguf = tmp_path / GGUF
    gguf.write_bytes(os.urandom(LIMIT + 5))
    folder = tmp_path / "parcels"
    parcels = pack(folder, wheels=wheels, gguf=gguf, limit=LIMIT)
    assert len(parcels) > 2 and {parcel.stat().st_size for parcel in parcels[:-1]} == {LIMIT}
    assert parcels[-1].stat().st_size <= LIMIT
    sums = dict(reversed(line.split()) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {parcel.name: hashlib.sha256(parcel.read_bytes()).hexdigest() for parcel in parcels}
    whole = tmp_path / "whole.tar"
    whole.write_bytes(b"".join(parcel.read_bytes() for parcel in parcels))
    with tarfile.open(whole) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    assert (tmp_path / "out/weights" / GGUF).read_bytes() == gguf.read_bytes()
    assert (tmp_path / "out/wheels/carried_along-1.0-py3-none-any.whl").is_file()
    with tarfile.open(tmp_path / "out/checkout.tar.gz") as tar:
        assert {"src/train.py", "pyproject.toml", "configs/train.yaml"} <= set(tar.getnames())

    assert len(pack(folder, wheels=wheels, limit=1 << 30)) == 1  # what was there before is gone
    assert len(list(folder.glob("proof.tar.*"))) == 1


def test_a_torn_parcel_is_refused(tmp_path: Path, wheels: Path) -> None:
    first, *_ = pack(tmp_path, wheels=wheels, limit=LIMIT)
    first.write_bytes(first.read_bytes()[:-1])
    ended = subprocess.run(["bash", tmp_path / "proof.sh", tmp_path / "out"], capture_output=True, text=True)
    assert ended.returncode and "proof.tar.000: FAILED" in ended.stdout
    assert not (tmp_path / "out/venv").exists()


def test_what_lies_in_the_folder_is_not_mixed_with_the_parcels(tmp_path: Path, wheels: Path) -> None:
    pack(tmp_path, wheels=wheels)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").touch()
    ended = subprocess.run(["bash", tmp_path / "proof.sh", tmp_path / "out"], capture_output=True, text=True)
    assert ended.returncode == 1 and "expected an empty folder or none, found files" in ended.stderr


@pytest.mark.slow
def test_the_script_unpacks_installs_and_starts_the_proof(tmp_path: Path, wheels: Path) -> None:
    pack(tmp_path, wheels=wheels, limit=LIMIT)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", tmp_path / "proof.sh", tmp_path / "out", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path}, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "--device {cuda,cpu}" in ended.stdout
    assert list((tmp_path / "out/venv").rglob("carried_along.py"))
