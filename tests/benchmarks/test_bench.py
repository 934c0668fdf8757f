"""The benchmark of the embedded models: what it compares, how it measures, and that its orderings hold."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from comfyui_deepinv.benchmarks import measure, plan, quick, report, results, tables, timing
from comfyui_deepinv.benchmarks.cases import CASES, FEW, GROUPS, Case, solver_files
from comfyui_deepinv.benchmarks.photos import HELD_OUT, IMAGE_SIZE, Images, photographs
from comfyui_deepinv.benchmarks.quality import half_width, ms_ssim, set_whiteness, summary, whiteness
from comfyui_deepinv.benchmarks.store import Store, read_rows
from comfyui_deepinv.cli import main as cli
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.inversion import latent_snr
from comfyui_deepinv.deepinv_core.methods import METHODS
from comfyui_deepinv.deepinv_core.solver import PredictorConfig

ROOT = Path(__file__).absolute().parents[2]
SOME = tuple(
    case
    for case in CASES
    if case.label in ("euler", "fireflow", "uni_inv K=1", "paper K=0", "fitted K=0", "fast K=0", "rf_inversion")
    or case.label in ("leapfrog", "euler, assisted", "direct_alignment")
)
"""At least one of each group, with and without a solver."""


@pytest.fixture(scope="module")
def suite() -> measure.Suite:
    return measure.open_suite("sd3")


@pytest.fixture(scope="module")
def ready(suite: measure.Suite) -> measure.Prepared:
    return suite.prepare(two_photographs())


def small() -> plan.Settings:
    few = {"steps": (1, 4), "new_steps": (3,), "off_steps": (4,), "cfg_steps": (1, 4), "grid_steps": (4,)}
    few |= {"timed_steps": (1,), "repeats": 1}
    return plan.Settings(HELD_OUT, ("sd3",), SOME, images=2, cfg_images=2, **few)


def two_photographs(*shape: int) -> Images:
    images = photographs(*shape)
    return replace(images, pixels=images.pixels[:2])


# what is compared


def test_every_method_is_compared_and_each_line_has_a_name_of_its_own() -> None:
    assert {case.method for case in CASES} == set(METHODS)
    assert len({case.label for case in CASES}) == len(CASES)
    assert {case.group for case in CASES} == set(GROUPS)
    assert {(e.solver, e.refine) for e in CASES if e.method == "deepinv" and not e.assisted} == {
        *((solver, k) for k in (0, 1, 2) for solver in ("fitted", "fast")),
        *(("paper", k) for k in (0, 1)),
    }
    assert len(FEW) == 6 and set(FEW) < {case.label for case in CASES}


def test_the_recipes_solvers_fit_their_model(suite: measure.Suite) -> None:
    assert set(solver_files("sd3")) <= {"fitted", "fast", "paper"} and set(solver_files("flux")) <= {"fitted", "fast"}
    for name, loaded in suite.solvers.items():
        if name != "fitted":
            assert loaded.training["recipe"] == name and 0 < suite.share(name) < 1
    assert suite.share("") == suite.share("fitted") == 0


def test_a_fitted_solver_walks_on_its_own_grid_where_it_was_fitted(
    suite: measure.Suite, ready: measure.Prepared
) -> None:
    case = Case("deepinv", 0, "fitted")
    assert suite.has(case) and suite.has(case, 4) and not suite.has(case, 5)
    assert not suite.has(Case("deepinv", 7, "fitted")) and suite.has(Case("euler"), 5)
    row = measure.round_trips(suite, case, [ready], 4)[0]
    assert (row["nfe"], row["nfe_back"], row["cost"]) == (5, 4, 5) and suite.work(case, 4) == 9
    assert not torch.equal(suite.grid(case, 4), suite.grid(Case("euler"), 4))
    assert row["latent_snr_db"][0] > measure.round_trips(suite, Case("uni_inv", 1), [ready], 4)[0]["latent_snr_db"][0]


def test_the_best_grid_is_of_the_model_s_own_samples(suite: measure.Suite, ready: measure.Prepared) -> None:
    case = Case("fireflow")

    def level(grid: Tensor) -> float:
        return float(latent_snr(suite.trip(case, suite.samples, grid).back.latent, suite.samples).mean())

    best = suite.best_grid(case, 4)
    assert level(best) >= max(level(suite.grid(one, 4)) for one in (case, Case("deepinv", 0, "fitted")))
    row = measure.round_trips(suite, case, [ready], 4, grid="best")[0]
    assert row["grid"] == "best" and row["nfe"] == 5


# how it is measured


def test_ms_ssim_is_of_the_three_finest_scales() -> None:
    """As the records' was, which code of our own gave."""
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    b = (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    assert ms_ssim(a, b).tolist() == pytest.approx([0.8291533996283985, 0.8288702132521599], abs=1e-6)


@pytest.mark.parametrize(
    ("noise", "deviation", "neighbour"),
    [
        (torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), 1, -1),
        (torch.tensor([[2.0, -2.0], [2.0, -2.0]]), 2, 0),
        (torch.tensor([[3.0, 0.0], [0.0, 0.0]]), 27**0.5 / 4, 0),
    ],
)
def test_the_noise_s_health_by_hand(noise: Tensor, deviation: float, neighbour: float) -> None:
    found = whiteness(noise[None, None])
    assert [float(found[f"noise_{name}"]) for name in ("std", "neighbour")] == pytest.approx(
        [deviation, neighbour], abs=1e-12
    )
    assert float(found["noise_channels"]) == 0
    twice = torch.stack([noise, -noise, noise.flip(0)])[None]
    apart = float(torch.corrcoef(twice[0].flatten(1).double())[0, 2])
    assert float(whiteness(twice)["noise_channels"]) == pytest.approx(((1 + 2 * apart**2) / 3) ** 0.5)


