"""Finds the packages, which configuration alone can't: they lie in the repository's root, not in a folder of one name.

Only folders that are there count: what the ComfyUI registry ships lacks some of them.
"""

from setuptools import find_packages, setup

ROOT = "comfyui_deepinv"
INSIDE = find_packages(exclude=["tests*"])

setup(packages=[ROOT, *(f"{ROOT}.{name}" for name in INSIDE)], package_dir={ROOT: "."})
