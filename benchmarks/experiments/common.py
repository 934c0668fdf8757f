"""What the experiments share: latents, a training of so many base evaluations, round trips, results, plots.

Each experiment is a module with an :class:`Experiment`; run it with

    python -m comfyui_deepinv.benchmarks.experiments.curriculum cifar10_jpeg.zip docs/experiments

which writes ``curriculum.json`` and ``curriculum.png``. An interrupted command goes on with the row it was at;
``--fresh`` starts over. ``--latents FILE`` keeps the encoded photographs for the next experiment.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from ...deepinv_core import checkpoint
from ...deepinv_core.atomic import replacing
from ...deepinv_core.embedded.model import load_embedded
from ...deepinv_core.embedded.spec import CONTEXT_WIDTH, LATENT_CHANNELS, POOLED_WIDTH
from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.inversion import invert, latent_snr, reconstruct
from ...deepinv_core.methods import Options, make_method
from ...deepinv_core.solver import Config, CorrectorConfig, bind
from ...tools.embedded.data import load_split, upsample
from ...training.latents import from_tensors
from ...training.loop import Base, Budget, Training
from ...training.objectives import Bound
from ...training.recipes import PaperRecipe, Recipe
from ...training.validation import Checks
from ..quality import half_width
from ..records import versions

if TYPE_CHECKING:
    from ...deepinv_core.adapters.base_model import BaseModel
    from ...deepinv_core.solver import Network

log = logging.getLogger(__name__)

KIND: Final = "experiment_latents"
TRAIN_IMAGES: Final = 4096
TEST_IMAGES: Final = 256
ENCODE_BATCH: Final = 256

CORRECTOR: Final = replace(
    CorrectorConfig.preset("tiny", channels=LATENT_CHANNELS, context_width=CONTEXT_WIDTH, pooled_width=POOLED_WIDTH),
    heads=2,
    layers_left=1,
    layers_right=1,
)
"""The paper's network for the experiments: 0.4 M parameters, an evaluation a third of the embedded model's."""

PAPER: Final = PaperRecipe(
    batch=8,
    lr=1e-3,
    eps=1e-8,
    average=0.995,
    rounds=1,
    sweeps=1,
    label_images=32,
)
"""The paper's recipe in small. Batch, learning rate and AdamW's eps are for a network of this size (1e-5 is for 909 M
parameters), the average is over the last 200 updates, and one round of stored labels follows round 0 instead of three
of two sweeps each. The curriculum, its passes and all weights are the recipe's own."""


@dataclass(frozen=True)
class Photos:
    """Latents ``[n, 16, 8, 8]`` in model space, float32, their rows in the split, and their classes ``[n]``."""

    latents: Tensor
    rows: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Setup:
    """What an experiment works with: the frozen base model, photographs to train on, and others to measure with."""

    model: BaseModel
    train: Photos
    test: Photos

    def bound(self, prompt: str = "", cfg: float = 1.0) -> Bound:
        """The base model under a prompt, and the prompt as a corrector reads it."""
        condition = self.model.condition(prompt)
        return Bound(self.model.velocity(prompt, cfg=cfg), condition.context, condition.pooled)

    def base(self, prompt: str = "") -> Base:
        """The base model for a training under one prompt."""
        bound = self.bound(prompt)
        return Base(self.model.info, lambda names: bound, self.model.grid, torch.device("cpu"))


def load_setup(archive: Path, latents: Path | None = None, model: BaseModel | None = None) -> Setup:
    """The embedded SD3 model, and the same photographs for every experiment.

    Args:
        archive: ``cifar10_jpeg.zip``; not read where ``latents`` exists.
        latents: file of encoded photographs, made if missing; None to encode them each time.
        model: another base model that has the embedded VAE's latents.

    Raises:
        DeepInvError: a file that can't be read or written.
    """
    model = model or load_embedded("sd3")
    if latents is not None and latents.exists():
        tensors = checkpoint.load(latents, kind=KIND)[0]
    else:
        tensors = {}
        for split, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
            tensors |= _encoded(model, archive, split, count)
        if latents is not None:
            checkpoint.save(latents, tensors, checkpoint.header(KIND))
    train, test = (
        Photos(*(tensors[f"{split}.{name}"] for name in ("latents", "rows", "labels"))) for split in ("train", "test")
    )
    return Setup(model, train, test)


def _encoded(model: BaseModel, archive: Path, split: str, count: int) -> dict[str, Tensor]:
    """Photographs of a split, chosen by a fixed seed."""
    photos = load_split(archive, split)
    rows = torch.randperm(len(photos.labels), generator=torch.Generator().manual_seed(5))[:count]
    parts = [model.encode(upsample(photos.images[part])) for part in rows.split(ENCODE_BATCH)]
    return {f"{split}.latents": torch.cat(parts), f"{split}.rows": rows, f"{split}.labels": photos.labels[rows]}


