"""Experiments: functions without arguments that return a frozen recipe."""

from dataclasses import dataclass

from isthmus.train import FitConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that one walk along the chain depends on.

    Attributes:
        name: What people call it.
        model: As the command line takes it.
        data: As the command line takes it.
        platform: A preset's name or the path of a platform file.
        objective: latency, throughput or energy.
        codec: What carries inner crossings; None lets the planner choose.
        fit: Epochs, rates and the seed of everything.
        smaller: A smaller network that stands against the split one, or None.
    """

    name: str
    model: str
    data: str
    platform: str
    objective: str = "latency"
    codec: str | None = None
    fit: FitConfig
    smaller: str | None = None


def demo() -> Recipe:
    """A small ResNet on digits, on two microcontrollers of which neither can hold it.

    The codec was chosen among three of 32 bytes on a fifth of the training set held out, five
    seeds each (`benchmarks/demo_codec.py`); the test set chose nothing.
    """
    return Recipe(
        name="demo",
        model="digits-resnet",
        data="digits",
        platform="two-mcu-spi",
        codec="bottleneck:ratio=4,bits=2",
        fit=FitConfig(epochs=12, base_epochs=16),
        smaller="digits-resnet-small",
    )
