"""The later half of docs/benchmark.md: time and memory, off the training data, what was asked for, and the limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .data import CHOICE, SHAPES
from .entries import FEW
from .measure import RESIDUAL_IMAGES
from .plots import TITLES
from .quality import SCALES
from .records import Row
from .results import Results, goals
from .tables import folded, interval, table

FULL_SIZE = "; what a step costs at 1024 pixels is in [the full-size costs](benchmark/full_size.md)"


def appendix(results: Results, inside: Path) -> Iterator[str]:
    """Its lines; ``inside`` is the folder of results.jsonl."""
    full_size = (inside / "full_size.md").exists()
    yield from _time_and_memory(results, full_size)
    yield from _off_training(results)
    yield from _asked(results)
    yield from _limits(results, full_size)
    yield from _how(results)


def _time_and_memory(results: Results, full_size: bool) -> Iterator[str]:
    yield from ("## Time and memory", "")
    repeats, timed = results.where("timing")[0]["repeats"], results.about["timed_steps"]
    yield (
        f"Wall time as a ratio to Euler's in the same repeat, batch 1, median (and range) of {repeats} interleaved "
        f"repeats on {results.about['threads']} CPU thread(s). On so small a model the Python around it weighs "
        f"as much as its FLOPs{FULL_SIZE if full_size else ''}. "
        "Memory: the most bytes that tensors of the walk hold at once between operations, weights left out, as "
        "torch's dispatcher sees them: the process' own peak is the allocator's and hides a walk of some kilobytes. "
        f"`kept` is what must be stored for the way back. Both at N = {timed[-1]}, batch 1."
    )
    yield ""
    for model in results.models:
        ratios = {(row["entry"], row["steps"]): row for row in results.where("timing", model=model)}
        lines = []
        for row in results.where("memory", model=model):
            cells = [f"`{row['entry']}`"]
            for steps in timed:
                found = ratios[row["entry"], steps]
                for way in ("up_ratio", "both_ratio"):
                    middle, low, high = found[way]
                    cells.append(f"{middle:.2f} ({low:.2f}–{high:.2f})")
            lines.append([*cells, f"{row['peak_bytes'] / 1024:.0f} KiB", f"{row['kept_bytes'] / 1024:.0f} KiB"])
        head = ["", *(f"{way}, N = {n}" for n in timed for way in ("there", "both ways")), "peak", "kept"]
        yield from folded(f"{TITLES[model]}: time over Euler's, peak and kept memory", table(head, lines))


def _off_training(results: Results) -> Iterator[str]:
    yield from ("## Off the solvers' training data", "")
    yield (
        "Solvers were trained at 64x64 pixels, CFG 1, under the empty prompt. Latent SNR in dB; photographs are "
        "scikit-image's four, width x height in pixels."
    )
    yield ""
    sizes = [f"{width}x{height}" for height, width in SHAPES]
    for model in results.models:
        columns: list[tuple[str, dict[str, list[float]]]] = []
        for size in sizes:
            for steps in results.about["off_steps"]:
                some = [row for row in results.trips(model, images="photos", size=size) if row["steps"] == steps]
                columns.append((f"{size}, N = {steps}", _snr(some)))
        yield from folded(f"{TITLES[model]}: other sizes and shapes", _side_by_side(columns))
        columns = [
            (f"N = {steps}", _snr([row for row in results.trips(model) if row["steps"] == steps]))
            for steps in results.about["new_steps"]
        ]
        yield from folded(f"{TITLES[model]}: other step counts", _side_by_side(columns))
        columns = []
        for steps in results.about["off_steps"]:
            some = [row for row in results.trips(model, prompt="class") if row["steps"] == steps]
            columns.append((f"N = {steps}", _snr(some)))
        for steps in results.about["off_steps"]:
            found = results.where("swapped", model=model, steps=steps)
            columns.append((f"to dog, N = {steps}", {row["entry"]: row["agreement_db"] for row in found}))
        title = (
            f"{TITLES[model]}: under the true class, CFG 1; and sampled back as a dog: nearness of the edit to "
            "that from a converged inversion (Anderson K = 15)"
        )
        yield from folded(title, _side_by_side(columns))


def _snr(rows: list[Row]) -> dict[str, list[float]]:
    return {row["entry"]: row["latent_snr_db"] for row in rows if "failed" not in row}


def _side_by_side(columns: list[tuple[str, dict[str, list[float]]]]) -> list[str]:
    labels = [entry.label for entry in FEW if any(entry.label in cells for _, cells in columns)]
    lines = [[f"`{label}`", *(interval(cells.get(label), ".1f") for _, cells in columns)] for label in labels]
    return table(["", *(title for title, _ in columns)], lines)


def _asked(results: Results) -> Iterator[str]:
    yield from ("## What was asked for, and what was seen", "", "Margins in dB of latent SNR, test images, CFG 1.", "")
    columns = {
        model: {(row["claim"], row["steps"]): row for row in goals(results.trips(model))} for model in results.models
    }
    lines = []
    for claim, steps in columns[results.models[0]]:
        cells = []
        for model in results.models:
            row = columns[model].get((claim, steps))
            met = row is not None and row["seen_db"] >= row["wanted_db"]
            cells.append("–" if row is None else f"{row['seen_db']:+.1f} {'yes' if met else '**no**'}")
        wanted = columns[results.models[0]][claim, steps]["wanted_db"]
        lines.append([claim, str(steps), f"{wanted:+.0f}", *cells])
    yield from table(["claim", "N", "wanted", *(TITLES[model] for model in results.models)], lines)
    yield ""


def _limits(results: Results, full_size: bool) -> Iterator[str]:
    about = results.about
    yield from ("## What could not be measured", "")
    if not about["fid"]:
        yield (
            "- **FID**: no backbone was at hand, and nothing is downloaded. `--fid inception` takes one from the "
            "user's cache or a file; with a few dozen images it would say little."
        )
    if not any("lpips" in row for row in results.where("round_trip")):
        yield "- **LPIPS**: its weights were not at hand (`--lpips FILE`, or DEEPINV_LPIPS)."
    yield (
        f"- **MS-SSIM** is over {len(SCALES)} scales, not 5: five need images of 161 pixels, these have 64. Their "
        "weights are those of the finest scales, rescaled to 1."
    )
    yield (
        f"- **The residual** is of the first {RESIDUAL_IMAGES} test images, at CFG 1, and only where the way back is "
        "Euler's: for another rule it says nothing. It costs N evaluations, which are not in the cost."
    )
    missing = [model for model in results.models if "paper" not in about["solvers"][model]]
    if missing:
        yield (
            f"- **The paper's recipe on the {' and '.join(TITLES[model] for model in missing)}**: no solver was "
            "trained by it there."
        )
    yield (
        "- **Real weights, 1024 pixels, a GPU's memory**: these are two small models on a CPU. "
        "`deepinv bench --pie-bench` and `--coco` measure a real model on real data"
        f"{FULL_SIZE if full_size else ''}."
    )
    yield ""


def _how(results: Results) -> Iterator[str]:
    about = results.about
    yield from ("## How it was measured", "")
    for model, solvers in about["solvers"].items():
        for name, solver in solvers.items():
            yield (
                f"- **{name}** on the {TITLES[model]}: {solver['parameters']:,} parameters, "
                f"{solver['share']:.0%} of a base evaluation in FLOPs"
                + (f", {solver['images_seen']:,} images seen" if "images_seen" in solver else "")
                + (f" in {solver['seconds'] / 60:.0f} minutes of one CPU core" if "seconds" in solver else "")
                + (f", {solver['base_evaluations']:,} base evaluations" if "base_evaluations" in solver else "")
                + "."
            )
    yield from (
        "- The solvers of the `fast` recipe are the included ones. The one of the `paper` recipe is "
        "`benchmarks/solvers/paper_sd3.safetensors`, trained by `tools/embedded/solver.py` in the minutes that are "
        "said above, a fraction of what the recipe asks for; `deepinv inspect` shows its settings. [Its "
        "log](training/paper_sd3.jsonl), [what limits it](solvers.md#the-papers-recipe).",
        f"- Test images: the first {about['images']} of the test split in the order of seed {CHOICE}. No model and no "
        "solver was trained on the split. Uniform grid, float32.",
        "- `assisted` is the way back of DeepInv's released test code: half of the inversion's trajectory is blended "
        "in on the noisier half of the steps. `mixed` is EasyInv's mixing on the way up, as in that code.",
        f"- {about['machine']}, {about['threads']} thread(s), "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        + f"; {about['seconds'] / 60:.0f} minutes of wall time, whatever else the machine did included.",
        "- Every number: [results.jsonl](benchmark/results.jsonl), a line a method, N, model, set of images and "
        "guidance.",
    )
