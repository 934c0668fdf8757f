"""What the server's allocators have handed out, apart from what they keep to hand out again."""

from __future__ import annotations

import ctypes
import gc
import json
import sys

from comfy_api.latest import io

FIGURES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Mallinfo2(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns, from 2.33 on."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIGURES]


class ProbeHeap(io.ComfyNode):
    """Blocks that Python holds, bytes that C code holds; then glibc gives the pages it keeps back to the system."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        outputs = [io.String.Output()]
        return io.Schema(node_id="ProbeHeap", category="probe", inputs=[], outputs=outputs, not_idempotent=True)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Look, and give back; without glibc there are no bytes to tell and nothing is given back."""
        gc.collect()
        found = {"blocks": sys.getallocatedblocks(), "allocated": 0}
        libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        if hasattr(libc, "mallinfo2"):
            libc.mallinfo2.restype = _Mallinfo2
            told = libc.mallinfo2()
            found["allocated"] = told.uordblks + told.hblkhd
            libc.malloc_trim(0)
        return io.NodeOutput(json.dumps(found))
