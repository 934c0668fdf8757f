"""The solver trainer's data: encoded once, resumed exactly, served evenly, and damaged files refused."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from comfyui_deepinv.deepinv_core import checkpoint
from comfyui_deepinv.deepinv_core.errors import DeepInvError
from comfyui_deepinv.training import buckets as parts
from comfyui_deepinv.training import latents as module
from comfyui_deepinv.training.buckets import buckets
from comfyui_deepinv.training.encoding import encode_folder
from comfyui_deepinv.training.latent_order import WINDOW_SHARDS, epoch_order
from comfyui_deepinv.training.latents import LatentCache, from_tensors

SIDE = 32
SIZES = [(40, 40), (30, 60), (64, 31), (33, 33), (50, 49)]


def picture(path: Path, number: int, size=(40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number * 7 % 256, number * 31 % 256, 99)).save(path)


@pytest.fixture
def photos(tmp_path):
    """23 readable images in two folders, of three aspects, and three files that are none."""
    folder = tmp_path / "photos"
    for number in range(23):
        picture(folder / ("sub/é" if number % 4 else "") / f"{number:02d}.png", number, SIZES[number % len(SIZES)])
    (folder / "00-text.png").write_text("no image")
    whole = (folder / "sub/é/01.png").read_bytes()
    (folder / "03-cut.png").write_bytes(whole[: len(whole) - 30])  # its head is fine: found out when it is decoded
    (folder / "sub/empty.JPG").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.png").write_text("not looked at")
    return folder


class Encoder:
    """Stands for a VAE that samples; raises ``error`` at its call number ``fails``."""

    def __init__(self, fails: int | None = None, error: BaseException | None = None) -> None:
        self.calls, self.images, self._fails, self._error = 0, 0, fails, error

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Three channels of means and one of noise."""
        if self.calls == self._fails:
            raise self._error
        self.calls, self.images = self.calls + 1, self.images + len(pixels)
        small = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([small, 0.01 * torch.randn(len(pixels), 1, *small.shape[-2:])], 1)


