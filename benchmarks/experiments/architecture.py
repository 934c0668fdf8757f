"""Experiment 8: is it the dual branch? The same cost in a generic transformer, or in base evaluations alone."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import torch

from ...deepinv_core.solver import Config
from ...deepinv_core.solver.cost import solver_flops, transformer_flops
from ...tools.garments.flow_model import SD3_CONFIG
from .. import plots, tables
from ..cases import Case
from ..photos import IMAGE_SIZE
from ..store import Row
from .common import CORRECTOR, FAST, PAPER, PREDICTOR, Scale, Setup, of_steps, round_trips, train
from .experiment import Experiment, Report, as_json
from .single_stream import SingleStreamConfig

STEPS: Final = (2, 4, 8, 16)
COST_STEPS: Final = 8
"""Step count whose cost the table tells."""

SIDE: Final = IMAGE_SIZE // 8

SINGLE: Final = SingleStreamConfig(**{**asdict(CORRECTOR), "layers": 4})

SELF_LABELS: Final = replace(PAPER, rounds=0, grow_right=0, curriculum=((2, 80), (4, 40), (8, 20), (16, 10)) * 3)
"""The paper's objective without its order of step counts, which is another experiment: each in turn, three times."""

NETWORKS: Final[dict[str, Config]] = {"dual": CORRECTOR, "single": SINGLE, "predictor": PREDICTOR}
VARIANTS: Final = {"dual": "dual branch", "single": "single stream", "predictor": "our predictor"}

FREE: Final = (Case("euler"), Case("uni_inv", 1), Case("uni_inv_2", 1))
DEARER: Final = (Case("anderson", 1), Case("anderson_extrapolated", 2))
"""Methods without a network; these spend one more base evaluation a step."""


def flops() -> dict[str, int]:
    """FLOPs of one evaluation of each network and of the base, on one latent."""
    sizes = {"height": SIDE, "width": SIDE, "context_tokens": 2}
    networks = {name: solver_flops(config, **sizes) for name, config in NETWORKS.items()}
    return {**networks, "base": transformer_flops("sd3", SD3_CONFIG, **sizes)}


def measure(setup: Setup, scale: Scale, variant: str, seed: int) -> Row:
    """Train one network and send photographs there and back, K = 0 and 1."""
    recipe = FAST if variant == "predictor" else SELF_LABELS
    network, costs = train(setup, recipe, scale, seed, config=NETWORKS[variant])
    cases = {str(k): Case("deepinv", k) for k in (0, 1)}
    rows = {k: round_trips(setup, STEPS, case, network, images=scale.images) for k, case in cases.items()}
    return {**costs, "round_trips": rows}


def baseline(setup: Setup, scale: Scale) -> list[Row]:
    """The methods without a network."""
    trips = {case: round_trips(setup, STEPS, case, images=scale.images) for case in (*FREE, *DEARER)}
    about = {case: {"method": case.method, "refine": case.refine, "more": case in DEARER} for case in trips}
    return [{**about[case], "round_trips": rows} for case, rows in trips.items()]


def _runs(report: Report, variant: str, k: str) -> tuple[list[list[Row]], float]:
    """Round trips of a variant, by seed, and what one evaluation of its network costs in evaluations of the base."""
    costs = report["settings"]["flops"]
    runs = [row["round_trips"][k] for row in report["rows"] if row["variant"] == variant]
    return runs, costs[variant] / costs["base"]


def table(report: Report) -> str:
    """Latent SNR by step count, with what an inversion of 8 steps costs in base evaluations, the network included."""
    lines = []
    for row in report["baseline"]:
        cost, snr = of_steps(row["round_trips"], COST_STEPS, "nfe"), [of_steps(row["round_trips"], n) for n in STEPS]
        lines.append([f"*{Case(row['method'], row['refine']).label}*", f"{cost:.1f}", *(f"{one:.1f}" for one in snr)])
    for variant, name in VARIANTS.items():
        for k in ("0", "1"):
            runs, share = _runs(report, variant, k)
            cost = of_steps(runs[0], COST_STEPS, "nfe") + COST_STEPS * share
            cells = [tables.spread([of_steps(run, n) for run in runs]) for n in STEPS]
            lines.append([f"{name} K={k}", f"{cost:.1f}", *cells])
    return "\n".join(tables.table(["", f"cost at N = {COST_STEPS}", *(f"N = {n}" for n in STEPS)], lines))


def draw(report: Report, path: Path) -> None:
    """Quality against cost, a line a network or method."""
    title = "Architecture: latent SNR of round trips, mean and range of the seeds"
    made, panels = plots.figure(2, title=title, share_y=True)
    for panel, k in zip(panels, ("0", "1"), strict=True):
        for line, row in enumerate(row for row in report["baseline"] if row["more"] == (k == "1")):
            points = [(one["nfe"], one["snr"]) for one in row["round_trips"]]
            style = {"linestyle": ("--", ":", "-.")[line % 3], "color": "grey", "marker": "."}
            panel.plot(*zip(*points, strict=True), label=Case(row["method"], row["refine"]).label, **style)
        for number, (variant, name) in enumerate(VARIANTS.items()):
            runs, share = _runs(report, variant, k)
            costs = [of_steps(runs[0], n, "nfe") + n * share for n in STEPS]
            snr = torch.tensor([[of_steps(run, n) for n in STEPS] for run in runs])
            plots.seeds_line(panel, costs, snr, f"C{number}", name, marker=4)
        panel.set(xscale="log", xlabel="cost of the inversion in base evaluations, network included")
        panel.set_title("about one base evaluation a step" if k == "0" else "one more")
        panel.set_xticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
        panel.minorticks_off()
        panel.legend(fontsize="small")
    panels[0].set_ylabel("latent SNR, dB")
    plots.save(made, path)


SETTINGS: Final = {
    "flops": flops(),
    **as_json({"single": SINGLE, "predictor": PREDICTOR, "self_labels": SELF_LABELS, "fast": FAST}),
}
EXPERIMENT: Final = Experiment(
    "architecture", Scale(8000), tuple(VARIANTS), SETTINGS, measure, draw, table, {"baseline": baseline}
)
