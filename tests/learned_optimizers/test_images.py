"""Pictures of runs on tasks of images."""

from xml.etree import ElementTree

import pytest
import torch

from metalearn.learned_optimizers.images import trajectory, write_images
from metalearn.learned_optimizers.rules import HandRule
from metalearn.report.inline import inline
from metalearn.rng import generator
from metalearn.task import Batch, Task

SIDE = 4


@pytest.fixture
def canvas(kit):
    """Problems of one image each: half the squared distance to x, by gradient descent of rate 0.5."""

    class Canvas(Task):
        spec = kit.spec("canvas", "function", (3, SIDE, SIDE), 3 * SIDE**2)

        def batch(self, split, index):
            x = torch.rand(2, 3, SIDE, SIDE, generator=generator("canvas", split, index))
            return Batch(x, x.flatten(1), (split, index))

        def batches(self, split):  # noqa: ARG002
            return 1

        def sweep(self, split):
            yield self.batch(split, 0)

        def loss(self, output, batch):
            return (output - batch.y).square().sum(1).mean() / 2

        def metrics(self, output, batch):
            return {"loss": self.loss(output, batch).detach()}

        def images(self, theta, batch):
            return theta.view_as(batch.x).clamp(0, 1)

    return kit.optimizee(kit.learned(deviation=0.0), kit.context(Canvas()))


def test_a_run_on_images_step_by_step(canvas, kit):
    """From zeros each step goes half of what is left, on the first three problems of the split."""
    seen = trajectory(HandRule("sgd", 0.5, kit.tuned()), {}, canvas, "test")
    wanted = torch.cat([canvas.task.batch("test", index).x for index in range(3)])[:3]
    assert len(seen) == canvas.options.horizon + 1
    for step, images in enumerate(seen):
        torch.testing.assert_close(images, wanted * (1 - 0.5**step))


@pytest.mark.slow  # draws
def test_pictures_are_written_and_taken_into_a_page(canvas, kit, tmp_path):
    rules = {name: (HandRule(name, 0.5, kit.tuned()), {}) for name in ("sgd", "adam")}
    write_images(tmp_path, rules, canvas, "test")
    text = (tmp_path / "images.svg").read_text()
    for svg in (text, inline(text, "figure", "images")):
        images = [e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("}image")]
        assert len(images) == 3 * 4  # start, middle and end of the first, end of the second
        links = {value for e in images for key, value in e.attrib.items() if key.endswith("href")}
        assert all(link.startswith("data:image/png;base64,") for link in links)
        assert len(links) > 9  # the starts are all black
    before = (tmp_path / "images.svg").read_bytes()
    write_images(tmp_path, rules, canvas, "test")
    assert (tmp_path / "images.svg").read_bytes() == before


def test_other_tasks_have_no_pictures(kit, tmp_path):
    optimizee = kit.optimizee(kit.learned(), kit.context(kit.Quadratics()))
    write_images(tmp_path, {"sgd": (HandRule("sgd", 0.5, kit.tuned()), {})}, optimizee, "test")
    assert not list(tmp_path.iterdir())


def test_a_page_takes_no_picture_from_elsewhere():
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><image href="{}"/></svg>'
    for outside in ("https://a.b/c.png", "data:text/html;base64,AAAA", "//a/data:image/png;base64,AA"):
        assert "href" not in inline(svg.format(outside), "figure", "words")
    assert 'href="data:image/png;base64,AA"' in inline(
        svg.format("data:image/png;base64,AA"), "figure", "words"
    )
