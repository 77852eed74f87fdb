"""Fit the weights: the base model, then the crossings; and image classifiers by recipe."""

from isthmus.train.augment import Augmentation, Normalization, normalization_of
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
from isthmus.train.images import (
    ImageRecipe,
    ImageScores,
    evaluate_images,
    fast_recipe,
    small_recipe,
    standard_recipe,
    train_images,
)
from isthmus.train.loop import PhaseRecord, Progress
from isthmus.train.rivals import Rival, png_bytes, rivals

__all__ = [
    "Augmentation",
    "FitConfig",
    "FitRecord",
    "Fitted",
    "ImageRecipe",
    "ImageScores",
    "Normalization",
    "PhaseRecord",
    "Progress",
    "Rival",
    "accuracy",
    "calibrate",
    "check_fits",
    "evaluate_images",
    "fast_recipe",
    "fit_base",
    "fit_crossings",
    "normalization_of",
    "png_bytes",
    "predict",
    "read_fitted",
    "rivals",
    "small_recipe",
    "split_with_codecs",
    "standard_recipe",
    "train_images",
    "write_fitted",
]
