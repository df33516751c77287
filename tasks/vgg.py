"""The convolutions of VGG-19 (Simonyan and Zisserman 2015) as fixed features of images."""

import hashlib
import http.client
import io
import math
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from metalearn.registry import UserError
from metalearn.rng import generator
from tasks import files, sources

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels, convolutions; pooling between blocks
LAYERS = tuple(f"conv{block}_{n}" for block, (_, count) in enumerate(BLOCKS, 1) for n in range(1, count + 1))
MEAN, DEVIATION = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of what torchvision's weights were trained on
FILE = sources.VGG19
Weights = dict[str, tuple[Tensor, Tensor]]  # by layer: [outputs inputs 3 3], [outputs]


class AbsentError(UserError):
    """There is no file, and it cannot be fetched."""


class Features(NamedTuple):
    """Fixed weights, and what is to be said of them."""

    weights: Weights
    provenance: str
    learned: bool  # on ImageNet; else drawn at random


def activations(
    weights: Weights, images: Float[Tensor, "batch 3 height width"], names: Sequence[str], pooling: str
) -> dict[str, Float[Tensor, "batch channel height width"]]:
    """What the named layers give after their ReLU; nothing beyond the last of them is computed.

    In Gatys et al. 2015 a layer's name also means its output after the ReLU, which works in place there.
    """
    pool = F.max_pool2d if pooling == "max" else F.avg_pool2d
    found: dict[str, Tensor] = {}
    for name in LAYERS[: depth(names)]:
        if name.endswith("_1") and name != LAYERS[0]:
            images = pool(images, 2)
        weight, bias = weights[name]
        images = F.relu(F.conv2d(images, weight, bias, padding=1))
        if name in names:
            found[name] = images
    return found


def depth(names: Sequence[str]) -> int:
    """How many convolutions it takes to come to the last of the named ones."""
    return 1 + max(map(LAYERS.index, names))


def load(source: str, names: Sequence[str], thinning: int, data_dir: Path, download: bool) -> Features:
    """Weights up to the last of the named layers: ImageNet's or random ones, as `source` says.

    auto takes ImageNet's where they are at hand or can be fetched. Raises UserError, for a damaged file too.
    """
    if source == "random":
        return Features(random(depth(names), thinning), _said_of(thinning), learned=False)
    try:
        content = _read(data_dir, download)
    except AbsentError as missing:
        if source == "imagenet":
            raise
        said = f"{_said_of(thinning)}, for there are no ImageNet weights: {missing}"
        return Features(random(depth(names), thinning), said, learned=False)
    said = f"VGG-19 of ImageNet, torchvision's {FILE}, verified by digest"
    return Features(_chosen(content, depth(names)), said, learned=True)


def random(layers: int, thinning: int) -> Weights:
    """Normal weights of deviation sqrt(2 / inputs) (He et al. 2015), biases 0: always the same ones.

    All layers have their channels divided by `thinning`.
    """
    channels = [width // thinning for width, count in BLOCKS for _ in range(count)]
    weights: Weights = {}
    for name, inputs, outputs in zip(LAYERS[:layers], [3, *channels], channels, strict=False):
        drawn = torch.randn(outputs, inputs, 3, 3, generator=generator("vgg19", thinning, name))
        weights[name] = drawn * math.sqrt(2 / (9 * inputs)), torch.zeros(outputs)
    return weights


def _said_of(thinning: int) -> str:
    thin = f", channels divided by {thinning}" if thinning > 1 else ""
    return f"VGG-19 with random weights drawn by a fixed key{thin}"


def _chosen(content: bytes, layers: int) -> Weights:
    """The first convolutions of torchvision's file, in which ReLUs and poolings have numbers too."""
    stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    places = sorted({int(key.split(".")[1]) for key in stored if key.startswith("features.")})
    return {
        name: (stored[f"features.{place}.weight"].clone(), stored[f"features.{place}.bias"].clone())
        for name, place in zip(LAYERS[:layers], places, strict=False)
    }


def _read(data_dir: Path, download: bool) -> bytes:
    """The verified bytes of the file. Raises UserError that names the places and the remedy."""
    folders = (data_dir, files.cache_dir(), Path(torch.hub.get_dir()) / "checkpoints")
    path = next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
    if path is not None:
        return _verified(path.read_bytes(), str(path))
    if not download:
        raise AbsentError(
            f"no file {data_dir / FILE}, and download=false forbids to fetch it; put it there, or choose "
            "task.features=random"
        )
    content = _fetched()
    with files.replacing(files.cache_dir() / FILE) as temporary:
        temporary.write_bytes(content)
    return content


def _fetched() -> bytes:
    from torchvision.models import VGG19_Weights

    url = VGG19_Weights.IMAGENET1K_V1.url
    try:
        request = urllib.request.Request(url, headers=files.AGENT)
        with urllib.request.urlopen(request, timeout=files.TIMEOUT) as answer:
            return _verified(answer.read(), url)
    except (OSError, http.client.HTTPException) as error:
        raise AbsentError(
            f"{url} did not answer ({error}); put {FILE} under data_dir, or choose task.features=random"
        ) from None


def _verified(content: bytes, origin: str) -> bytes:
    expected, found = FILE.split("-")[1].removesuffix(".pth"), hashlib.sha256(content).hexdigest()
    if not found.startswith(expected):
        raise UserError(
            f"{origin}: truncated or altered: its sha256 must begin with {expected}, it is {found} "
            f"({len(content)} bytes); delete it and put a good copy there"
        )
    return content
