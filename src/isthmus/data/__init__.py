"""Data sets as plain arrays."""

from isthmus.data.dataset import (
    DATASETS,
    Dataset,
    Reader,
    few_of,
    from_arrays,
    load_data,
    load_images,
    read_arrays,
)
from isthmus.data.images import Images
from isthmus.data.published import Search

__all__ = [
    "DATASETS",
    "Dataset",
    "Images",
    "Reader",
    "Search",
    "few_of",
    "from_arrays",
    "load_data",
    "load_images",
    "read_arrays",
]