@dataclass(frozen=True)
class Trained:
    """A solver and what it cost.

    Attributes:
        network: the averaged weights.
        evaluations: base evaluations spent, of one image each.
        updates: of the weights.
        seconds: without the measuring.
        skipped: updates that were not finite.
        losses: images seen, and the mean loss since the entry before.
    """

    network: Network
    evaluations: int
    updates: int
    seconds: float
    skipped: int = 0
    losses: tuple[tuple[int, float], ...] = ()

    def costs(self) -> dict[str, Any]:
        """For a row."""
        return {"evaluations": self.evaluations, "updates": self.updates, "training_seconds": self.seconds}


def train(
    setup: Setup,
    recipe: Recipe,
    budget: Budget | int,
    seed: int,
    *,
    config: Config = CORRECTOR,
    start: Network | None = None,
    prompt: str = "",
    watch: Callable[[Network, int], None] | None = None,
    marks: Sequence[int] = (),
) -> Trained:
    """Train a solver by a recipe.

    Args:
        setup: the base model and the photographs.
        recipe: its settings.
        budget: base evaluations, or another budget.
        seed: of the network's weights, the order of the photographs and the walks.
        config: the network.
        start: a network to go on from; it is changed. None for a new one of ``config``.
        prompt: of the base model.
        watch: called with the averaged network and the evaluations spent, at the first step past each of ``marks``.
        marks: base evaluations, ascending.
    """
    torch.manual_seed(seed)
    network = start or config.build()
    waiting, watching = list(marks), 0.0

    def progress(event: object) -> None:
        nonlocal watching
        while watch is not None and waiting and training.evaluations >= waiting[0]:
            began = time.monotonic()
            waiting.pop(0)
            watch(training.network, training.evaluations)
            watching += time.monotonic() - began

    with tempfile.TemporaryDirectory() as folder:
        training = Training(
            setup.base(prompt),
            from_tensors([setup.train.latents], holdout=0),
            network,
            recipe,
            Path(folder),
            Budget(evaluations=budget) if isinstance(budget, int) else budget,
            seed=seed,
            checks=Checks(steps=(), images=0),
            progress=progress,
        )
        began = time.monotonic()
        done = training.run()
    summary, seconds = done.summary, time.monotonic() - began - watching
    counts = summary["base_evaluations"], summary["updates"], round(seconds, 1), summary["skipped"]
    return Trained(done.network, *counts, tuple(done.losses))


def bound_method(
    setup: Setup, network: Network | None, name: str = "deepinv", refine: int | None = None, prompt: str = ""
) -> Any:
    """A method, with a network as its solver; the paper's with K = 0."""
    bound = setup.bound(prompt)
    solver = None if network is None else bind(network, bound.context, bound.pooled)
    return make_method(name, Options(refine=(refine or 0) if network is not None else refine), solver=solver)


def round_trips(
    setup: Setup,
    steps: Sequence[int],
    *,
    network: Network | None = None,
    method: str = "deepinv",
    refine: int | None = None,
    images: int = 32,
    prompt: str = "",
) -> list[dict[str, Any]]:
    """Invert the first test photographs and sample them back, at CFG 1, nothing kept but the noise.

    Returns:
        A row for each step count: ``steps``, ``nfe`` (of the inversion), ``snr`` (latent SNR in dB, the mean over the
        photographs) and ``ci95``, the half width of its 95 % interval.
    """
    velocity, clean = setup.bound(prompt).velocity, setup.test.latents[:images]
    rows = []
    for count in steps:
        made = bound_method(setup, network, method, refine, prompt)
        inversion = invert(velocity, clean, setup.model.grid(count, clean), made)
        snr = latent_snr(reconstruct(velocity, inversion).latent, clean)
        rows.append({"steps": count, "nfe": inversion.nfe, **mean_and_ci(snr, "snr")})
    return rows


def of_steps(rows: Sequence[dict[str, Any]], steps: int, name: str = "snr") -> float:
    """A figure of the row of a step count."""
    return next(row[name] for row in rows if row["steps"] == steps)


def mean_and_ci(values: Tensor, name: str, digits: int = 3) -> dict[str, float]:
    """The mean under ``name``, and half of its 95 % confidence interval as ``ci95``."""
    exact = values.double()
    return {name: round(float(exact.mean()), digits), "ci95": round(half_width(exact), digits)}


@dataclass(frozen=True)
class Scale:
    """How large an experiment is run.

    Attributes:
        evaluations: base evaluations of one training.
        images: test photographs of the final figures.
        seeds: one training each.
        config: the network.
    """

    evaluations: int
    images: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)
    config: CorrectorConfig = CORRECTOR


