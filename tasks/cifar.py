"""CIFAR-10 from the original batches or from the data set hub's parquet files."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalearn.registry import UserError
from tasks import files, sources
from tasks.decoded import decoded
from tasks.examples import Data

SIDE = 32


def read_cifar10(data_dir: Path, download: bool) -> Data:
    """The original data if they are here, else a known parquet copy if one is here, else a download."""
    original = not files.missing(sources.CIFAR10_BATCHES, data_dir)
    packed = not files.missing([sources.CIFAR10_ARCHIVE], data_dir)
    parquet = not files.missing(sources.CIFAR10_LOSSY, data_dir)
    if original:
        parts = [files.read(file, data_dir, download) for file in sources.CIFAR10_BATCHES]
        return _data(decoded("cifar10", parts, _from_batches), "original python batches, verified by digest")
    if packed or not parquet:
        archive = files.read(sources.CIFAR10_ARCHIVE, data_dir, download)
        return _data(decoded("cifar10", [archive], _from_archive), "original archive, verified by digest")
    parts = [files.read(file, data_dir, download) for file in sources.CIFAR10_LOSSY]
    said = "parquet copy that was re-encoded as lossy JPEG (quality 75), verified by digest: not comparable"
    return _data(decoded("cifar10", parts, _from_parquet), said, comparable=False)


def _data(tensors: dict[str, Tensor], provenance: str, comparable: bool = True) -> Data:
    return Data(
        **tensors,
        test=len(tensors["y"]) // 6,  # 10,000
        largest=255.0,
        mean=(0.49139968, 0.48215827, 0.44653124),  # Liu et al. 2019, of the training images
        deviation=(0.24703233, 0.24348505, 0.26158768),
        source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images: CIFAR-10",
        licence="none stated; free for research by custom",
        provenance=provenance,
        comparable=comparable,
    )


def _from_archive(parts: list[bytes]) -> dict[str, Tensor]:
    with tarfile.open(fileobj=io.BytesIO(parts[0]), mode="r:gz") as archive:
        members = (archive.extractfile(file.places[0]) for file in sources.CIFAR10_BATCHES)
        return _from_batches([member.read() for member in members if member is not None])


def _from_batches(parts: list[bytes]) -> dict[str, Tensor]:
    batches = [_ArrayUnpickler(io.BytesIO(part), encoding="bytes").load() for part in parts]
    x = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, SIDE, SIDE)
    y = np.concatenate([np.asarray(batch[b"labels"], dtype=np.int64) for batch in batches])
    return {"x": torch.tensor(x), "y": torch.tensor(y)}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays of numbers and plain containers; names nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        found = allowed.get((module.rpartition(".")[2], name)) if module.startswith("numpy") else None
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a CIFAR-10 batch")
        return found


def _from_parquet(parts: list[bytes]) -> dict[str, Tensor]:
    from pyarrow import BufferReader
    from pyarrow.parquet import read_table

    tables = [read_table(BufferReader(part), columns=["img", "label"]) for part in parts]
    x = np.stack([_image(row["bytes"]) for table in tables for row in table["img"].to_pylist()])
    y = np.concatenate([table["label"].to_numpy() for table in tables])
    return {"x": torch.tensor(x).permute(0, 3, 1, 2).contiguous(), "y": torch.tensor(y)}


def _image(encoded: bytes) -> np.ndarray:
    """[32 32 3] uint8; the header's size is looked at before anything is unpacked."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded), formats=("JPEG", "PNG")) as image:
        if image.size != (SIDE, SIDE):
            raise UserError(
                f"cifar10: got an image of {image.size} pixels, must be {(SIDE, SIDE)}; get a good copy"
            )
        return np.asarray(image.convert("RGB"))
