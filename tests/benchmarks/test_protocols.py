"""The published protocols on miniature folders in the published formats, with answers worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comfyui_deepinv.benchmarks.networks.sources import SOURCES
from comfyui_deepinv.benchmarks.protocols.coco import find_images, load_square, nearly_square
from comfyui_deepinv.benchmarks.protocols.common import choices
from comfyui_deepinv.benchmarks.protocols.pie_bench import page
from comfyui_deepinv.benchmarks.protocols.pie_data import Item, decode_mask, load_image, plain, read_items
from comfyui_deepinv.benchmarks.protocols.pie_metrics import METRICS, PieMetrics
from comfyui_deepinv.benchmarks.quality import half_width
from comfyui_deepinv.benchmarks.store import Store, read_rows
from comfyui_deepinv.benchmarks.tables import cell
from comfyui_deepinv.cli import main as cli
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.deepinv_core.metrics import psnr, ssim
from comfyui_deepinv.deepinv_core.models.embedded import load_embedded

from .tiny_backbones import random_squeeze, save_clip, save_dino, save_squeeze

FRAME = 4 * 511
"""Pixels of the outermost border of 512 x 512."""

LEFT_HALF = [number for row in range(512) for number in (512 * row, 256)]


def picture(width: int, height: int, seed: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def flat(value: int, left: int | None = None) -> torch.Tensor:
    """A grey image of a byte value, another in the left half."""
    image = torch.full((1, 3, 512, 512), value / 255)
    if left is not None:
        image[..., :256] = left / 255
    return image


def item(mask: list[int]) -> Item:
    return Item("k", Path("a.jpg"), "cat", "dog", "0", tuple(mask))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    save_squeeze(folder / "squeeze.safetensors", random_squeeze())
    squeeze = folder / "squeeze.safetensors"
    return {"clip": save_clip(folder / "clip"), "dino": save_dino(folder / "dino"), "lpips_squeeze": squeeze}


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Three items of PIE-Bench's format; the last one's mask covers everything."""
    folder = tmp_path / "PIE"
    cases = {}
    for key, category, source, target, mask in (
        ("000000000000", "0", "shirt", "[dress]", LEFT_HALF),
        ("111000000001", "1", "[red] skirt", "[blue] skirt", [512 * 100 + 50, 300]),
        ("911000000002", "9", "hat", "[hat]", [0, 512 * 512]),
    ):
        path = f"{category}_kind/1_artificial/{key}.png"
        (folder / "annotation_images" / path).parent.mkdir(parents=True)
        picture(512, 512, int(key[:1])).save(folder / "annotation_images" / path)
        cases[key] = {
            "image_path": path,
            "original_prompt": source,
            "editing_prompt": target,
            "editing_instruction": "make it so",
            "editing_type_id": category,
            "blended_word": "",
            "mask": mask,
        }
    (folder / "mapping_file.json").write_text(json.dumps(cases))
    return folder


def deepinv(*arguments: object) -> int:
    return cli.main(["bench", *map(str, arguments)])


def lines_of(output: Path) -> dict[tuple[str, str], dict]:
    lines = read_rows(output / "results.jsonl")[1:]
    found = {(line["row"], line["image"]): line for line in lines}
    assert len(found) == len(lines), "no row twice"
    return found


# --- PIE-Bench's folder ----------------------------------------------------------------------------------------------


def test_a_mask_is_decoded_row_by_row_and_bordered() -> None:
    inside = decode_mask([5, 1, 6, 1, 14, 100], side=4, border=False)
    assert inside.int().tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 1]]
    bordered = decode_mask([5, 1], side=4)
    assert bordered.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert decode_mask([]).shape == (512, 512) and int(decode_mask([]).sum()) == FRAME
    assert int(decode_mask(LEFT_HALF, border=False).sum()) == 512 * 256
    assert int(decode_mask([512 * 512, 5, 600_000, 5], border=False).sum()) == 0  # runs past the end are nothing


def test_brackets_are_stripped_and_nothing_else() -> None:
    assert plain("a [[round] cake] with  [orange frosting]") == "a round cake with  orange frosting"