Report = dict[str, Any]
"""What a JSON file holds: ``command``, ``versions``, ``settings``, ``baseline``, ``extras`` and ``rows``."""


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    Attributes:
        name: of the module and its files.
        doc: for ``--help``.
        scale: as it is committed.
        variants: what is compared.
        settings: all else that decides the numbers, JSON-able; a file with others is not gone on with.
        measure: one training and its figures, ``(setup, scale, variant, seed) -> row``.
        draw: the plot, ``(report, path)``.
        table: the report as Markdown.
        baseline: figures without training, once; in tables and plots where it is round trips by name.
        extras: more of them, for a plot of its own.
        options: what the command needs besides, as it is written.
    """

    name: str
    doc: str
    scale: Scale
    variants: tuple[str, ...]
    settings: dict[str, Any]
    measure: Callable[[Setup, Scale, str, int], dict[str, Any]]
    draw: Callable[[Report, Path], None]
    table: Callable[[Report], str]
    baseline: Callable[[Setup, Scale], Any] = lambda setup, scale: {}
    extras: Callable[[Setup, Scale], Any] = lambda setup, scale: {}
    options: str = ""


def run(
    experiment: Experiment, setup: Setup, scale: Scale, out: Path, *, command: str = "", fresh: bool = False
) -> Report:
    """Measure what the file doesn't have yet, seed by seed, and draw.

    Raises:
        DeepInvError: the file is of other settings.
    """
    path = out / f"{experiment.name}.json"
    settings = {"scale": {**asdict(scale), "seeds": None}, **experiment.settings}
    settings = json.loads(json.dumps(settings))
    report = None if fresh or not path.exists() else json.loads(path.read_text(encoding="utf-8"))
    if report is not None and report["settings"] != settings:
        raise DeepInvError(f"{str(path)!r} was measured with other settings: choose another folder, or use --fresh")
    if report is None:
        report = {"experiment": experiment.name, "command": command, "versions": versions(), "settings": settings}
        report |= {"baseline": experiment.baseline(setup, scale), "extras": experiment.extras(setup, scale), "rows": []}
    for seed in scale.seeds:
        for variant in experiment.variants:
            if any(row["variant"] == variant and row["seed"] == seed for row in report["rows"]):
                continue
            began = time.monotonic()
            row = {"variant": variant, "seed": seed, **experiment.measure(setup, scale, variant, seed)}
            report["rows"].append({**row, "seconds": round(time.monotonic() - began, 1)})
            write(path, report)
            log.info("%s, seed %d: %.0f s", variant, seed, report["rows"][-1]["seconds"])
    experiment.draw(report, path.with_suffix(".png"))
    return report


def write(path: Path, report: Report) -> None:
    """Replace a JSON file, one line a row."""
    rows = ",\n".join("  " + json.dumps(row) for row in report["rows"])
    head = json.dumps({name: value for name, value in report.items() if name != "rows"}, indent=1)
    with replacing(path) as temporary:
        temporary.write_text(f'{head.removesuffix("}").rstrip()},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def main(experiment: Experiment, given: Sequence[str] | None = None) -> None:
    """The command line of an experiment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("comfyui_deepinv.training").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description=experiment.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="cifar10_jpeg.zip")
    parser.add_argument("out", type=Path, help="folder of NAME.json and NAME.png")
    parser.add_argument("--latents", type=Path, help="file of encoded photographs, made if missing")
    parser.add_argument("--evaluations", type=int, default=experiment.scale.evaluations, help="of one training")
    parser.add_argument("--images", type=int, default=experiment.scale.images, help="test photographs")
    parser.add_argument("--seeds", type=int, nargs="+", default=experiment.scale.seeds)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    args = parser.parse_args(given)
    torch.set_num_threads(args.threads)
    scale = replace(experiment.scale, evaluations=args.evaluations, images=args.images, seeds=tuple(args.seeds))
    changed = [name for name in ("evaluations", "images") if getattr(scale, name) != getattr(experiment.scale, name)]
    options = "".join(f" --{name} {getattr(scale, name)}" for name in changed)
    module = f"comfyui_deepinv.benchmarks.experiments.{experiment.name}"
    command = f"python -m {module} {args.data.name} docs/experiments{options}{experiment.options}"
    setup = load_setup(args.data, args.latents)
    run(experiment, setup, scale, args.out, command=command, fresh=args.fresh)


def main_with_file(option: str, make: Callable[[Path], Experiment], given: Sequence[str] | None = None) -> None:
    """The command line of an experiment that needs one more file, named by ``option``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(option, dest="file", type=Path, required=True)
    args, rest = parser.parse_known_args(given)
    main(make(args.file), rest)
