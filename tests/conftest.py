"""Shared by every test: hypothesis without wall-clock deadlines (the machine is shared), and torch's threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("deepinv", deadline=None, derandomize=True)
settings.load_profile("deepinv")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A command that a test calls may set torch's number of threads, of which bits depend: set back after the test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