def test_white_noise_is_healthy_and_smooth_noise_is_not() -> None:
    white = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.avg_pool2d(white, 3, stride=1)
    found, blurred = whiteness(white), whiteness(smooth)
    assert abs(float(found["noise_std"]) - 1) < 0.01 and float(found["noise_channels"]) < 0.03
    assert abs(float(found["noise_neighbour"])) < 0.01
    assert float(blurred["noise_neighbour"]) == pytest.approx(2 / 3, abs=0.02)


def test_the_noise_of_a_set_is_measured_where_photos_are_smooth_and_patch_by_patch() -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(24, 4, 16, 8, generator=generator)
    photos = torch.rand(24, 3, 128, 64, generator=generator)
    assert set(set_whiteness(noise, photos)) == {"noise_patches"}  # smooth nowhere
    photos[:, :, 64:] = 0.5
    found = set_whiteness(noise, photos)
    assert found["noise_smooth"] == pytest.approx(1, abs=0.03) and found["noise_patches"] == pytest.approx(1, abs=0.05)
    noise[:, :, 8:] *= 0.5
    assert set_whiteness(noise, photos)["noise_smooth"] == pytest.approx(0.5, abs=0.02)
    assert set_whiteness(noise, photos)["noise_patches"] == pytest.approx(found["noise_patches"], abs=1e-4)
    noise[:, :2] = noise[:, 2:]
    assert set_whiteness(noise, photos)["noise_patches"] > 1.1
    assert "noise_patches" not in set_whiteness(noise[:1], photos[:1])


