"""Make a model smaller: the techniques of the surveys, each a function from module to module."""

from isthmus.compress.chain import TECHNIQUES, Step, apply, parse_chain, settle
from isthmus.compress.figures import figures
from isthmus.compress.technique import Samples, Technique, Training

__all__ = [
    "TECHNIQUES",
    "Samples",
    "Step",
    "Technique",
    "Training",
    "apply",
    "figures",
    "parse_chain",
    "settle",
]
