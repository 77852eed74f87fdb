"""Fit the weights: the base model, then the crossings."""

from isthmus.train.fit import (
    FitConfig,
    accuracy,
    calibrate,
    check_fits,
    fit_base,
    fit_crossings,
    predict,
)
from isthmus.train.fitted import FitRecord, Fitted, read_fitted, split_with_codecs, write_fitted
from isthmus.train.loop import PhaseRecord, Progress

__all__ = [
    "FitConfig",
    "FitRecord",
    "Fitted",
    "PhaseRecord",
    "Progress",
    "accuracy",
    "calibrate",
    "check_fits",
    "fit_base",
    "fit_crossings",
    "predict",
    "read_fitted",
    "split_with_codecs",
    "write_fitted",
]
