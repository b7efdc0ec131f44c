"""`updsl train`: does a rule help a small model through trouble? Imports torch; only the command line imports this, and only for that command."""

from updsl.train.corpus import Corpus, read_corpus
from updsl.train.job import Run, Settings, train
from updsl.train.methods import Method, clip_grad_norm, no_clipping, ruled
from updsl.train.model import Size
from updsl.train.plot import plot
from updsl.train.summary import summarize, table, to_json

__all__ = [
    "Corpus",
    "Method",
    "Run",
    "Settings",
    "Size",
    "clip_grad_norm",
    "no_clipping",
    "plot",
    "read_corpus",
    "ruled",
    "summarize",
    "table",
    "to_json",
    "train",
]
