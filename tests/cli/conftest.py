"""A small network, data and platform of somebody's own, and a way to call the command line."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from isthmus import cli
from tests.nets import write_model

NET = """
import torch
from torch import nn


class Odd(nn.Module):
    '''Two inputs' worth of trouble: an odd width, a skip, a branch and a functional op.'''

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.mix = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.down = nn.Conv2d(12, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.mix(x))
        x = torch.relu(self.down(x))
        return self.head(x.mean(dim=(2, 3)))


def make():
    return Odd()


def branching():
    class Branching(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    return Branching()


def looping():
    class Looping(nn.Module):
        def forward(self, x):
            while x.norm() < 10:
                x = x * 3
            return x

    return Looping()


def selecting():
    class Selecting(nn.Module):
        def forward(self, x):
            return x[x > 0]

    return Selecting()
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def isthmus(capsys, monkeypatch):
    """Call the command line as a user does; returns exit code, stdout and stderr."""

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["isthmus", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with net.py, w.safetensors and data.npz; the current folder."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path, NET)
    rng = np.random.default_rng(0)

    def half(n):
        y = rng.integers(0, 5, n)
        x = rng.integers(0, 60, (n, 2, 9, 7)) + 35 * y[:, None, None, None]
        return x.astype(np.uint8), y

    (x_train, y_train), (x_test, y_test) = half(160), half(60)
    np.savez(tmp_path / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return tmp_path
