"""Make a small copy of the photographs, for a machine that only little can be carried to.

    python -m comfyui_deepinv.tools.garments.pack garments256.zip small.zip --side 208 --quality 87

WebP, the short side ``--side`` pixels; the 4,406 photographs to train with and to choose by take about 46 MB.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

from PIL import Image

from .photos import cut


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("--side", type=int, default=208)
    parser.add_argument("--quality", type=int, default=87)
    args = parser.parse_args()
    with zipfile.ZipFile(args.data) as source, zipfile.ZipFile(args.small, "w") as target:
        for name in sorted(one for one in source.namelist() if one.endswith(".jpg") and not one.startswith("test/")):
            image = cut(Image.open(io.BytesIO(source.read(name))))
            scale = args.side / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
            encoded = io.BytesIO()
            image.save(encoded, "WEBP", quality=args.quality)
            target.writestr(name.removesuffix(".jpg") + ".webp", encoded.getvalue())


if __name__ == "__main__":
    main()
