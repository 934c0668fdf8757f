"""Inversion methods, a file each; :mod:`.registry` names them."""

from .registry import BEST_TRAINING_FREE, METHODS, Method, Options, describe, make_method, way_back

__all__ = ["BEST_TRAINING_FREE", "METHODS", "Method", "Options", "describe", "make_method", "way_back"]
