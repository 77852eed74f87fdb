"""The whole of CIFAR-100, where a copy of it lies beside the repository."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isthmus.data import load_images

UNPACK = Path(__file__).parents[3] / "shared" / "data" / "unpack.py"


@pytest.mark.skipif(not UNPACK.is_file(), reason=f"no copy of CIFAR-100 at {UNPACK.parent}")
def test_the_whole_of_cifar100_has_its_published_statistics(tmp_path):
    subprocess.run([sys.executable, str(UNPACK), str(tmp_path)], check=True, timeout=120)
    train, test = (load_images("cifar100", part, data_dir=tmp_path) for part in ("train", "test"))
    assert train.x.shape == (50_000, 3, 32, 32)
    assert test.x.shape == (10_000, 3, 32, 32)
    assert set(np.bincount(train.y)) == {500}
    assert set(np.bincount(test.y)) == {100}
    assert train.superclasses is not None
    assert test.superclasses is not None
    assert set(np.bincount(train.superclasses)) == {5}
    assert np.array_equal(train.superclasses, test.superclasses)
    assert (train.classes[0], train.classes[99]) == ("apple", "worm")
    levels = np.arange(256) / 255
    for channel, (mean, deviation) in enumerate(
        zip((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), strict=True)
    ):
        share = np.bincount(train.x[:, channel].ravel(), minlength=256) / train.x[:, channel].size
        found = share @ levels
        assert found == pytest.approx(mean, abs=1e-4)
        assert np.sqrt(share @ (levels - found) ** 2) == pytest.approx(deviation, abs=1e-4)