def test_items_are_read_as_published(bench: Path) -> None:
    items = read_items(bench)
    assert [one.key for one in items] == ["000000000000", "111000000001", "911000000002"]
    assert (items[1].source, items[1].target, items[1].category) == ("red skirt", "blue skirt", "1")
    assert [one.category for one in read_items(bench, ("9", "0"))] == ["0", "9"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mask", [1, 2, 3], "pairs of start and length"),
        ("mask", [-1, 2], "pairs of start and length"),
        ("mask", "1 2", "pairs of start and length"),
        ("mask", [1.0, 2], "pairs of start and length"),
        ("image_path", "../../secret.png", "one below the folder"),
        ("image_path", "/etc/secret.png", "one below the folder"),
        ("image_path", "C:\\secret.png", "one below the folder"),
        ("image_path", "0_kind/gone.png", r"1 images are missing, the first .*gone\.png"),
        ("original_prompt", None, "original_prompt of item '000000000000' is None"),
        ("editing_type_id", 0, "text is needed"),
    ],
)
def test_a_wrong_item_is_refused(bench: Path, field: str, value: object, message: str) -> None:
    file = bench / "mapping_file.json"
    cases = json.loads(file.read_text())
    cases["000000000000"][field] = value
    file.write_text(json.dumps(cases))
    with pytest.raises(DeepInvError, match=message):
        read_items(bench)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_mapping_that_windows_saved_is_read(bench: Path, encoding: str) -> None:
    file, items = bench / "mapping_file.json", read_items(bench)
    file.write_text(file.read_text(encoding="utf-8"), encoding=encoding)
    assert read_items(bench) == items


def test_a_wrong_folder_is_refused(bench: Path, tmp_path: Path) -> None:
    with pytest.raises(DeepInvError, match=r"no mapping_file\.json"):
        read_items(tmp_path)
    with pytest.raises(DeepInvError, match="no category '10'"):
        read_items(bench, ("10",))
    with pytest.raises(DeepInvError, match="no item of category 5"):
        read_items(bench, ("5",))
    for text, message in (("{", "not readable JSON"), ("[]", "holds a list"), ('{"a": 1}', "item 'a' is a int")):
        (bench / "mapping_file.json").write_text(text)
        with pytest.raises(DeepInvError, match=message):
            read_items(bench)


def test_the_last_panel_of_a_strip_is_the_edit(tmp_path: Path) -> None:
    strip = Image.new("RGB", (4 * 512, 512), "red")
    strip.paste((0, 51, 255), (3 * 512, 0, 4 * 512, 512))
    strip.save(tmp_path / "strip.png")
    image = load_image(tmp_path / "strip.png")
    assert image.shape == (1, 3, 512, 512)
    torch.testing.assert_close(image.amin(dim=(2, 3)), torch.tensor([[0, 0.2, 1]]))
    torch.testing.assert_close(image.amax(dim=(2, 3)), torch.tensor([[0, 0.2, 1]]))
    picture(256, 256, 0).save(tmp_path / "small.png")
    with pytest.raises(DeepInvError, match="256x256 pixels"):
        load_image(tmp_path / "small.png")
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(DeepInvError, match="not an image"):
        load_image(tmp_path / "no.png")


# --- PIE-Bench's metrics ---------------------------------------------------------------------------------------------


def test_background_metrics_average_over_the_whole_frame() -> None:
    """Grey 100 against 125, and 250 on the edited left half: only right-half pixels off the border count."""
    measure = PieMetrics(["psnr_unedit_part", "mse_unedit_part"], {})
    values = measure(flat(100), flat(125, left=250), item(LEFT_HALF))
    share = 255 * 510 / 512**2  # the right half without its top, bottom and right border
    mse = share * (25 / 255) ** 2
    assert values["mse_unedit_part"] == pytest.approx(mse, rel=1e-5)
    assert values["psnr_unedit_part"] == pytest.approx(-10 * math.log10(mse), rel=1e-5)
    assert values == measure(flat(100), flat(125, left=3), item(LEFT_HALF)), "the edited half counts for nothing"


