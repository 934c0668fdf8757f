"""The pack's own error: every refusal of input is one of these, one sentence a person can act on."""

from __future__ import annotations


class DeepInvError(ValueError):
    """Input this pack refuses. The message gives the value seen, what is accepted and what to do."""

    __module__ = "builtins"  # ComfyUI shows a person the type with its module, which is the path of the installation
