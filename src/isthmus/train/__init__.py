"""Fit the weights: the base model, then the crossings; and image classifiers by recipe."""

from isthmus.train.augment import Augmentation, Normalization, augmentation_for, normalization_of
from isthmus.train.crossings import fit_crossings
from isthmus.train.exits import EarlyExit, calibrate_exit, fit_exit, measure_exits
from isthmus.train.fit import (
    FitConfig,
    accuracy,
    calibrate,
    check_fits,
    check_labels,
    fit_base,
    predict,
    with_answers,
)
from isthmus.train.fitted import (
    FitRecord,
    FitResult,
    Fitted,
    read_fitted,
    split_with_codecs,
    write_fitted,
)
from isthmus.train.images import (
    ImageRecipe,
    ImageScores,
    evaluate_images,
    fast_recipe,
    small_recipe,
    standard_recipe,
    train_images,
)
from isthmus.train.ladder import Rung, climb_down, enough
from isthmus.train.loop import PhaseRecord, Progress
from isthmus.train.rivals import Rival, png_bytes, rivals
from isthmus.train.sizes import fill_tables, payload_bytes
from isthmus.train.tune import agreement, check_losses, tune
from isthmus.train.widths import WidthResult, measure_widths

__all__ = [
    "Augmentation",
    "EarlyExit",
    "FitConfig",
    "FitRecord",
    "FitResult",
    "Fitted",
    "ImageRecipe",
    "ImageScores",
    "Normalization",
    "PhaseRecord",
    "Progress",
    "Rival",
    "Rung",
    "WidthResult",
    "accuracy",
    "agreement",
    "augmentation_for",
    "calibrate",
    "calibrate_exit",
    "check_fits",
    "check_labels",
    "check_losses",
    "climb_down",
    "enough",
    "evaluate_images",
    "fast_recipe",
    "fill_tables",
    "fit_base",
    "fit_crossings",
    "fit_exit",
    "measure_exits",
    "measure_widths",
    "normalization_of",
    "payload_bytes",
    "png_bytes",
    "predict",
    "read_fitted",
    "rivals",
    "small_recipe",
    "split_with_codecs",
    "standard_recipe",
    "train_images",
    "tune",
    "with_answers",
    "write_fitted",
]
