"""The same chain, once or many times."""

from isthmus.study.accuracy import accuracy_table
from isthmus.study.calibrate import post_hoc_accuracy
from isthmus.study.compress import compress_model
from isthmus.study.evaluate import Record, evaluate, export_fitted, fit_plan, make_plan
from isthmus.study.front import Balanced, Point, dominated, front, hypervolume, knee, least_bytes
from isthmus.study.measure import measure_nodes
from isthmus.study.recipes import Recipe, demo
from isthmus.study.trained import trained_rows

__all__ = [
    "Balanced",
    "Point",
    "Recipe",
    "Record",
    "accuracy_table",
    "compress_model",
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
    "measure_nodes",
    "post_hoc_accuracy",
    "trained_rows",
]