def encoded(photos: Path, cache: Path, encode=None, **changes) -> LatentCache:
    settings = {"vae_fingerprint": "vae-a", "side": SIDE, "batch": 2, "shard_size": 4} | changes
    return encode_folder(photos, cache, encode or Encoder(), **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything(cache: LatentCache) -> dict[str, torch.Tensor]:
    """All latents by name."""
    found = {}
    for batch in [*islice(cache.batches(1, 0), cache.train), *cache.held_out(3)]:
        found |= dict(zip(batch.names, batch.latents, strict=True))
    return found


# --- buckets ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), max_size=4), st.integers(16, 300))
@settings(max_examples=60)
def test_buckets_keep_to_area_multiple_and_aspect(sizes, side):
    for (height, width), (h, w) in zip(sizes, buckets(sizes, side), strict=True):
        assert h % 16 == w % 16 == 0 and 0 < h * w <= side * side
        assert max(h, w) <= parts.MAX_ASPECT * min(h, w)
        if height == width:
            assert h == w == side // 16 * 16


def test_buckets_are_the_nearest_ones():
    sizes = [(1000, 1500), (1500, 1000), (480, 640), (1, 50), (7, 7)]
    found = buckets(sizes, 1024)
    assert found[-1] == (1024, 1024) and found[3] == (512, 2048)
    assert found[0] == found[1][::-1]
    for (height, width), (h, w) in zip(sizes[:3], found[:3], strict=True):
        assert abs(h / w / (height / width) - 1) < 0.03 and h * w > 0.95 * 1024**2
    assert buckets(sizes[::-1], 1024) == found[::-1]


@pytest.mark.parametrize(("sizes", "side", "word"), [([(4, 4)], 15, "side 15"), ([(0, 4)], 32, "4x0")])
def test_buckets_that_cannot_be(sizes, side, word):
    with pytest.raises(DeepInvError, match=word):
        buckets(sizes, side)


def test_images_are_turned_cropped_and_resized(tmp_path):
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter: 30 wide, 90 high
    image.save(tmp_path / "a.png", exif=exif)
    assert parts.image_size(tmp_path / "a.png") == (90, 30)
    assert torch.allclose(parts.read_image(tmp_path / "a.png", (16, 16))[0, :, 8, 8], torch.tensor([0.0, 0.0, 1.0]))
    assert parts.read_image(tmp_path / "a.png", (48, 16)).shape == (1, 3, 48, 16)


# --- encoding --------------------------------------------------------------------------------------------------------


def test_a_folder_is_encoded_once(photos, tmp_path, caplog):
    encode, seen = Encoder(), []
    with caplog.at_level(logging.WARNING):
        cache = encoded(photos, tmp_path / "cache", encode, progress=lambda done, total: seen.append((done, total)))
    assert (encode.images, cache.train + cache.holdout, cache.holdout >= 1) == (23, 23, True)
    assert cache.unreadable == ("00-text.png", "03-cut.png", "sub/empty.JPG")
    assert all(name in caplog.text for name in cache.unreadable)
    assert cache.left_out == "1 .jpg (damaged), 2 .png (damaged), 1 .png (hidden), 1 .txt (no image)"
    assert seen[0] == (0, 26) and seen[-1] == (23, 26) and seen == sorted(seen)
    latents = everything(cache)
    assert len(latents) == 23
    for name, latent in latents.items():
        pixels = parts.read_image(photos / name, (latent.shape[1] * 8, latent.shape[2] * 8))
        assert torch.allclose(latent[:3], torch.nn.functional.avg_pool2d(pixels[0], 8))
    before = contents(tmp_path / "cache")
    assert not any(path.endswith(".tmp") for path in before) and str(tmp_path).encode() not in b"".join(before.values())
    again = encoded(photos, tmp_path / "cache", Encoder(0, AssertionError("encoded again")))
    assert contents(tmp_path / "cache") == before
    assert everything(again).keys() == latents.keys()


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_interrupted_encoding_ends_as_an_uninterrupted_one(photos, tmp_path, error):
    whole = Encoder()
    encoded(photos, tmp_path / "whole", whole)
    for fails in range(whole.calls):
        cache, state = tmp_path / f"cut-{fails}", torch.get_rng_state()
        with pytest.raises(type(error)):
            encoded(photos, cache, Encoder(fails, error))
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        index = cache / "index.json"
        kept = len(json.loads(index.read_text())["images"]) if index.exists() else 0
        rest = Encoder()
        encoded(photos, cache, rest)
        assert contents(cache) == contents(tmp_path / "whole")
        assert rest.images == 23 - kept and kept >= 2 * fails - 4  # a shard of 4 at most is lost


def test_every_failure_of_the_disk_can_be_resumed(photos, tmp_path, monkeypatch):
    encoded(photos, tmp_path / "whole")
    replace, calls = os.replace, 0

    def interrupted(*names):
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise KeyboardInterrupt
        replace(*names)

    monkeypatch.setattr(os, "replace", interrupted)
    for _ in range(30):
        try:
            encoded(photos, tmp_path / "cache")
            break
        except KeyboardInterrupt:
            continue
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_a_killed_encoding_is_resumed(photos, tmp_path):
    encoded(photos, tmp_path / "whole")
    code = (
        "import os, signal, sys\n"
        "from comfyui_deepinv.tests.core import test_latents as t\n"
        "from pathlib import Path\n"
        "class Killed(t.Encoder):\n"
        "    def __call__(self, pixels):\n"
        "        if self.calls == 5: os._exit(9)\n"
        "        return super().__call__(pixels)\n"
        "t.encoded(Path(sys.argv[1]), Path(sys.argv[2]), Killed())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(photos), str(tmp_path / "cache")], capture_output=True)
    assert done.returncode == 9, done.stderr
    with pytest.raises(DeepInvError, match="unfinished"):
        LatentCache.open(tmp_path / "cache", vae_fingerprint="vae-a", side=SIDE)
    encoded(photos, tmp_path / "cache")
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def test_only_what_changed_is_encoded_again(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HOLDOUT", 0.3)
    cache = tmp_path / "cache"
    before = everything(encoded(photos, cache))
    (photos / "00.png").unlink()
    picture(photos / "04.png", 200)
    os.utime(photos / "04.png", ns=(1, 1))
    picture(photos / "new.png", 90)
    encode = Encoder()
    after = everything(encoded(photos, cache, encode))
    assert encode.images == 2
    assert after.keys() == before.keys() - {"00.png"} | {"new.png"}
    assert {name for name in after.keys() & before.keys() if not torch.equal(after[name], before[name])} == {"04.png"}


def test_shards_that_lost_all_their_images_are_removed(photos, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    encoded(photos, cache)
    for path in photos.rglob("*.png"):
        if path.name != "05.png":
            path.unlink()
    monkeypatch.setattr(module, "HOLDOUT", 0)
    left = encoded(photos, cache, Encoder(0, AssertionError("encoded again")))
    assert len([name for name in contents(cache) if name.startswith("latents-")]) == 1
    assert list(everything(left)) == ["sub/é/05.png"]


def test_a_deleted_shard_is_made_again(photos, tmp_path):
    cache = tmp_path / "cache"
    before = everything(encoded(photos, cache))
    (cache / "latents-00001.safetensors").unlink()
    with pytest.raises(DeepInvError, match=r"latents-00001.*does not exist.*encode the folder again"):
        everything(LatentCache.open(cache, vae_fingerprint="vae-a", side=SIDE))
    encode = Encoder()
    after = everything(encoded(photos, cache, encode))
    assert encode.images <= 4 and after.keys() == before.keys()


@pytest.mark.parametrize(("change", "words"), [
    ({"vae_fingerprint": "vae-b"}, "VAE 'vae-a', now it is 'vae-b'.*another cache folder"),
    ({"side": 48}, "side 32, now it is 48.*another cache folder"),
    ({"side": 8}, "side 8"),
    ({"batch": 0}, "batch 0"),
    ({"shard_size": 0}, "shard size 0"),
    ({"vae_fingerprint": ""}, "fingerprint ''"),
])  # fmt: skip
def test_what_does_not_fit_the_cache_is_refused(photos, tmp_path, change, words):
    encoded(photos, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    with pytest.raises(DeepInvError, match=words):
        encoded(photos, tmp_path / "cache", **change)
    assert contents(tmp_path / "cache") == before


def test_folders_without_images(photos, tmp_path):
    with pytest.raises(DeepInvError, match="no folder"):
        encoded(tmp_path / "missing", tmp_path / "cache")
    cache = tmp_path / "cache"
    encoded(photos, cache)
    before = contents(cache)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeepInvError, match="holds no image"):
        encoded(tmp_path / "empty", cache)
    assert contents(cache) == before  # a folder that isn't mounted loses nothing
    for number in range(3):
        (tmp_path / "empty" / f"{number}.png").write_text("text")
    with pytest.raises(DeepInvError, match=r"can be read: 3 .png .damaged."):
        encoded(tmp_path / "empty", tmp_path / "other")
    with pytest.raises(DeepInvError, match="holds no latents"):
        LatentCache.open(tmp_path / "other", vae_fingerprint="vae-a", side=SIDE)


@pytest.mark.parametrize(("encode", "word"), [
    (lambda pixels: pixels[:1, 0], "shape"),
    (lambda pixels: pixels.long(), "int64"),
    (lambda pixels: pixels / 0, "NaN or infinity"),
    (lambda pixels: pixels[..., : 4 + int(torch.randint(1, 20, ()))], "one shape"),
])  # fmt: skip
def test_a_vae_that_gives_no_latents_is_refused(photos, tmp_path, encode, word):
    with pytest.raises(DeepInvError, match=word):
        encoded(photos, tmp_path / "cache", encode)


# --- batches ---------------------------------------------------------------------------------------------------------


def mixed(counts: list[int], holdout: float = 0.1) -> LatentCache:
    """A cache in memory; a latent's first value is its number."""
    first, groups = 0, []
    for width, count in enumerate(counts, 2):
        groups.append(torch.arange(first, first + count).float()[:, None, None, None].expand(count, 4, 2, width))
        first += count
    return from_tensors(groups, holdout)


def same(a, b) -> bool:
    return a.names == b.names and torch.equal(a.latents, b.latents)


@settings(max_examples=40)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda counts: sum(counts) > 4),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    start=st.integers(0, 70),
)
def test_batches_resume_and_visit_everything_equally(counts, batch, seed, start):
    cache = mixed(counts)
    assert cache.train + cache.holdout == sum(counts) and cache.holdout >= 1
    run = list(islice(cache.batches(batch, seed), max(start, cache.train) + 5))
    resumed = islice(mixed(counts).batches(batch, seed, start), 5)
    assert all(same(a, b) for a, b in zip(run[start : start + 5], resumed, strict=True))
    visits = Counter(name for part in run[: cache.train] for name in part.names)
    assert len(visits) == cache.train and set(visits.values()) == {batch}
    held = [name for part in cache.held_out(2) for name in part.names]
    assert len(held) == len(set(held)) == cache.holdout and not set(held) & visits.keys()
    assert all(float(row[0, 0, 0]) == int(name) for part in run for name, row in zip(part.names, part.latents))  # noqa: B905


def test_visits_stay_even_within_a_cycle():
    cache = mixed([60, 30, 6], 0)
    visits = Counter(name for part in islice(cache.batches(2, 1), 48) for name in part.names)
    share = [sum(visits[str(n)] for n in range(*ends)) / 96 for ends in ((0, 60), (60, 90), (90, 96))]
    assert share == pytest.approx([60 / 96, 30 / 96, 6 / 96], abs=0.05)
    assert set(visits.values()) <= {1, 2} and len(visits) >= 90


def test_order_depends_on_the_seed_and_the_epoch():
    cache = mixed([40], 0)
    names = [[part.names for part in islice(cache.batches(4, seed), 20)] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    assert names[0][:10] != names[0][10:]


def test_batches_of_a_folder(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HOLDOUT", 0.2)
    cache = encoded(photos, tmp_path / "cache")
    held = {name for part in cache.held_out(8) for name in part.names}
    run = list(islice(cache.batches(3, 7), cache.train * 2))
    visits = Counter(name for part in run for name in part.names)
    assert set(visits.values()) == {6} and len(visits) == cache.train and not visits.keys() & held
    assert len({part.latents.shape for part in run}) > 1
    monkeypatch.setattr(module, "MEMORY_BYTES", 1)
    reopened = LatentCache.open(tmp_path / "cache", vae_fingerprint="vae-a", side=SIDE)
    assert all(same(a, b) for a, b in zip(run[9:], reopened.batches(3, 7, 9), strict=False))
    run[0].latents.zero_()
    assert not torch.equal(next(cache.batches(3, 7)).latents, run[0].latents)


def test_few_shards_are_in_memory_and_none_before_it_is_needed(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HOLDOUT", 0)
    encoded(photos, tmp_path / "cache")
    read, load = [], checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda path, kind: read.append(path) or load(path, kind=kind))
    cache = LatentCache.open(tmp_path / "cache", vae_fingerprint="vae-a", side=SIDE)
    assert read == []
    list(islice(cache.batches(4, 0), 2 * cache.train))
    assert len(read) == len(set(read))
    monkeypatch.setattr(module, "MEMORY_BYTES", 1)
    cache = LatentCache.open(tmp_path / "cache", vae_fingerprint="vae-a", side=SIDE)
    list(islice(cache.batches(4, 0), cache.train))
    assert len(read) > 2 * len(set(read)) and len(cache._read._open) == 1


def test_a_shuffle_reads_a_window_of_shards_at_a_time():
    counts = [5] * 12
    order = epoch_order(counts, 3)
    assert sorted(order) == list(range(60)) and order != epoch_order(counts, 4)
    size = 5 * WINDOW_SHARDS
    windows = [order[at : at + size] for at in range(0, 60, size)]
    assert all(len({item // 5 for item in window}) == WINDOW_SHARDS for window in windows)


def test_more_images_move_none_between_the_splits():
    def split(count):
        return {name for part in from_tensors([torch.zeros(count, 4, 2, 2)], 0.2).held_out(99) for name in part.names}

    assert split(20) < split(200) and split(200) & {str(n) for n in range(20)} == split(20)
    assert 20 < len(split(200)) < 60


def test_the_one_image_held_out_stays_held_out(tmp_path):
    for number in range(4):
        picture(tmp_path / "photos" / f"{number}.png", number)
    held = [name for part in encoded(tmp_path / "photos", tmp_path / "cache").held_out(1) for name in part.names]
    assert len(held) == 1
    for number in range(4, 40):
        picture(tmp_path / "photos" / f"{number}.png", number)
    later = {name for part in encoded(tmp_path / "photos", tmp_path / "cache").held_out(1) for name in part.names}
    assert later & {f"{number}.png" for number in range(4)} == set(held)


def test_tensors_in_memory():
    cache = from_tensors([torch.zeros(2, 4, 3, 3), torch.ones(1, 4, 3, 3), torch.zeros(3, 4, 2, 5)], holdout=0)
    found = everything(cache)
    assert cache.train == 6 and cache.holdout == 0 and torch.equal(found["2"], torch.ones(4, 3, 3))
    for bad, word in (
        ([], "no latent"),
        ([torch.zeros(1, 4, 2, 2)], "none is left"),
        ([torch.full((2, 4, 2, 2), torch.nan)], "latent 0 holds NaN"),
        ([torch.zeros(2, 4, 2, 2, dtype=torch.long)], "int64"),
        ([torch.zeros(4)], "shape"),
    ):
        with pytest.raises(DeepInvError, match=word):
            from_tensors(bad)
    for call in (lambda: cache.batches(0, 1), lambda: cache.batches(1, 1, -1), lambda: cache.held_out(0)):
        with pytest.raises(DeepInvError, match="can't be"):
            call()


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished cache of six images, as the bytes of its files."""
    folder = tmp_path_factory.mktemp("small")
    for number in range(6):
        picture(folder / "photos" / f"{number}.png", number, SIZES[number % 2])
    encoded(folder / "photos", folder / "cache")
    return contents(folder / "cache")


def restore(small: dict[str, bytes], cache: Path) -> dict:
    cache.mkdir(exist_ok=True)
    for name, content in small.items():
        (cache / name).write_bytes(content)
    return json.loads(small["index.json"])


def use(cache: Path) -> None:
    everything(LatentCache.open(cache, vae_fingerprint="vae-a", side=SIDE))


def first_shard(index):
    return index["shards"]["latents-00000.safetensors"]


@pytest.mark.parametrize(("damage", "word"), [
    (lambda i: i["images"][0].update(name="../x.png"), "leads out"),
    (lambda i: i["images"][0].update(name="a/../../x.png"), "leads out"),
    (lambda i: i["images"][0].update(name="/etc/x.png"), "leads out"),
    (lambda i: i["images"][0].update(name="C:\\x.png"), "leads out"),
    (lambda i: i["images"][0].update(name="..\\x.png"), "leads out"),
    (lambda i: i["images"][0].update(name="a\0.png"), "leads out"),
    (lambda i: i["images"][0].update(name=""), "leads out"),
    (lambda i: i["images"][0].update(name=3), "text is expected"),
    (lambda i: i["images"][0].update(name=i["images"][1]["name"]), "occurs twice"),
    (lambda i: i["images"][0].update(shard="latents-00009.safetensors"), "isn't listed"),
    (lambda i: i["images"][0].update(shard=[]), "damaged"),
    (lambda i: i["images"][0].update(row=4), "its shard lacks"),
    (lambda i: i["images"][0].update(row=1), "row of another"),
    (lambda i: i["images"][0].update(row=True), "number is expected"),
    (lambda i: i["images"][0].update(size=-1), "number is expected"),
    (lambda i: i["images"][0].pop("mtime_ns"), "no 'mtime_ns'"),
    (lambda i: i["images"].append(3), "damaged"),
    (lambda i: i["shards"].update({"../../x.safetensors": first_shard(i)}), "no name of a shard"),
    (lambda i: i["shards"].update({"/x.safetensors": first_shard(i)}), "no name of a shard"),
    (lambda i: first_shard(i).update(shape=[3, 4, 4, 5]), r"the index says \[3, 4, 4, 5\]"),
    (lambda i: first_shard(i).update(shape=[2**40, 4, 4, 4]), "isn't the shard"),
    (lambda i: first_shard(i).update(shape=[]), "can't be"),
    (lambda i: first_shard(i).update(shape=None), "damaged"),
    (lambda i: first_shard(i).update(dtype="F16"), "F16"),
    (lambda i: first_shard(i).update(dtype="F7"), "can't be"),
    (lambda i: first_shard(i).update(bucket=[64, 64]), "larger than the side"),
    (lambda i: first_shard(i).update(bucket=[16]), "damaged"),
    (lambda i: i.update(shards=[]), "damaged"),
    (lambda i: i.update(images={}), "add images"),
    (lambda i: i.update(side="32"), "number is expected"),
    (lambda i: i.update(version=2), "version 2.*update the pack"),
    (lambda i: i.update(format="deepinv/solver"), "no index"),
    (lambda i: i.pop("vae"), "no 'vae'"),
    (lambda i: i.update(complete=False), "unfinished"),
    (lambda i: i["images"][0].update(row=1) or i["images"][1].update(row=0), "other images"),
])  # fmt: skip
def test_a_damaged_index_is_refused(small, tmp_path, damage, word):
    index = restore(small, tmp_path)
    damage(index)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DeepInvError, match=word) as caught:
        use(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["index.json", "latents-00000.safetensors"])
def test_no_damaged_byte_raises_anything_else(small, tmp_path, file):
    restore(small, tmp_path)
    whole, refused = small[file], 0
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        for changed in (whole[:place], whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]):
            (tmp_path / file).write_bytes(changed)
            try:
                use(tmp_path)
            except DeepInvError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 150
    for garbage in (b"", b"[1]", b"[" * 100_000, b"\xff" * 50, b'{"version": ' + b"9" * 5000 + b"}"):
        (tmp_path / file).write_bytes(garbage)
        with pytest.raises(DeepInvError):
            use(tmp_path)


def test_shards_of_elsewhere_are_refused(small, tmp_path):
    restore(small, tmp_path)
    (tmp_path / "latents-00000.safetensors").write_bytes(small["latents-00001.safetensors"])
    with pytest.raises(DeepInvError, match=r"latents-00000.*delete it and encode the folder again"):
        use(tmp_path)
    with pytest.raises(DeepInvError, match="latents-00000"):
        (tmp_path / "photos").mkdir()
        picture(tmp_path / "photos" / "0.png", 0)
        encoded(tmp_path / "photos", tmp_path)
