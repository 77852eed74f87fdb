"""The same chain, once or many times."""

from isthmus.study.evaluate import Record, evaluate, export_fitted, fit_plan, make_plan
from isthmus.study.front import (
    Balanced,
    Point,
    dominated,
    front,
    hypervolume,
    knee,
    least_bytes,
)
from isthmus.study.recipes import Recipe, demo

__all__ = [
    "Balanced",
    "Point",
    "Recipe",
    "Record",
    "demo",
    "dominated",
    "evaluate",
    "export_fitted",
    "fit_plan",
    "front",
    "hypervolume",
    "knee",
    "least_bytes",
    "make_plan",
]
