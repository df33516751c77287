"""A data set of some of its labels (CIFAR-5 and CIFAR-2 of Andrychowicz et al. 2016, section 3.3)."""

import dataclasses
from pathlib import Path

import pytest
import torch

from metalearn import registry
from metalearn.registry import UserError

SPLITS = ("train", "valid", "test")


@pytest.fixture
def only(options, request):
    """only(name, labels, **changes): a task of some labels."""

    def build(name, labels, **changes):
        folder = Path("none") if name == "digits" else request.getfixturevalue("data_dir")
        chosen = dataclasses.replace(options(name), labels=labels, **changes)
        return registry.build(
            "task", chosen, seed=0, data_dir=folder, download=False, device=torch.device("cpu")
        )

    return build


def swept(task, split):
    batches = list(task.sweep(split))
    return torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches])


def test_a_subset_has_the_same_examples_under_new_numbers(make, only):
    """By split of the official test set: class k of the subset is class labels[k] of the whole."""
    whole, some = make("digits"), only("digits", [7, 2, 5])
    assert some.spec.outputs == 3
    assert "of it only labels 7, 2, 5" in some.spec.provenance
    for ours, theirs in ((("train", "valid"), ("train", "valid")), (("test",), ("test",))):
        x, y = (torch.cat(parts) for parts in zip(*(swept(some, split) for split in ours), strict=True))
        every, labels = (torch.cat(parts) for parts in zip(*(swept(whole, s) for s in theirs), strict=True))
        kept = torch.isin(labels, torch.tensor([7, 2, 5]))
        assert torch.equal(x, every[kept])
        assert torch.equal(torch.tensor([7, 2, 5])[y], labels[kept])
    assert torch.equal(some.batch("train", 0).y.unique(), torch.arange(3))


def test_subsets_of_other_labels_share_no_example(only):
    """LSTM-sub learns on what the evaluated subset has none of; together they are the data set."""
    evaluated, other = only("digits", [0, 1], valid_size=50), only("digits", list(range(2, 10)))
    images = [
        {x.numpy().tobytes() for split in SPLITS for x in swept(task, split)[0]}
        for task in (evaluated, other)
    ]
    assert not images[0] & images[1]
    assert sum(evaluated.spec.sizes[s] + other.spec.sizes[s] for s in SPLITS) == 1797


def test_all_labels_are_the_data_set(make, only):
    whole, all_ = make("digits"), only("digits", list(range(10)))
    assert (whole.spec.digest, whole.spec.sizes) == (all_.spec.digest, all_.spec.sizes)
    assert torch.equal(whole.batch("train", 3).x, all_.batch("train", 3).x)


@pytest.mark.parametrize("labels", [[], [3], [3, 3], [0, 10]])
def test_what_is_no_subset_is_refused(only, labels):
    with pytest.raises(
        UserError, match=r"task.labels: got .* must be null or two or more of 0 to 9, each once"
    ):
        only("digits", labels)


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "valid"), [([0, 1, 2, 3, 4], 2500), ([0, 1], 1000)])
def test_counts_of_cifar(only, labels, valid):
    """5,000 images a label to train on, 1,000 to test."""
    task = only("cifar10", labels, valid_size=valid)
    count = len(labels)
    assert task.spec.sizes["train"] + task.spec.sizes["valid"] == 5000 * count
    assert (task.spec.sizes["test"], task.spec.outputs) == (1000 * count, count)
    assert torch.bincount(swept(task, "test")[1]).tolist() == [1000] * count
