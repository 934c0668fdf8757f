"""Inversion methods, a file each; :mod:`.registry` lists them."""

from .entry import Cost, Entry, Option, option, options_of
from .registry import (
    BEST_TRAINING_FREE,
    METHODS,
    Method,
    Options,
    describe,
    known_options,
    make_method,
    method_table,
    method_values,
    way_back,
)
