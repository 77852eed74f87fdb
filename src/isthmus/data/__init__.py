"""Data sets as plain arrays."""

from isthmus.data.dataset import DATASETS, Dataset, from_arrays, load_data, read_arrays

__all__ = ["DATASETS", "Dataset", "from_arrays", "load_data", "read_arrays"]