def test_ssim_and_lpips_are_of_the_blackened_images(weights: dict[str, Path]) -> None:
    measure = PieMetrics(["ssim_unedit_part", "lpips_unedit_part"], weights)
    source, edited = (torch.from_numpy(np.array(picture(512, 512, seed))).movedim(-1, 0)[None] / 255 for seed in (1, 2))
    values = measure(source, edited, item(LEFT_HALF))
    black = torch.ones(512, 512)
    black[:, :256] = black[0] = black[-1] = black[:, -1] = 0
    assert values["ssim_unedit_part"] == pytest.approx(float(ssim(source * black, edited * black)), abs=1e-4)
    assert values["lpips_unedit_part"] == pytest.approx(
        float(random_squeeze()(source * black, edited * black)), rel=1e-4
    )
    assert values["ssim_unedit_part"] > float(ssim(source, edited)) + 0.05


def test_without_background_there_is_no_number() -> None:
    names = [name for name in METRICS if name.endswith("_unedit_part") and "lpips" not in name]
    assert PieMetrics(names, {})(flat(1), flat(2), item([0, 512 * 512])) == dict.fromkeys(names)
    inner = [number for row in range(1, 511) for number in (512 * row + 1, 510)]  # the border does the rest
    assert PieMetrics(names, {})(flat(1), flat(2), item(inner)) == dict.fromkeys(names)


def test_identical_backgrounds_are_100_db() -> None:
    values = PieMetrics(["psnr_unedit_part"], {})(flat(7), flat(7, left=9), item(LEFT_HALF))
    assert values == {"psnr_unedit_part": 100}


def test_clip_sees_whole_edited_region_and_source(weights: dict[str, Path]) -> None:
    names = [name for name in METRICS if name.startswith("clip")]
    measure = PieMetrics(names, weights)
    assert measure.clip is not None and measure.dino is None and measure.lpips is None
    source, edited = (torch.from_numpy(np.array(picture(512, 512, seed))).movedim(-1, 0)[None] / 255 for seed in (3, 4))
    region = torch.zeros(512, 512)
    region[:, :256] = region[0] = region[-1] = region[:, -1] = 1
    letters = [chr(c) for c in range(97, 123)]
    first, second = [one for one in letters if measure.clip.score(edited, one) > 1][
        :2
    ]  # random weights: many are below 0
    values = measure(source, edited, replace(item(LEFT_HALF), source=first, target=second))
    assert values == {
        "clip_similarity_source_image": measure.clip.score(source, first),
        "clip_similarity_target_image": measure.clip.score(edited, second),
        "clip_similarity_target_image_edit_part": measure.clip.score(edited * region, second),
    }
    assert len(set(values.values())) == 3


def test_structure_distance_is_of_the_whole_images(weights: dict[str, Path]) -> None:
    measure = PieMetrics(["structure_distance"], weights)
    assert measure.dino is not None and measure.clip is None
    source, edited = (torch.from_numpy(np.array(picture(512, 512, seed))).movedim(-1, 0)[None] / 255 for seed in (5, 6))
    value = measure(source, edited, item([0, 512 * 512]))["structure_distance"]
    assert value == measure.dino.structure_distance(source, edited) and value > 0


def test_missing_numbers_are_left_out_of_means_and_counted(bench: Path) -> None:
    half = f"{1000 * half_width(torch.tensor([0.001, 0.003])):.2f}"
    assert cell([0.001, None, 0.003], 1e3) == f"2.00 ± {half} (2)"
    assert cell([None, None]) == "–" and cell([2.5]) == "2.50"
    items = read_items(bench)
    values = {"kept": "pure", "nfe": 4, "seconds": 1.0}
    lines = [
        {"row": "a", "image": one.key, "category": one.category, **values, "mse_unedit_part": mse}
        for one, mse in zip(items, (0.01, 0.03, None), strict=True)
    ]
    text = page(lines, ["a"], ["mse_unedit_part"], {}, 3)
    assert "MSE ×10⁴ ↓" in text
    tables = [line for line in text.splitlines() if line.startswith("| a |")]
    cells = [line.split("|")[-2].strip() for line in tables]
    assert cells[0].startswith("200.00 ± ") and cells[0].endswith(" (2)") and cells[1:] == ["100.00", "300.00", "–"]


