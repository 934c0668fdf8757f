"""What the ComfyUI registry ships of the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]


def shipped() -> list[str]:
    """The files that `comfy node publish` packs: those of the repository that .comfyignore does not name."""
    every = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    ignored = [*every[:3], "--cached", "--others", "--ignored", "--exclude-from=.comfyignore"]
    listed = [
        subprocess.run(one, cwd=ROOT, capture_output=True, check=True).stdout.decode() for one in (every, ignored)
    ]
    inside, outside = ({name for name in text.split("\0") if name} for text in listed)
    return sorted(name for name in inside - outside if (ROOT / name).is_file())
