"""Five model classes of the sweep (python -m comfyui_deepinv.tools.families), small, in a server of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from comfyui_deepinv.tools.families.sweep import CLOSE, PACK, PACK_NAME, run_class

from .environment import ROOT, Installation
from .server import PACK_NAME as OWN_NAME
from .server import ComfyServer

FAMILIES = ["Flux", "QwenImage", "SDXL", "WAN21_I2V", "Lumina2"]
WITH_REFERENCE = {"Flux", "QwenImage", "WAN21_I2V"}


@pytest.fixture(scope="module")
def address(comfyui: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    packs = {OWN_NAME: ROOT, PACK_NAME: PACK}
    with ComfyServer(comfyui, tmp_path_factory.mktemp("families"), packs) as running:
        yield running.address


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_works(name: str, address: str) -> None:
    """Inverted, brought back, edited, trained for three updates; a reference image reaches it in both directions."""
    outcome = run_class(address, name)
    assert outcome.verdict == "works", outcome
    assert outcome.back < CLOSE and (outcome.reference is not None) == (name in WITH_REFERENCE)


def test_a_model_that_begins_with_a_picture_is_refused_by_name(address: str) -> None:
    outcome = run_class(address, "LotusD")
    assert outcome.verdict == "refused" and outcome.reason.startswith("this model (Lotus) makes a picture from another")