@pytest.mark.parametrize("count", [8, 64, 700])
def test_intervals_are_of_means_of_drawn_images(count: int) -> None:
    """Near the normal distribution's, which the means of many draws have; the same each time."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    assert half_width(values) == pytest.approx(1.96 * float(values.std(correction=0)) / math.sqrt(count), rel=0.05)
    assert half_width(values) == half_width(values) and half_width(values[:1]) == 0


def test_a_summary_is_mean_and_half_width() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert summary({"x": values})["x"] == pytest.approx([4.5, half_width(values.double())], rel=1e-3)


def test_memory_is_what_tensors_hold_at_once() -> None:
    ones = torch.ones(1000)
    with timing.PeakBytes() as held:
        a = ones + 1  # 4000 bytes
        b = a.view(10, 100)  # the same storage
        a = b * 2  # 8000, both alive
        del b
        a += 1  # in place: nothing new
        c = a.double()  # 4000 + 8000: the first is gone
        del c
    assert held.peak == 12000 and held.now == 4000


def test_memory_grows_with_what_is_kept(suite: measure.Suite, ready: measure.Prepared) -> None:
    one = ready.latent[:1]
    size = one.numel() * 4
    rows = {name: timing.memory(suite, Case(name), one, 4)[0] for name in ("euler", "leapfrog", "direct_alignment")}
    kept = {name: row["kept_bytes"] for name, row in rows.items()}
    assert kept == {"euler": size, "leapfrog": 2 * size, "direct_alignment": 6 * size}  # noise, and N + 1 latents
    assert rows["direct_alignment"]["peak_bytes"] > rows["euler"]["peak_bytes"] > 10 * size


def test_times_are_ratios_to_euler_s_in_the_same_repeat(suite: measure.Suite, ready: measure.Prepared) -> None:
    cases = [Case("euler"), Case("renoise", 9)]
    rows = timing.timings(suite, cases, ready.latent[:1], 2, repeats=2)
    assert rows[0]["up_ratio"] == rows[0]["both_ratio"] == [1, 1, 1]
    middle, low, high = rows[1]["up_ratio"]
    assert 1 < low <= middle <= high and rows[1]["both_ratio"][0] < middle


def test_a_walk_counts_all_it_costs(suite: measure.Suite, ready: measure.Prepared) -> None:
    plain = measure.round_trips(suite, Case("deepinv", 1, "fast"), [ready], 2)[0]
    share = suite.share("fast")
    assert (plain["nfe"], plain["nfe_back"]) == (5, 2) and plain["cost"] == round(5 + 2 * share, 2)
    guided = measure.round_trips(suite, Case("rf_solver"), [ready], 2, cfg=4.0)[0]
    assert (guided["nfe"], guided["nfe_back"], guided["cost"]) == (8, 8, 8)


def test_each_image_has_its_own_prompt(suite: measure.Suite) -> None:
    images = replace(two_photographs(), classes=("red dress", "hat"))
    ready = suite.prepare(images)
    together = suite.trip(Case("euler"), ready.latent, 2, classes=images.classes, cfg=4.0)
    for row, name in enumerate(images.classes):
        alone = suite.trip(Case("euler"), ready.latent[row : row + 1], 2, classes=(name,), cfg=4.0)
        other = suite.trip(Case("euler"), ready.latent[row : row + 1], 2, classes=("green pants",), cfg=4.0)
        mine = together.inversion.noise[row : row + 1]
        assert torch.allclose(mine, alone.inversion.noise, atol=1e-4)
        assert not torch.allclose(mine, other.inversion.noise, atol=1e-2)


def test_sets_measured_in_one_walk_are_kept_apart(suite: measure.Suite, ready: measure.Prepared) -> None:
    other = suite.prepare(Images("test", photographs().pixels[2:]))
    both = measure.round_trips(suite, Case("uni_inv", 1), [other, ready], 2)
    for row, alone in zip(both, (other, ready), strict=True):
        wanted = measure.round_trips(suite, Case("uni_inv", 1), [alone], 2)[0]
        assert row["images"] == wanted["images"]
        for name in ("latent_snr_db", "psnr", "ssim", "noise_std"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-3), name
    assert "residual" in both[0] and "residual" not in both[1]


def test_the_residual_of_the_first_images_is_under_their_own_prompts(
    suite: measure.Suite, ready: measure.Prepared
) -> None:
    classes = ("red dress", "hat")
    both, first = (
        suite.trip(Case("euler"), ready.latent, 2, classes=classes, residual=count).residual for count in (2, 1)
    )
    assert both.shape == (2, 2) and torch.allclose(both[:, :1], first, atol=1e-5)
    other = suite.trip(Case("euler"), ready.latent, 2, residual=1).residual
    assert not torch.allclose(other, first, atol=1e-3)


def test_the_assisted_way_back_reads_the_trajectory(suite: measure.Suite, ready: measure.Prepared) -> None:
    plain, assisted = (
        measure.round_trips(suite, Case("euler", assisted=flag), [ready], 4)[0] for flag in (False, True)
    )
    assert assisted["kept"] == "assisted" and plain["kept"] == "pure" and assisted["nfe_back"] == plain["nfe_back"]
    assert assisted["latent_snr_db"][0] > plain["latent_snr_db"][0] + 1
    assert assisted["noise_std"] == plain["noise_std"]


# the orderings


def test_orderings_hold() -> None:
    text = quick.run_quick(("sd3", "flux"), photographs())
    assert "orderings hold on 4 images" in text and "FAILED" not in text
    for kind in ("sd3", "flux"):
        for steps in (2, 4, 8):
            assert (f"{kind} fast K=0 N={steps} " in text) == ("fast" in solver_files(kind))
    assert text.count("direct_alignment N=8") == 2


def test_a_solver_that_knows_nothing_is_found_out(suite: measure.Suite) -> None:
    torch.manual_seed(0)
    network = PredictorConfig.preset("tiny", channels=16).build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    broken = replace(suite, solvers={"fast": replace(suite.solvers["fast"], solver=network.eval())})
    failed = [check for check in quick.checks(broken, two_photographs()) if not check.holds]
    assert any("fast K=0" in check.better for check in failed)
    assert all("fast" in check.better for check in failed)


def test_an_ordering_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = [quick.Check("sd3 a N=2", "sd3 b N=2", 5.0, 4.0), quick.Check("sd3 c N=2", "sd3 d N=2", 4.0, 4.0)]
    monkeypatch.setattr(quick, "checks", lambda suite, images: iter(seen))
    assert cli.main(["bench", "--quick", "--models", "sd3"]) == 2
    error = capsys.readouterr().err
    assert "1 of 2 orderings did not hold" in error and "c N=2" in error and "a N=2" not in error


# the page


def test_the_front_and_what_a_method_is_worth() -> None:
    rows = [
        {"entry": name, "steps": n, "kept": "pure", "cost": cost, "nfe_back": n, "latent_snr_db": [snr, 0.5]}
        for name, n, cost, snr in (("a", 1, 1, 3.0), ("a", 2, 2, 5.0), ("b", 1, 2, 4.0), ("b", 2, 4, 9.0))
    ]
    rows.append({**rows[0], "entry": "kept", "kept": "exact", "latent_snr_db": [99.0, 0]})
    found = results.points(rows)
    assert [(p.case, p.cost) for p in found] == [("a", 2), ("b", 3), ("a", 4), ("b", 6)]
    assert [(p.case, p.steps) for p in results.front(found)] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert results.best_within(found, 5).snr == 5 and results.best_within(found, 1) is None
    poor = [*found, results.Point("c", 2, 4.5, 4.5, 0.1), results.Point("c", 4, 8, 6.0, 0.1)]
    assert results.verdict("c", poor) == "nearest at N = 2: 4.5 dB for 4.5; `a` at N = 2: 5.0 for 4.0"
    assert results.verdict("b", poor) == "**on the front** at N = 1, 2"


def test_tables_group_by_what_is_kept_and_mark_the_best() -> None:
    rows = [
        {"entry": name, "steps": n, "kept": kept, "latent_snr_db": [snr, 1.0]}
        for name, n, kept, snr in (("a", 1, "pure", 3), ("b", 1, "pure", 4), ("b", 2, "pure", 5), ("d", 1, "exact", 90))
    ]
    rows.append({"entry": "a", "steps": 2, "kept": "pure", "failed": "NaN"})
    lines = tables.by_steps(rows)
    assert lines[0] == "|  | N = 1 | N = 2 |" and "pure" in lines[2] and "exact" in lines[5]
    assert lines[3] == "| `a` | 3.0 ± 1.0 | NaN |" and lines[4] == "| `b` | **4.0 ± 1.0** | **5.0 ± 1.0** |"
    assert lines[6] == "| `d` | **90.0 ± 1.0** |  |"


def test_a_run_that_was_stopped_goes_on_and_gives_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(measure, "SAMPLES", 2)
    monkeypatch.setattr(plan, "SHAPES", ((128, 128), (96, 128)))
    monkeypatch.setattr(plan, "photographs", lambda *shape: two_photographs(*shape))
    path = tmp_path / "benchmark" / "results.jsonl"

    def measured() -> list[dict]:
        made = plan.Plan(small())
        return plan.run(made, path, "deepinv bench --output docs")

    rows = measured()
    assert re.search(r"(\d+) of \1 units to measure, in about \d+ minutes", caplog.text)
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(rows))
    parts = {row["part"] for row in rows}
    assert parts == {"about", "ceiling", "round_trip", "timing", "memory"}
    suite = measure.open_suite("sd3")
    labels = {case.label for case in SOME if suite.has(case)}
    for setting in ({"cfg": 1.0, "images": "test"}, {"cfg": 1.0, "images": "photos"}, {"cfg": 4.0, "images": "test"}):
        for steps in (1, 4):
            chosen = {**setting, "steps": steps, "size": "128x128", "part": "round_trip", "grid": "own"}
            wanted = {case.label for case in SOME if suite.has(case, steps)}
            found = {r["entry"] for r in rows if all(r.get(k) == v for k, v in chosen.items())}
            assert found - set(results.REFERENCES) == wanted, chosen
    assert {row["entry"] for row in rows if row.get("grid") == "best"} == {"euler", "fireflow", "uni_inv K=1"}

    with pytest.raises(DeepInvError, match="no finished run"):
        (tmp_path / "part").mkdir()
        (tmp_path / "part" / "results.jsonl").write_text("\n".join(lines[1:5]))
        results.Results(tmp_path / "part" / "results.jsonl")

    path.write_text("\n".join(lines[1:-6]) + "\n" + lines[-6][:40])  # stopped while a line was written
    calls = []
    real = measure.round_trips
    monkeypatch.setattr(plan, "round_trips", lambda *a, **more: calls.append(a) or real(*a, **more))
    monkeypatch.setattr(plan, "memory", lambda *a: pytest.fail("measured again"))
    again = measured()
    assert 1 <= len(calls) <= 6

    def numbers(some: list[dict]) -> list[dict]:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in some]

    assert numbers(again) == numbers(rows)

    report.write_page(tmp_path)
    page = (tmp_path / "benchmark.md").read_text()
    assert all(f"`{label}`" in page for label in labels)
    for name in ("pareto.png", "pareto_cfg.png", "noise.png"):
        assert Image.open(tmp_path / "benchmark" / name).width > 600
    assert cli.main(["bench", "--report-only", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "benchmark.md").read_text() == page


def test_the_committed_pages_are_what_the_committed_results_give(tmp_path: Path) -> None:
    found = results.Results(ROOT / "docs" / "benchmark" / "results.jsonl")
    parts, listed = report.parts(found), {"list": "\n".join(report.listed_methods(found))}
    texts = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in (*report.PAGES, "methods.md")}
    for name, text in texts.items():
        copy = tmp_path / Path(name).name
        copy.write_text(text, encoding="utf-8")
        tables.fill(copy, listed if name == "methods.md" else parts)
        assert text == copy.read_text(encoding="utf-8")
    assert all(any(f"<!-- {part} -->" in text for text in texts.values()) for part in [*parts, *listed])
    assert set(found.models) == {"sd3", "flux"} and found.steps == [1, 2, 4, 8, 16, 25, 50]
    for kind in found.models:  # of the weights in the package
        solvers = measure.open_suite(kind).solvers
        known = {measure.digest(kind, *some) for some in ((), *((one,) for one in solvers), tuple(solvers))}
        assert all(row["unit"].split()[1] in known for row in found.rows if row["model"] == kind)


# the command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--output"),
        (["missing.zip", "--output", "docs"], "missing.zip"),
        (["--report-only", "--output", "nowhere"], "no finished run"),
        (["--models", "sd1"], "sd1"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_the_command_costs_nothing_until_it_runs() -> None:
    code = (
        "import sys\nfrom comfyui_deepinv.cli.main import build_parser\nbuild_parser(['bench'])\n"
        "loaded = {n for n in sys.modules if n.startswith('comfyui_deepinv.benchmarks')}\n"
        "assert not loaded, loaded\n"
        "heavy = {'diffusers', 'transformers', 'torchmetrics', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_quick_suite_s_images_differ() -> None:
    images = quick.quick_images().pixels
    assert images.shape == (20, 3, IMAGE_SIZE, IMAGE_SIZE)
    flat = images.flatten(1)
    assert float((torch.cdist(flat, flat) + 100 * torch.eye(20)).min()) > 1
    assert float(latent_snr(images[:1], images[:1])) > 100


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    assert read_rows(file) == []
    store = Store(file)
    store.add([{"unit": "a"}])
    store.add([{"unit": "b"}, {"unit": "ü"}])
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    assert read_rows(file) == [{"unit": "a"}, {"unit": "b"}]
    for damage in (b'{"unit": \n', b"[1]\n"):
        file.write_bytes(damage + whole)
        with pytest.raises(DeepInvError, match=r"results\.jsonl"):
            read_rows(file)
