"""What docs/gpu.md shows of the rows, and the short table at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ...benchmarks.store import Row, Store
from ...benchmarks.tables import listed, table

UNMEASURED: Final = "**Not measured yet.**"

Columns = Mapping[str, tuple[str, str]]

STEPS: Final = {
    "what": ("", ""),
    "ms_step": ("ms a step", ".4g"),
    "ratio": ("in base evaluations", ".3f"),
    "ratio_range": ("range", ""),
    "peak_gb": ("peak, GB", ".1f"),
    "repeats": ("repeats", ""),
}
FITTED: Final = {
    "base": ("base", ""),
    "steps": ("N", ""),
    "evaluations": ("evaluations", ""),
    "minutes": ("minutes", ".2g"),
    "search_evaluations": ("with the search for a grid", ""),
    "search_minutes": ("minutes", ".2g"),
}
TRAINED: Final = {
    "base": ("base", ""),
    "batch": ("batch", ""),
    "updates_second": ("updates a second", ".3g"),
    "training_steps_second": ("training steps a second", ".3g"),
    "peak_gb": ("peak, GB", ".1f"),
    "hours": ("hours for 10,000 updates", ".2g"),
}
SYNCED: Final = {
    "method": ("method", ""),
    "steps": ("N", ""),
    "in_loop": ("waits in the loop", ""),
    "in_all": ("in all", ""),
    "where": ("where", ""),
}
SECTIONS: Final = {
    "name": ("section", ""),
    "seconds": ("seconds", ".1f"),
    "allowed": ("allowed", ".0f"),
    "ended": ("ended", ""),
}


def parts(store: Store) -> dict[str, str]:
    """The page's parts by name; one without rows says so."""
    makers: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
        "device": ("device", lambda rows: _device(rows[0], store)),
        "agreement": ("agreement", _agreement),
        "steps": ("steps", _by_base),
        "fit": ("fit", _fits),
        "fit projected": ("fit projected", lambda rows: _listed(rows, FITTED)),
        "training": ("training", lambda rows: _listed(rows, TRAINED)),
        "out of memory": ("out of memory", lambda rows: _memory(rows[0])),
        "syncs": ("syncs", _syncs),
        "ComfyUI": ("ComfyUI", _comfyui),
        "sections": ("section", _sections),
    }
    made = {}
    for name, (part, make) in makers.items():
        rows = [row for row in store.rows if row["part"] == part]
        made[name] = make(rows) if rows else UNMEASURED
    return made


def short(store: Store) -> str:
    """The tables that matter, for a terminal."""
    made = parts(store)
    return "\n\n".join(f"{name}\n{made[name]}" for name in made)


def _listed(rows: Sequence[Row], columns: Columns) -> str:
    return "\n".join(listed([{k: v for k, v in row.items() if v is not None} for row in rows], columns))


def _device(row: Row, store: Store) -> str:
    assert store.about is not None
    versions = store.about["versions"]
    said = f"On one **{row['device']}**"
    if "memory_gb" in row:
        said += f" ({row['memory_gb']:.0f} GB, CUDA {row['cuda']})"
    said += f" with torch {row['torch']} and diffusers {versions.get('diffusers', '?')}"
    said += f": a bf16 product of random matrices runs at {row['tflops_bf16']:.3g} TFLOP/s there, "
    said += f"a copy moves {row['copy_gb_second']:,.0f} GB/s. Numbers in [results.jsonl](gpu/results.jsonl)."
    if store.about["settings"]["small"]:
        said += " **Tiny sizes, a trial: no figure below means anything.**"
    return said


def _agreement(rows: list[Row]) -> str:
    """For each layout and precision the method that is furthest off."""
    lines = []
    for key in dict.fromkeys((row["layout"], row["precision"]) for row in rows):
        mine = [row for row in rows if (row["layout"], row["precision"]) == key]
        # A distance that is no number has come out of the store as None.
        far = [_most([row[name] for row in mine]) for name in ("noise_roundings", "latent_roundings")]
        worst = max(mine, key=lambda row: abs((row["latent_snr_db"] or 0) - row["cpu_latent_snr_db"]))
        levels = f"{worst['method']}: {_db(worst['latent_snr_db'])}, CPU {_db(worst['cpu_latent_snr_db'])}"
        equal = "equal" if all(row["nfe"] == row["cpu_nfe"] for row in mine) else "**not equal**"
        same = f"{sum(row['same'] for row in mine)} of {len(mine)}"
        lines.append([*key, *far, levels, equal, same])
    head = [
        "layout",
        "precision",
        "noise, roundings off",
        "way back",
        "dB that differs most",
        "evaluations",
        "as the CPU",
    ]
    return "\n".join(table(head, lines))


def _most(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.1f}" if len(known) == len(values) else "not finite"


def _db(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2f} dB"


def _by_base(rows: list[Row]) -> str:
    lines = []
    for base in dict.fromkeys(row["base"] for row in rows):
        mine = [row | {"ratio_range": "{} to {}".format(*row["ratio_range"])} for row in rows if row["base"] == base]
        lines += [f"### {base}", "", _listed(mine, STEPS), ""]
    return "\n".join(lines[:-1])


def _fits(rows: list[Row]) -> str:
    return "\n".join(
        f"- {row['base']}, N = {row['steps']}, with{'' if row['search'] else 'out'} the search: {row['seconds']:.4g} s "
        f"for {row['evaluations']} of at most {row['at_most']} evaluations{'' if row['whole'] else ' (cut off)'}, "
        f"{1000 * row['seconds'] / row['evaluations']:.4g} ms each; the model alone {row['ms_evaluation']:.4g} ms"
        for row in rows
    )


def _memory(row: Row) -> str:
    came = "is the same as" if row["same"] else "**differs from**"
    parts = f"in parts of {', '.join(map(str, row['parts']))}" if row["divided"] else "**undivided**"
    far = "not finite" if row["distance"] is None else f"{row['distance']:.1g}"
    return (
        f"A batch of {row['batch']} latents needs {row['needs_gb']:.3g} GB; {row['free_gb']:.3g} GB were left. It was "
        f"inverted {parts}, and its noise {came} that of a card with room (relative distance {far}). "
        f"The log: {' '.join(row['said']) or 'nothing'}."
    )


def _syncs(rows: list[Row]) -> str:
    shown = [{**row, "where": ", ".join(f"`{place}` ({n})" for place, n in row["places"].items())} for row in rows]
    return _listed(shown, SYNCED)


def _sections(rows: list[Row]) -> str:
    """Of what went wrong the first line; the rows have more of it."""
    return _listed([row | {"ended": row["ended"].splitlines()[0][:150].replace("|", "/")} for row in rows], SECTIONS)


def _comfyui(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        figures = [
            _figure(key, value) for key, value in row.items() if key not in ("part", "what") and value is not None
        ]
        lines.append(f"- {row['what']}" + (f": {', '.join(figures)}" if figures else ""))
    return "\n".join(lines)


def _figure(key: str, value: Any) -> str:
    name, _, unit = key.rpartition("_")
    if unit == "gb":
        return f"{name.replace('_', ' ')} {value:.2f} GB"
    if key.endswith("seconds"):
        return f"{name.replace('_', ' ')} {value:.2f} s".strip()
    return f"{key.replace('_', ' ')}: {value}"
