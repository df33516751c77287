"""Neural art (Gatys et al. 2015): an image with one photograph's content and another's style."""

import hashlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec
from tasks import pictures, vgg
from tasks.function_config import NeuralArtOptions

SPLITS = ("train", "valid", "test", "search_train", "search_valid")
Images = Float[Tensor, "batch 3 side side"]
Values = Float[Tensor, " batch"]


class NeuralArt(Task):
    """alpha * content + beta * style + gamma * total variation (Andrychowicz et al. 2016, section 3.4).

    theta [batch, 3 side side] is the image, or its difference from the content image, in deviations of a
    channel from its mean. `Batch.x` [batch 3 side side] are the content images, `Batch.y` [batch features]
    their activations in the content layers. There is one style image, which is part of the task.
    """

    def __init__(
        self, options: NeuralArtOptions, seed: int, data_dir: Path, download: bool, device: torch.device
    ) -> None:
        _check(options)
        self.options, self.seed, self.device = options, seed, device
        layers = [*options.content_layers, *options.style_layers]
        features = vgg.load(options.features, layers, options.thinning, data_dir, download)
        if options.features == "auto" and not features.learned:
            sys.stderr.write(f"metalearn: task neural_art: features are {features.provenance}\n")
        self.weights = {name: (w.to(device), b.to(device)) for name, (w, b) in features.weights.items()}
        self.content = pictures.content(data_dir, options.valid_images, options.test_images)
        style = pictures.style(options.style, data_dir)
        self.mean, self.deviation = (
            torch.tensor(values, device=device) for values in (vgg.MEAN, vgg.DEVIATION)
        )
        painting = self._normalised(pictures.middle(style.by_split["train"][0], options.side).unsqueeze(0))
        self.grams = {name: gram(found) for name, found in self._activations(painting).items()}
        self.spec = self._spec(features, style)

    def _spec(self, features: vgg.Features, style: pictures.Pictures) -> TaskSpec:
        options = self.options
        told = f"{self.content.digest} {style.digest} {features.learned} {options}"
        return TaskSpec(
            name=options.name,
            kind="function",
            input_shape=(3, options.side, options.side),
            outputs=3 * options.side**2,
            sizes=dict.fromkeys(SPLITS, options.evaluated),
            metric="loss",
            source="Gatys et al. 2015, as in Andrychowicz et al. 2016, section 3.4",
            licence="that of the photographs (scikit-learn's: CC BY 2.0) and of torchvision's weights",
            provenance="; ".join(
                (f"content: {self.content.provenance}", f"style: {style.provenance}", features.provenance)
            ),
            digest=hashlib.sha256(told.encode()).hexdigest(),
            comparable=False,  # the paper names neither its images nor alpha, beta and gamma
        )

    def batch(self, split: Split, index: int) -> Batch:
        """Fresh squares of the split's pictures, and what they give in the content layers."""
        options, key = self.options, (self.seed, self.options.name, split, index)
        rng, chosen = generator(*key), self.content.by_split[split]
        places = torch.randint(len(chosen), (options.batch,), generator=rng).tolist()
        cut = [pictures.square(chosen[place], options.smallest_box, options.side, rng) for place in places]
        images = self._normalised(torch.stack(cut))
        with torch.no_grad():
            found = self._activations(images)
        wanted = [found[name].flatten(1) for name in options.content_layers]
        return Batch(images, torch.cat(wanted, 1), key)

    def batches(self, split: Split) -> int:
        return math.ceil(self.spec.sizes[split] / self.options.batch)

    def sweep(self, split: Split) -> Iterator[Batch]:
        for index in range(self.batches(split)):
            x, y, key = self.batch(split, index)
            count = min(self.options.batch, self.options.evaluated - index * self.options.batch)
            yield Batch(x[:count], y[:count], key)

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        return sum(self._parts(output, batch).values(), output.new_zeros(())).mean()

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        """The loss, and what each of its three terms adds to it."""
        parts = {name: part.mean() for name, part in self._parts(output.detach(), batch).items()}
        return {"loss": self.loss(output, batch).detach(), **parts}

    def images(self, theta: Float[Tensor, "batch dimension"], batch: Batch) -> Images:
        """The images that theta stands for, in [0, 1]."""
        shown = self._image(theta, batch) * self.deviation.view(3, 1, 1) + self.mean.view(3, 1, 1)
        return shown.clamp(0, 1)

    def _parts(self, theta: Float[Tensor, "batch dimension"], batch: Batch) -> dict[str, Values]:
        options, image = self.options, self._image(theta, batch)
        found = self._activations(image)
        content = torch.cat([found[name].flatten(1) for name in options.content_layers], 1)
        styles = [style_loss(found[name], self.grams[name]) for name in options.style_layers]
        return {
            "content": options.alpha * (content - batch.y).square().sum(1) / 2,
            "style": options.beta * torch.stack(styles).mean(0),
            "variation": options.gamma * total_variation(image),
        }

    def _image(self, theta: Float[Tensor, "batch dimension"], batch: Batch) -> Images:
        image = theta.unflatten(1, self.spec.input_shape)
        return image + batch.x if self.options.origin == "content" else image

    def _activations(self, images: Images) -> dict[str, Tensor]:
        names = [*self.options.content_layers, *self.options.style_layers]
        return vgg.activations(self.weights, images, names, self.options.pooling)

    def _normalised(self, images: pictures.Pixels) -> Images:
        scaled = images.to(self.device).float() / 255
        return (scaled - self.mean.view(3, 1, 1)) / self.deviation.view(3, 1, 1)


def gram(features: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel channel"]:
    """Inner products of the channels, sums over places (Gatys et al. 2015, eq. 3)."""
    flat = features.flatten(2)
    return flat @ flat.mT


def style_loss(
    features: Float[Tensor, "batch channel height width"], wanted: Float[Tensor, "1 channel channel"]
) -> Values:
    """sum (G - A)^2 / (4 N^2 M^2) with N channels of M places (Gatys et al. 2015, eq. 4)."""
    channels, places = features.shape[1], features.shape[2] * features.shape[3]
    return (gram(features) - wanted).square().sum((1, 2)) / (4 * channels**2 * places**2)


def total_variation(images: Images) -> Values:
    """The sum of squared differences between neighbours, to the right and downwards."""
    across, down = images.diff(dim=3), images.diff(dim=2)
    return across.square().sum((1, 2, 3)) + down.square().sum((1, 2, 3))


def _check(options: NeuralArtOptions) -> None:
    """Raises UserError for layers that VGG-19 has not, or that do not fit the image or the weights."""
    for key in ("content_layers", "style_layers"):
        named = getattr(options, key)
        if not named or set(named) - set(vgg.LAYERS) or len(set(named)) < len(named):
            raise UserError(
                f"task.{key}: got {named}, must be one or more of: {', '.join(vgg.LAYERS)}, each once"
            )
    deepest = vgg.LAYERS[vgg.depth([*options.content_layers, *options.style_layers]) - 1]
    least = 2 ** (int(deepest[4]) - 1)
    if options.side < least:
        raise UserError(
            f"task.side: got {options.side}, must be at least {least} for {deepest}, which lies behind "
            f"{int(deepest[4]) - 1} poolings; name earlier layers, or raise it"
        )
    if options.thinning > 1 and options.features != "random":
        raise UserError(
            f"task.thinning: got {options.thinning} with task.features={options.features}; ImageNet's "
            "weights have all their channels: choose task.features=random or task.thinning=1"
        )
