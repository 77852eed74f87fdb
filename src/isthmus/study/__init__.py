"""The same chain, once or many times."""

from isthmus.study.evaluate import Record, evaluate, export_fitted, fit_plan, make_plan
from isthmus.study.recipes import Recipe, demo
from isthmus.study.rivals import Rival, png_bytes, rivals

__all__ = [
    "Recipe",
    "Record",
    "Rival",
    "demo",
    "evaluate",
    "export_fitted",
    "fit_plan",
    "make_plan",
    "png_bytes",
    "rivals",
]