# --- the whole of PIE-Bench ------------------------------------------------------------------------------------------


def test_pie_bench_runs_stops_and_goes_on(bench: Path, tmp_path: Path, weights: dict[str, Path]) -> None:
    output = tmp_path / "out"
    options = ["--pie-bench", bench, "--edit", "anderson:1,flowedit", "--steps", 2, "--cfg", 2, "--output", output]
    options += ["--clip", weights["clip"], "--dino", weights["dino"], "--lpips-squeeze", weights["lpips_squeeze"]]
    assert deepinv(*options) == 0
    lines = lines_of(output)
    assert {row for row, _ in lines} == {"vae", "anderson K=1", "flowedit"} and len(lines) == 9
    edited = lines["anderson K=1", "111000000001"]
    assert set(METRICS) <= set(edited) and (edited["kept"], edited["nfe"], edited["category"]) == ("pure", 4 + 4, "1")
    assert lines["flowedit", "111000000001"]["nfe"] == 4  # one of two steps is skipped; two prompts, each under CFG
    assert lines["vae", "111000000001"]["nfe"] == 0
    assert lines["vae", "911000000002"]["psnr_unedit_part"] is None
    stored = output / "images" / "anderson_k1" / "1_kind" / "1_artificial" / "111000000001.png"
    source = load_image(bench / "annotation_images" / "1_kind" / "1_artificial" / "111000000001.png")
    background = 1 - decode_mask([512 * 100 + 50, 300])
    expected = float(psnr(load_image(stored) * background, source * background))
    assert edited["psnr_unedit_part"] == pytest.approx(expected, abs=1e-3), "what is stored is what was measured"
    summary = (output / "summary.md").read_text()
    assert "## 9: change style (1 images)" in summary and "| anderson K=1 | pure | 8 |" in summary

    whole = (output / "results.jsonl").read_text()
    first = whole.splitlines(keepends=True)
    (output / "results.jsonl").write_text("".join(first[:5]) + first[5][:30])  # stopped while writing
    before = stored.stat().st_mtime_ns
    assert deepinv(*options) == 0
    again = (output / "results.jsonl").read_text()
    assert again.splitlines()[:5] == whole.splitlines()[:5]
    without_time = [{k: v for k, v in line.items() if k != "seconds"} for line in lines.values()]
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(output).values()] == without_time
    assert stored.stat().st_mtime_ns > before, "the fifth row's image was made again"
    assert deepinv(*options) == 0
    assert (output / "results.jsonl").read_text() == again, "nothing was left to do"


