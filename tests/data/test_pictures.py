"""Pictures by index: in memory, some of them, and those that a check finds usable."""

import numpy as np
import pytest
import torch

from daps_robot.data.pictures import ArrayPictures, Subset, check, label_by_name, numbered_classes
from daps_robot.errors import DataError

PIXELS = np.arange(5 * 2 * 3 * 1, dtype=np.uint8).reshape(5, 2, 3, 1)


class Fragile(ArrayPictures):
    """Every third picture is damaged."""

    def gather(self, index):
        if (index % 3 == 2).any():
            raise DataError(f"picture {int(index[0])} is damaged")
        return super().gather(index)


def test_a_subset_has_the_pictures_and_labels_that_it_names():
    pictures = ArrayPictures(PIXELS, np.array([0, 1, 0, 1, 1]), ("a", "b"), "here")
    subset = Subset(Subset(pictures, np.array([4, 1, 0])), np.array([2, 0]))
    assert (len(pictures), len(subset), subset.shape) == (5, 2, (2, 3, 1))
    assert (subset.labels.tolist(), subset.classes, subset.where) == ([0, 1], ("a", "b"), "here")
    assert np.array_equal(subset.gather(torch.tensor([1, 0, 1])), PIXELS[[4, 0, 4]])
    assert Subset(ArrayPictures(PIXELS), np.array([1])).labels is None


@pytest.mark.parametrize("wrong", [-1, 2])
def test_labels_that_no_class_has(wrong):
    with pytest.raises(DataError, match=f"here: picture 3 has label {wrong}, but there are 2 classes"):
        ArrayPictures(PIXELS, np.array([0, 1, 0, wrong, 1]), ("a", "b"), "here")
    with pytest.raises(DataError, match="65536 classes"):
        numbered_classes(np.array([0, 2**40]), "here")


def test_classes_by_name():
    labels, classes = label_by_name(["cat", "ant", "cat"], (), "here")
    assert (labels.tolist(), classes) == ([1, 0, 1], ("ant", "cat"))
    assert label_by_name(["cat"], ("ant", "bee", "cat"), "here")[0].tolist() == [2]
    with pytest.raises(DataError, match="here: 'cow' is no class"):
        label_by_name(["cow"], classes, "here")


def test_a_check_counts_what_cannot_be_used():
    good, bad, first = check(Fragile(np.zeros((2000, 1, 1, 1), np.uint8)))
    assert np.array_equal(good, np.flatnonzero(np.arange(2000) % 3 != 2))
    assert (bad, first) == (666, tuple(f"picture {i} is damaged" for i in (2, 5, 8)))
