"""Inversion methods, a file each; :mod:`.registry` names them."""

from .registry import METHODS, Method, Options, describe, make_method, way_back

__all__ = ["METHODS", "Method", "Options", "describe", "make_method", "way_back"]
