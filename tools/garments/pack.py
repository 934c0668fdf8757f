r"""Make a small copy of the photographs, for a machine that only little can be carried to, or of some of a split.

    python -m comfyui_deepinv.tools.garments.pack garments256.zip small.zip --side 208 --quality 87
    python -m comfyui_deepinv.tools.garments.pack garments256.zip benchmarks/held_out.zip --side 192 --quality 80 \
        --split test --count 64

WebP, the short side ``--side`` pixels; the 4,406 photographs to train with and to choose by take about 46 MB.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

from PIL import Image

from .photos import cut, some


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("--side", type=int, default=208)
    parser.add_argument("--quality", type=int, default=87)
    parser.add_argument("--split", help="this one alone, default all but the test split")
    parser.add_argument("--count", type=int, help="so many that have a word")
    args = parser.parse_args()
    with zipfile.ZipFile(args.data) as source, zipfile.ZipFile(args.small, "w") as target:
        target.writestr("LICENSE", source.read("LICENSE"))
        pictures = [one for one in source.namelist() if one.endswith(".jpg")]
        names = [one for one in pictures if (one.split("/")[0] == args.split if args.split else one[:4] != "test")]
        for name in some(names, args.count) if args.count else sorted(names):
            image = cut(Image.open(io.BytesIO(source.read(name))))
            scale = args.side / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
            encoded = io.BytesIO()
            image.save(encoded, "WEBP", quality=args.quality)
            target.writestr(name.removesuffix(".jpg") + ".webp", encoded.getvalue())


if __name__ == "__main__":
    main()
