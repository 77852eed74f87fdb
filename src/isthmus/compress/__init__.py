"""Make a model smaller: the techniques of the surveys, each a function from module to module."""

from isthmus.compress.chain import TECHNIQUES, Step, apply, check_chain, parse_chain, settle
from isthmus.compress.figures import figures
from isthmus.compress.savings import Savings, count_savings
from isthmus.compress.technique import Samples, Technique, Training

__all__ = [
    "TECHNIQUES",
    "Samples",
    "Savings",
    "Step",
    "Technique",
    "Training",
    "apply",
    "check_chain",
    "count_savings",
    "figures",
    "parse_chain",
    "settle",
]
