"""Codebooks: the weights of a layer take few values, which training tunes."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isthmus.compress.sparse import SPARSE
from isthmus.compress.technique import (
    ENDS,
    Options,
    Samples,
    Technique,
    layers,
    number,
    without_ends,
)

_MOST_FITTED = 1 << 16  # weights of a layer that centroids are sought for


class Shared(nn.Module):
    r"""Gives each weight the value of its cluster; a weight of 0 stays 0.

    .. math:: w_i = c_{a_i}, \quad \partial L / \partial c_k = \sum_{a_i = k} \partial L /
              \partial w_i

    Args:
        centroids: c, (K,).
        cluster: a, of the weight's shape; K where the weight is 0.
    """

    cluster: Tensor

    def __init__(self, centroids: Tensor, cluster: Tensor) -> None:
        super().__init__()
        self.centroids = nn.Parameter(centroids)
        self.register_buffer("cluster", cluster)

    def forward(self, weight: Tensor) -> Tensor:
        """Return what the weight becomes."""
        del weight  # only its clusters count
        values = torch.cat([self.centroids, self.centroids.new_zeros(1)])
        return values[self.cluster]


class Ternary(nn.Module):
    r"""Gives each weight the value -n, 0 or p, two values that are learned for the layer.

    .. math:: w^t = \begin{cases} p & w > \Delta \\ -n & w < -\Delta \\ 0 & else \end{cases},
              \quad \Delta = \theta \; max |w|, \quad
              \frac{\partial L}{\partial p} = \sum_{w > \Delta} \frac{\partial L}{\partial w^t},
              \quad \frac{\partial L}{\partial n} =
              - \sum_{w < -\Delta} \frac{\partial L}{\partial w^t}

    The gradient passes to w times p, n or 1, by where it lies. p and n begin as the means of what
    takes them; a weight of 0 stays 0.

    Args:
        weight: w, of any shape.
        threshold: theta.

    References:
        Zhu, Han, Mao, Dally, "Trained Ternary Quantization", ICLR 2017,
        https://arxiv.org/abs/1612.01064 (equations 6 to 9).
    """

    kept: Tensor

    def __init__(self, weight: Tensor, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.register_buffer("kept", weight != 0)
        over, under = self._sides(weight)
        self.positive = nn.Parameter(_mean(weight[over]))
        self.negative = nn.Parameter(_mean(-weight[under]))

    def _sides(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        edge = self.threshold * weight.abs().max()
        return (weight > edge) & self.kept, (weight < -edge) & self.kept

    def forward(self, weight: Tensor) -> Tensor:
        """Return what the weight becomes."""
        over, under = self._sides(weight.detach())
        value = torch.where(over, self.positive, torch.where(under, -self.negative, 0.0))
        slope = torch.where(over, self.positive, torch.where(under, self.negative, 1.0)).detach()
        return value + slope * self.kept * (weight - weight.detach())


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.new_zeros(())


def cluster(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find k-means centroids of the weights that are not 0, beginning evenly from end to end.

    Args:
        weight: Of any shape.
        count: K, at most.

    Returns:
        The centroids (K,) and each weight's cluster, K where it is 0.
    """
    from sklearn.cluster import KMeans  # noqa: PLC0415  (takes a second to load)

    used = weight[weight != 0].double()
    found = torch.full(weight.shape, 0)
    different = used.unique()
    if len(different) <= count:
        centroids = different
    else:
        num = min(len(used), _MOST_FITTED)
        some = used[torch.linspace(0, len(used) - 1, num, dtype=torch.float64).long()]
        start = torch.linspace(float(used.min()), float(used.max()), count)
        fitted = KMeans(count, init=start[:, None].double().numpy(), n_init=1)
        fitted.fit(some[:, None].numpy())
        centroids = torch.from_numpy(fitted.cluster_centers_[:, 0]).sort().values
    edges = (centroids[1:] + centroids[:-1]) / 2
    found = torch.bucketize(weight.double(), edges)
    found[weight == 0] = len(centroids)
    return centroids.float(), found


def kmeans(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Let the weights of each layer share 2**bits values, less one for 0 where some are 0."""
    del samples
    for layer in layers(model, SPARSE, options, technique="share:kmeans").values():
        weight = layer.get_parameter("weight").detach()
        count = 2 ** options["bits"] - int((weight == 0).any())
        shared = Shared(*cluster(weight, count))
        parametrize.register_parametrization(layer, "weight", shared, unsafe=True)
    return model


def ternary(model: nn.Module, options: Options, samples: Samples) -> nn.Module:
    """Let the weights of each layer, but for the first and the last, be -n, 0 or p."""
    del samples
    chosen = layers(model, SPARSE, options, technique="share:ternary")
    for layer in without_ends(chosen, options).values():
        weight = layer.get_parameter("weight").detach()
        values = Ternary(weight, options["threshold"])
        parametrize.register_parametrization(layer, "weight", values)
    return model


SHARING = (
    Technique(
        name="share:kmeans",
        does="lets the weights of a layer share few values",
        paper="Han, Mao, Dally, ICLR 2016, https://arxiv.org/abs/1510.00149",
        level="arithmetic",
        improves=("stored bytes",),
        stage="values",
        apply=kmeans,
        options={"bits": number(low=1, high=8, default=4, whole=True)},
    ),
    Technique(
        name="share:ternary",
        does="weights -n, 0 or p, with n and p learned for each layer",
        paper="Zhu, Han, Mao, Dally, ICLR 2017, https://arxiv.org/abs/1612.01064",
        level="arithmetic",
        needs="training",
        improves=("parameters", "stored bytes"),
        stage="values",
        apply=ternary,
        options={"threshold": number(low=0, high=0.9, default=0.05), **ENDS},
    ),
)
