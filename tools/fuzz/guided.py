"""Guided by coverage: atheris looks for bytes that lead a reader to code no case has reached yet.

    pip install atheris        # Linux, and macOS with LLVM; Python 3.11 to 3.13 (release 3.0.0)
    python -m comfyui_deepinv.tools.fuzz.guided "released checkpoint" --seconds 300

It ends at the first input that is neither refused in one sentence nor read, and leaves that input in a file. Random
cases with counted outcomes are those of the package; this is for looking further, and no part of the committed figures.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import atheris

PARTS = ["comfyui_deepinv.deepinv_core", "comfyui_deepinv.training", "pickletools", "zipfile", "json"]


def main() -> None:
    """Fuzz one reader, from its valid files on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader")
    parser.add_argument("--seconds", type=int, default=300)
    args = parser.parse_args()
    with atheris.instrument_imports(include=PARTS):
        from ...deepinv_core.errors import DeepInvError
        from .guard import wrong_with
        from .readers import READERS
    logging.disable(logging.CRITICAL)
    reader = READERS[args.reader]()
    with tempfile.TemporaryDirectory() as name:
        corpus, box = Path(name) / "corpus", Path(name) / "box"
        corpus.mkdir()
        box.mkdir()
        for number, sample in enumerate(reader.samples):
            (corpus / str(number)).write_bytes(sample)
        reader.surround(box)
        path = box / reader.file
        path.parent.mkdir(parents=True, exist_ok=True)

        def one(content: bytes) -> None:
            path.write_bytes(content)
            try:
                reader.read(path)
            except DeepInvError as error:
                if problem := wrong_with(str(error)):
                    raise AssertionError(f"{problem}: {error}") from error

        longest = max(map(len, reader.samples)) + 4096
        limits = [f"-max_total_time={args.seconds}", f"-max_len={longest}", "-rss_limit_mb=3000", "-timeout=30"]
        atheris.Setup([sys.argv[0], *limits, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