def test_other_settings_do_not_mix(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pie-bench", bench, "--edit", "euler", "--metrics", "mse_unedit_part", "--output", tmp_path / "out"]
    assert deepinv(*options, "--steps", 1, "--limit", 1) == 0
    assert deepinv(*options, "--steps", 2) == 2
    assert "steps was 1 and is 2" in capsys.readouterr().err
    assert deepinv(*options, "--steps", 1, "--limit", 2) == 0, "more images are no other setting"
    assert len(lines_of(tmp_path / "out")) == 4


def test_edits_of_another_program_need_no_model(bench: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    for one in read_items(bench):
        (theirs / one.path).parent.mkdir(parents=True)
        strip = Image.new("RGB", (1024, 512))
        strip.paste(Image.open(bench / "annotation_images" / one.path), (512, 0))
        strip.save(theirs / one.path)
    options = ["--pie-bench", bench, "--metrics", "mse_unedit_part", "--output", tmp_path / "out", "--model", "none"]
    assert deepinv(*options, "--edited", f"p2p={theirs}") == 0
    lines = lines_of(tmp_path / "out")
    assert [line["mse_unedit_part"] for line in lines.values()] == [0, 0, None]
    (theirs / read_items(bench)[2].path).unlink()
    assert deepinv(*options, "--edited", f"other={theirs}") == 2
    assert deepinv(*options, "--edited", "other=gone") == 2


def test_a_mask_keeps_the_background_and_says_so(bench: Path, tmp_path: Path) -> None:
    options = ["--pie-bench", bench, "--edit", "euler", "--steps", 2, "--limit", 1, "--metrics", "psnr_unedit_part"]
    assert deepinv(*options, "--output", tmp_path / "free") == 0
    assert deepinv(*options, "--output", tmp_path / "held", "--edit-mask") == 0
    free, held = (lines_of(tmp_path / name)["euler", "000000000000"] for name in ("free", "held"))
    assert (free["kept"], held["kept"]) == ("pure", "trajectory")
    assert held["psnr_unedit_part"] > free["psnr_unedit_part"] + 1


def test_a_diffusers_folder_works_at_512(bench: Path, tmp_path: Path) -> None:
    from ..core.tiny_pipelines import save_sd3

    folder = save_sd3(tmp_path / "sd3")
    options = ["--pie-bench", bench, "--model", folder, "--edit", "euler", "--source-prompt", "--strength", 0.5]
    options += ["--metrics", "psnr_unedit_part", "--limit", 1, "--steps", 2, "--output", tmp_path / "out"]
    assert deepinv(*options) == 0
    about = read_rows(tmp_path / "out" / "results.jsonl")[0]
    assert (about["settings"]["model"], about["settings"]["side"]) == ("sd3", 512)
    assert about["versions"]["torch"] == torch.__version__ and about["command"].split()[0] == "deepinv"
    assert lines_of(tmp_path / "out")["euler", "000000000000"]["nfe"] == 2 + 2  # one of two steps back, under CFG


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics", "psnr"], "--metrics has 'psnr': choose of structure_distance"),
        (["--edit", "eulr"], "did you mean 'euler'"),
        (["--edit", "anderson:x"], "K is 'x'"),
        (["--edit", "euler:2"], "has no iterations"),
        (["--limit", "0"], "--limit is 0"),
        (["--strength", "2"], "strength is 2.0"),
        (["--coco", "."], "both given"),
        (["--edited", "x"], "NAME=DIR"),
        (["--metrics", "structure_distance", "--dino", "gone"], "DINO ViT-B/8: 'gone' does not exist"),
    ],
)
def test_wrong_options_are_refused(
    bench: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deepinv("--pie-bench", bench, *options, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_absent_backbones_are_refused_before_the_model_loads(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for source in SOURCES.values():
        monkeypatch.delenv(source.environment, raising=False)
    assert deepinv("--pie-bench", bench, "--model", "gone", "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "no weights of CLIP ViT-L/14" in error and "hf download openai/clip-vit-large-patch14" in error


# --- COCO ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    folder = tmp_path / "coco" / "test2017"
    folder.mkdir(parents=True)
    for name, width, height in (("3", 640, 640), ("1", 640, 577), ("2", 640, 576), ("4", 576, 640), ("5", 578, 640)):
        picture(width, height, int(name)).save(folder / f"00000{name}.jpg")
    picture(300, 300, 6).convert("L").save(folder / "000006.jpg")
    (folder / "notes.txt").write_text("no image")
    return tmp_path / "coco"


def test_coco_takes_the_nearly_square_by_name(coco: Path) -> None:
    assert nearly_square(1000, 901) and nearly_square(901, 1000)
    assert not nearly_square(1000, 900) and not nearly_square(900, 1000)
    assert [path.name for path in find_images(coco)] == [f"00000{n}.jpg" for n in (1, 3, 5, 6)]
    assert [path.name for path in find_images(coco / "test2017", 2)] == ["000001.jpg", "000003.jpg"]
    for folder in (coco / "gone", coco / "test2017" / "empty"):
        with pytest.raises(DeepInvError, match="is no folder"):
            find_images(folder)
    (coco / "empty").mkdir()
    with pytest.raises(DeepInvError, match="holds no photo"):
        find_images(coco / "empty")
    (coco / "empty" / "a.jpg").write_text("no image")
    with pytest.raises(DeepInvError, match=r"a\.jpg.*not an image"):
        find_images(coco / "empty")


def test_coco_images_are_resized_plainly(coco: Path) -> None:
    path = coco / "test2017" / "000001.jpg"
    expected = np.array(Image.open(path).resize((128, 128), Image.Resampling.BICUBIC))
    image = load_square(path, 128)
    assert image.shape == (1, 3, 128, 128)
    assert np.array_equal((image[0].movedim(0, -1) * 255).round().byte().numpy(), expected)
    grey = load_square(coco / "test2017" / "000006.jpg", 64)
    assert torch.equal(grey[:, 0], grey[:, 2])


def test_a_turned_photo_is_seen_as_it_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 200), "red").save(tmp_path / "a.png", exif=exif)
    turned = Image.new("RGB", (64, 64), "white")
    turned.paste("black", (0, 0, 64, 32))
    turned.save(tmp_path / "b.png", exif=exif)
    assert [path.name for path in find_images(tmp_path)] == ["b.png"]
    image = load_square(tmp_path / "b.png", 64)
    assert float(image[..., :, 60].max()) == 0 and float(image[..., :, 4].min()) == 1  # black on the right


def test_coco_round_trips(coco: Path, tmp_path: Path) -> None:
    options = ["--coco", coco, "--methods", "euler,anderson:2", "--steps", 4, "--metrics", "psnr,ssim,mse"]
    output = tmp_path / "out"
    assert deepinv(*options, "--limit", 2, "--output", output) == 0
    lines = lines_of(output)
    assert len(lines) == 6
    line = lines["anderson K=2", "000003.jpg"]
    assert (line["kept"], line["nfe_inversion"], line["nfe_reconstruction"]) == ("pure", 12, 4)
    assert line["mse"] == pytest.approx(10 ** (-line["psnr"] / 10), rel=1e-6)
    assert line["latent_snr_db"] > lines["euler", "000003.jpg"]["latent_snr_db"] > 0
    photo = load_square(coco / "test2017" / "000003.jpg", 128)
    model = load_embedded("sd3")
    decoded = (model.decode(model.encode(photo)) * 255).round() / 255
    ceiling = lines["vae", "000003.jpg"]
    assert ceiling["psnr"] == pytest.approx(float(psnr(decoded, photo)), abs=1e-3)
    assert ceiling["ssim"] == pytest.approx(float(ssim(decoded, photo)), abs=1e-5)
    assert ceiling["latent_snr_db"] is None and ceiling["nfe_inversion"] == 0
    assert "| anderson K=2 | pure | 12+4 |" in (output / "summary.md").read_text()
    before = (output / "results.jsonl").read_text()
    assert deepinv(*options, "--limit", 3, "--output", output) == 0
    assert (output / "results.jsonl").read_text().startswith(before) and len(lines_of(output)) == 9


def test_coco_wants_lpips_or_its_absence_said(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DEEPINV_LPIPS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert deepinv("--coco", coco, "--output", tmp_path / "out") == 2
    assert "no LPIPS weights" in capsys.readouterr().err


# --- what they share -------------------------------------------------------------------------------------------------


def test_choices() -> None:
    assert [(c.method, c.refine) for c in choices("euler, anderson:2,anderson,euler")] == [
        ("euler", None),
        ("anderson", 2),
        ("anderson", None),
    ]
    assert choices("anderson:2")[0].method_of().options["refine"] == 2
    with pytest.raises(DeepInvError, match="unknown method 'flowedit'"):
        choices("flowedit")


def test_results_that_do_not_say_their_settings_are_refused(tmp_path: Path) -> None:
    def begun() -> Store:
        store = Store(tmp_path / "results.jsonl", ("row", "image"))
        store.begin("deepinv", {"steps": 1})
        return store

    store = begun()
    store.add([{"row": "a", "image": "1", "psnr": 1.0}])
    assert ("a", "1") in begun()
    with pytest.raises(ValueError, match="JSON"):
        store.add([{"row": "a", "image": "2", "psnr": math.inf}])
    for text, message in (('{"row": "a"}', "doesn't say what"), ('{"part": "about"}', "steps was None and is 1")):
        (tmp_path / "results.jsonl").write_text(text + "\n")
        with pytest.raises(DeepInvError, match=message):
            begun()
