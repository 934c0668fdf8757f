"""Euler inversion, the model asked at the target's sigma ("DDIM inversion") or at the source's."""

from .entry import Entry
from .explicit import Euler
from .implicit import Implicit, TargetEuler

EULER = Entry("euler", "Euler at the target sigma (DDIM inversion)", Implicit(TargetEuler()))
EULER_SOURCE = Entry("euler_source", "Euler at the source sigma", Euler())
