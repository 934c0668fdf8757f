"""Names of files and folders."""

from __future__ import annotations

import pytest

from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.names import LONGEST, safe_name


@pytest.mark.parametrize("name", ["solver", "my solver-2_b", "v1.5", "console", "ö" * (LONGEST // 2), "求解器"])
def test_a_name_is_kept(name: str) -> None:
    assert safe_name(f" {name}\n") == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("..", "dot"),
        (".hidden", "dot"),
        ("end.", "dot"),
        ("../up", "'/'"),
        ("a\\b", "no path"),
        ("c:x", "':'"),
        ("a\0b", "no path"),
        ("a\nb", "no path"),
        ("\u202etxt", "no path"),
        ("what?", "no path"),
        ("x" * (LONGEST + 1), "longer than"),
        ("ö" * LONGEST, "longer than"),
        ("\udc80" * LONGEST, "longer than|no path"),
        ("NUL", "reserved"),
        ("com1.txt", "reserved"),
        ("Aux.", "dot"),
    ],
)
def test_what_is_no_name_is_refused(name: str, reason: str) -> None:
    with pytest.raises(DeepInvError, match=reason):
        safe_name(name)
