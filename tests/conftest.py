"""Shared by every test: hypothesis without wall-clock deadlines (the machine is shared)."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("deepinv", deadline=None, derandomize=True)
settings.load_profile("deepinv")
