"""RAW distillation: one picture for both, what each loss is, what is refused, and what comes out of a run."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from tars import write_tar
from torch import Tensor
from torch.nn import functional as F
from training import RATES, RUN, lines, on_two_ranks

from datakit import codec
from datakit.cli import main
from datakit.errors import RecipeError
from datakit.pretrain import checkpoint
from datakit.pretrain.backbone import Backbone, stem
from datakit.pretrain.distil import apart, divergence, unreached, whitened
from datakit.pretrain.raw_distill import RawDistillation, resized
from datakit.pretrain.recipe import Pretrain
from datakit.pretrain.train import pretrain
from datakit.pretrain.trained import Trained
from datakit.stream import Loader, Overlay, mae
from datakit.stream.batch import Batch

pytestmark = pytest.mark.usefixtures("one_thread")

WIDE = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
SMALL = {"model": "convnext_atto", "arguments": WIDE}
NARROW = {"model": "convnext_atto", "arguments": {**WIDE, "dims": [8, 12, 16, 20]}}
SWIN = {
    "model": "swin_tiny_patch4_window7_224",
    "arguments": {"depths": [1, 1, 2, 1], "embed_dim": 8, "num_heads": [1, 1, 2, 2], "window_size": 2},
}
CLASSES = 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a teacher, in a file of tensors alone."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    model = timm.create_model("convnext_atto", num_classes=CLASSES, **WIDE)
    for one in model.parameters():  # no layer is but its start
        one.data += 0.05 * torch.randn_like(one)
    safetensors.torch.save_file(model.state_dict(), path)
    return path


def objective(weights: Path, **changed: Any) -> RawDistillation:
    plain = {"kind": "raw_distill", "student": SMALL, "teacher": {**SMALL, "weights": str(weights)}, "image_px": 32}
    return RawDistillation.model_validate({**plain, "classes": CLASSES, **changed})


def batch(pictures: Tensor, labels: Any = None) -> Batch:
    n = len(pictures)
    labels = torch.zeros(n, dtype=torch.long) if labels is None else labels
    ids = torch.arange(n)
    return Batch(pictures, ids, [""] * n, ids >= 0, torch.zeros(n, 1, 6), 0, 0, {"label": labels})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


VIEWS = [None, "packed", "demosaiced", "srgb", "aodraw_downsampled", {"planes": "packed", "scale": 2}]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("packed", ["crop", "stem"])
def test_a_marker_is_at_one_place_in_both(weights: Path, tmp_path: Path, view: Any, packed: str) -> None:
    """Painted into pictures; through crops, mirrors, turns and changed colours, and through a mosaic."""
    rng = np.random.default_rng(3)
    members = []
    for n in range(8):
        (top, left), (y, x) = rng.uniform(45, 105, 2), np.indices((150, 170))
        light = 20 + 200 * np.exp(-((y - top) ** 2 + (x - left) ** 2) / 2 / 6**2)
        path = tmp_path / f"{n}.png"
        Image.fromarray(light.astype(np.uint8)[..., None].repeat(3, 2)).save(path)
        members.append((f"m{n}.png", path.read_bytes()))
    augment = {"scale": [0.5, 1.0], "turns": True, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    camera = {"shot": [1e-6, 1e-6], "read": [0, -16, 0]}
    of = objective(
        weights, student=SWIN, view=view, packed=packed, augment=augment, camera=camera, labels=0, image_px=64
    )
    loading = of.loading()
    loader = Loader(write_tar(tmp_path / "marked.tar", members), 8, transform=loading.transform, threads=1, seed=5)
    seen_crops = set()
    for epoch in range(16):  # 128 draws of 8 kinds
        loader.set_epoch(epoch)
        for made in loader:
            assert made.images.shape[1:] == (3, of.crop_px, of.crop_px)
            shown = of.seen(made.images, 0.5, generator(epoch))
            taught = resized(made.images, of.taught_px)
            assert shown.shape == (8, of.bands, of.seen_px, of.seen_px)
            assert taught.shape == (8, 3, 64, 64)
            there, here = centre(taught.mean(1)), centre(shown[:, [1, -1]].mean(1))
            assert (there - here).abs().max() * 64 < 0.4, "px of the teacher's picture"
            seen_crops |= {tuple(crop[4:]) for crop in made.crops[:, 0].tolist()}
    assert len(seen_crops) == 8, "all mirrors and turns"


def centre(gray: Tensor) -> Tensor:
    """Where the light is, as shares of the sides: (B, H, W) -> (B, 2)."""
    light = gray - gray.flatten(1).median(1).values[:, None, None]
    light = (light - light.flatten(1).amax(1)[:, None, None] / 3).clamp(min=0)
    places = (torch.arange(gray.shape[1]) + 0.5) / gray.shape[1]
    total = light.sum((1, 2))
    return torch.stack([(light.sum(2) @ places) / total, (light.sum(1) @ places) / total], 1)


def test_losses_are_their_formulas(weights: Path) -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(4, 5, 3, 3), 3 + 10 * torch.randn(4, 5, 3, 3)
    numbers = teacher.numpy().astype(np.float64)
    channels = numbers.transpose(1, 0, 2, 3).reshape(5, -1)
    flat = ((channels.T - channels.mean(1)) / channels.std(1)).T
    white = flat.reshape(5, 4, 3, 3).transpose(1, 0, 2, 3)
    assert np.allclose(whitened(teacher).numpy(), white, atol=1e-5)
    ours = student.numpy().astype(np.float64)
    length = np.linalg.norm(ours, axis=1) * np.linalg.norm(white, axis=1)
    assert np.allclose(apart(student, torch.from_numpy(white).float(), "mse"), ((ours - white) ** 2).mean((1, 2, 3)))
    cosine = 1 - ((ours * white).sum(1) / length).mean((1, 2))
    assert np.allclose(apart(student, torch.from_numpy(white).float(), "cosine"), cosine, atol=1e-6)
    one, other = torch.randn(4, 7), torch.randn(4, 7)
    p, q = (torch.softmax(logits.double() / 3, 1) for logits in (other, one))
    assert torch.allclose(divergence(one, other, 3.0).double(), 9 * (p * (p / q).log()).sum(1), atol=1e-6)
    assert whitened(torch.zeros(2, 3, 4, 4)).abs().max() == 0


def test_a_step_has_each_loss_by_its_weight(weights: Path) -> None:
    """Against the same sums from timm's own forward, with the RAW drawn again."""
    stages = {"weight": 2.0, "stages": [2, 3], "distance": "cosine"}
    of = objective(
        weights, student=NARROW, features=stages, logits={"weight": 3.0, "temperature": 2.0}, labels=0.5, view="packed"
    )
    torch.manual_seed(0)
    module = of.build().train()
    pictures = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    labels = torch.tensor([0, 2, -1, 1])
    found = of.losses(module, batch(pictures, labels), 0.3, generator(3))
    seen = of.seen(pictures, 0.3, generator(3))
    mean, std = (torch.tensor(of.numbers[n])[:, None, None] for n in (0, 1))
    teacher = timm.create_model("convnext_atto", num_classes=CLASSES, **WIDE)
    teacher.load_state_dict(safetensors.torch.load_file(weights))
    taught = (resized(pictures, 32) - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    own, maps = module.student.forward_intermediates((seen - mean) / std)
    known, theirs = teacher.eval().forward_intermediates(taught)
    features = torch.stack([
        apart(module.projections[n](maps[k]), whitened(theirs[k]), "cosine") for n, k in enumerate((2, 3))
    ]).mean(0)  # fmt: skip
    logits = divergence(module.student.forward_head(own), teacher.forward_head(known), 2.0)
    entropy = F.cross_entropy(module.student.forward_head(own), labels, reduction="none", ignore_index=-1)
    assert float(entropy[2].detach()) == 0, "a sample without a label"
    for name, expected in (("features", features), ("logits", logits), ("labels", entropy)):
        assert torch.allclose(found[name], expected, atol=1e-5), name
    assert torch.allclose(found["loss"], 2 * features + 3 * logits + 0.5 * entropy, atol=1e-4)
    found["loss"].sum().backward()
    assert all((one.grad is not None) == one.requires_grad for one in module.parameters())
    assert not any("teacher" in name for name in module.state_dict())
    assert not module.teacher(torch.device("cpu")).training


def test_making_the_teacher_draws_nothing(weights: Path) -> None:
    of = objective(weights)
    module = of.build()
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    module.teacher(torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("student", [SMALL, SWIN, {"model": "resnet18"}])
def test_what_no_loss_reaches_is_frozen(weights: Path, student: dict[str, Any]) -> None:
    of = objective(weights, student=student, labels=0)
    module = of.build()
    idle = [name for name, one in module.named_parameters() if not one.requires_grad]
    assert idle == unreached(module, torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), None)
    assert all("norm" in name or "fc" in name for name in idle)
    with_labels = objective(weights, student=student)
    assert not with_labels.checked()


def test_the_curriculum_follows_the_run(weights: Path) -> None:
    points = {"noise": [[0, 0], [0.5, 2]], "exposure": [[0.5, [1, 1]], [1, [0.01, 0.5]]]}
    of = objective(weights, curriculum=points, view="packed")
    curriculum = of.curriculum
    assert [curriculum.noise_at(x) for x in (0, 0.25, 0.5, 1)] == [0, 1, 2, 2]
    assert curriculum.exposure_at(0.1) == (1, 1)
    assert curriculum.exposure_at(0.75) == pytest.approx((0.1, 0.5**0.5))
    pictures = torch.full((2, 3, 64, 64), 128, dtype=torch.uint8)
    still, noisy, dark = (of.recorded(pictures, x, generator()).signal for x in (0.0, 0.5, 1.0))
    assert float(still[:, 16::2, 16::2].std(dim=(1, 2)).max()) < 1e-5
    plain = objective(weights, view="packed").recorded(pictures, 0.0, generator()).signal
    ratio = noisy[:, ::2, ::2].std(dim=(1, 2)) / plain[:, ::2, ::2].std(dim=(1, 2))
    assert torch.allclose(ratio, torch.full((2,), 2.0), rtol=0.1)
    assert float(dark.mean()) < float(still.mean()) / 1.5
    for wrong in ({"noise": [[0.5, 1], [0.2, 1]]}, {"noise": [[0, -1]]}, {"exposure": [[0, [0, 1]]]}, {"noise": []}):
        with pytest.raises(ValidationError):
            objective(weights, curriculum=wrong)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"teacher": None}, "features: null"),
    ({"features": None}, "features: null"),
    ({"features": None, "teacher": None, "labels": 0}, "one at least"),
    ({"student": {"model": "convnex"}}, "timm has none"),
    ({"student": {"model": "resnet18"}, "view": "packed", "packed": "stem"}, "stride could be halved"),
    ({"view": "packed", "packed": "stem"}, "timm has other layers"),
    ({"features": {"stages": [7]}}, "out of range"),
    ({"features": {"stages": [2], "of_teacher": [3]}}, r"stage 2 of convnext_atto is 2 x 2 of 32 px, stage 3 .* 1 x 1"),
    ({"features": {"stages": [2], "of_teacher": [2, 3]}}, "as many stages"),
    ({"view": "camera"}, "there are packed"),
    ({"view": {"planes": "packed", "dtype": "uint16"}}, "float32"),
    ({"classes": 0}, "want classes"),
    ({"class_names": ["a", "b"]}, "2 of 3"),
    ({"view": "packed", "normalise": {"mean": [0.1] * 3, "std": [0.2] * 3}}, "3 means for 4 bands"),
    ({"image_px": 33, "view": "demosaiced"}, "even side"),
    ({"student": {"model": "convnext_atto", "arguments": {"depth": 3}}}, "does not make it"),
]


@pytest.mark.parametrize(("changed", "said"), WRONG)
def test_what_does_not_fit_is_told_at_the_start(weights: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        objective(weights, **changed)


def test_weights_and_data_that_do_not_fit(weights: Path, tmp_path: Path) -> None:
    pictures = torch.zeros(2, 3, 96, 96, dtype=torch.uint8)

    def run(of: RawDistillation, pixels: Tensor = pictures, labels: Any = None) -> None:
        of.losses(of.build(), batch(pixels, labels), 0, generator())

    (tmp_path / "text.pt").write_text("no weights")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "odd.pt")
    torch.save({"stem.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    for name, said in (("none.pt", "no such file"), ("text.pt", "cannot be read"), ("odd.pt", "no state dict")):
        with pytest.raises(RecipeError, match=said):
            run(objective(tmp_path / name))
    with pytest.raises(RecipeError, match="missing"):
        run(objective(tmp_path / "other.pt"))
    with pytest.raises(RecipeError, match="the teacher has 3 classes, the student 5"):
        run(objective(weights, logits={}, classes=5))
    for labels, said in ((["a", "b"], "class_names"), (torch.tensor([0, 3]), "class 3 of 3")):
        with pytest.raises(RecipeError, match=said):
            run(objective(weights), labels=labels)
    with pytest.raises(RecipeError, match="sRGB of 8 bits"):
        run(objective(weights), pictures[:, :1])


def test_weights_of_other_bands_and_strides(weights: Path, tmp_path: Path) -> None:
    """Gray and even pictures look the same to a stem that is made for packed planes, at half the stride, too."""
    weight = torch.randn(5, 3, 4, 4)
    gray = torch.rand(1, 1, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    three = F.conv2d(gray.expand(1, 3, 16, 16), weight, stride=4)
    four = F.conv2d(gray.expand(1, 4, 16, 16), stem(weight, torch.Size((5, 4, 4, 4))), stride=4)
    halved = F.conv2d(gray[..., ::2, ::2].expand(1, 4, 8, 8), stem(weight, torch.Size((5, 4, 2, 2))), stride=2)
    assert torch.allclose(three, four, atol=1e-5)
    assert torch.allclose(three, halved, atol=1e-5)
    backbone = Backbone.model_validate({**SMALL, "weights": str(weights)})
    same, other = backbone.loaded(32, CLASSES), backbone.loaded(32, 7, 4)
    state = safetensors.torch.load_file(weights)
    assert torch.equal(same.head.fc.weight, state["head.fc.weight"])
    assert other.head.fc.weight.shape[0] == 7
    assert torch.equal(other.stages[1].blocks[0].gamma, state["stages.1.blocks.0.gamma"])
    assert other.stem[0].weight.shape == (8, 4, 4, 4)
    torch.save({"model": Backbone.model_validate(SWIN).made(64, 0).state_dict()}, tmp_path / "swin.pt")
    swin = Backbone.model_validate({**SWIN, "weights": str(tmp_path / "swin.pt")})
    halved = swin.loaded(32, 0, 4, swin.half_stride(64))
    assert halved.patch_embed.proj.weight.shape == (8, 4, 2, 2)
    assert halved(torch.rand(1, 4, 32, 32)).shape == (1, 64)


def run_recipe(shards: Path, weights: Path, **changed: Any) -> Pretrain:
    of = objective(weights, **changed.pop("objective", {})).model_dump(mode="json")
    return Pretrain.model_validate({**RUN, "data": str(shards), "objective": of, "optimiser": RATES, **changed})


RUNS: list[dict[str, Any]] = [
    {"objective": {"student": SWIN, "view": "packed", "packed": "stem", "image_px": 64}, "budget": {"samples": 16}},
    {"objective": {"view": None, "teacher": None, "features": None}, "budget": {"samples": 16}, "ema": 0.5},
    {"objective": {"logits": {}, "labels": 0}, "precision": "bf16", "pictures_every": 1},
]


@pytest.mark.parametrize("more", RUNS)
def test_runs_go_through_the_one_loop(shards: Path, weights: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    one = run_recipe(shards, weights, **more)
    told = pretrain(one, tmp_path / "run", say=lambda _: None, accelerator="cpu")
    assert np.isfinite(told["loss"])
    saved = checkpoint.load(checkpoint.there(tmp_path / "run" / "checkpoints")[-1])
    assert not any("teacher" in name for name in saved["model"])
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'export'}", pretrained=True).eval()
    of = one.objective
    images = torch.randn(2, of.bands, of.seen_px, of.seen_px)
    trained = Trained.load(checkpoint.there(tmp_path / "run" / "checkpoints")[-1])
    with torch.no_grad():
        expected = trained.module.student(images)
        assert torch.allclose(model(images), expected, atol=1e-5)
    tokens = trained.encoder().tokens(images)
    assert tokens.ndim == 3
    assert len(tokens) == 2
    about = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert about["datakit"]["view"] == (None if of.shown is None else of.shown.model_dump(mode="json"))
    assert about["pretrained_cfg"]["input_size"] == [of.bands, of.seen_px, of.seen_px]
    assert about["pretrained_cfg"]["mean"] == pytest.approx(list(of.numbers[0]))


def test_a_run_goes_on_and_exports_without_its_teacher(
    shards: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit: RAW and noise come from (seed, step), and the teacher's making draws nothing."""
    own = tmp_path / "teacher.safetensors"
    own.write_bytes(weights.read_bytes())
    drop = {"student": {**SMALL, "arguments": {**WIDE, "drop_path_rate": 0.3}}}
    one = run_recipe(shards, own, budget={"samples": 32}, objective=drop)
    pretrain(one, tmp_path / "whole", say=lambda _: None, accelerator="cpu")
    folder = tmp_path / "part" / "checkpoints"
    folder.mkdir(parents=True)
    second = tmp_path / "whole" / "checkpoints" / "step-000000002.pt"
    (folder / second.name).write_bytes(second.read_bytes())
    pretrain(one, tmp_path / "part", say=lambda _: None, resume="auto", accelerator="cpu")
    a, b = (checkpoint.load(checkpoint.there(tmp_path / name / "checkpoints")[-1]) for name in ("whole", "part"))
    assert a["step"] == b["step"] == 4
    assert all(torch.equal(a["model"][name], b["model"][name]) for name in a["model"])
    own.unlink()
    assert main(["export", "encoder", str(second), str(tmp_path / "mm"), "--format", "mmpretrain"]) == 0
    assert (tmp_path / "mm" / "backbone.pth").is_file()
    assert main(["export", "encoder", str(second), str(tmp_path / "mm"), "--format", "mmdet"]) == 1
    assert "mmdetection's SwinTransformer has no place for" in capsys.readouterr().err


RANKED = """
import json, sys
from io import BytesIO
from pathlib import Path
from datakit.pretrain.recipe import Pretrain
from datakit.pretrain.train import pretrain

pretrain(Pretrain.model_validate_json(Path(sys.argv[1]).read_text()), sys.argv[2], accelerator="cpu")
"""


def test_it_trains_on_ranks(shards: Path, weights: Path, tmp_path: Path) -> None:
    """All that is trained gets gradients, on every rank."""
    (tmp_path / "ranked.py").write_text(RANKED)
    one = run_recipe(shards, weights, objective={"labels": 0}, budget={"samples": 16})
    (tmp_path / "recipe.json").write_text(one.model_dump_json())
    on_two_ranks(tmp_path / "ranked.py", tmp_path / "recipe.json", tmp_path / "run")
    assert [line["samples"] for line in lines(tmp_path / "run" / "log.jsonl")] == [8, 16]


def test_held_out_images_are_refused(weights: Path, tmp_path: Path) -> None:
    """AODRaw's test images and their slices, by what is written of each; an overlay that drops them helps."""

    def tar(name: str, splits: list[str], source: str = "aodraw") -> Path:
        members = []
        for n, split in enumerate(splits):
            key = f"{source}-images-{n:04}-1280_0_1280_1280"
            out = tmp_path / "picture.png"
            Image.fromarray(np.full((40, 40, 3), 9 * n, np.uint8)).save(out)
            fields = json.dumps({"source": source, "split": split, "name": f"images/{n:04}.ARW"})
            members += [(f"{key}.png", out.read_bytes()), (f"{key}.json", fields.encode())]
        return write_tar(tmp_path / name, members)

    train = ["train"] * 8
    changes: dict[str, Any] = {"objective": {"labels": 0}, "budget": {"epochs": 1}}
    mixed = tar("mixed.tar", [*train, "test"])
    with pytest.raises(RecipeError, match=r"1 samples are of aodraw:test.*0008-1280_0"):
        pretrain(run_recipe(mixed, weights, **changes), tmp_path / "a", say=lambda _: None, accelerator="cpu")
    (held,) = [batch.ids for batch in Loader(mixed, 9, shuffle=False, transform=mae(8))]
    Overlay.write(tmp_path / "drop.parquet", "drop", held.numpy()[8:])
    rest = {**changes, "overlay": [str(tmp_path / "drop.parquet")]}
    for name, one in (
        ("b", run_recipe(mixed, weights, **rest)),
        ("c", run_recipe(mixed, weights, **{**changes, "held_out": []})),
        ("d", run_recipe(tar("other.tar", ["test"] * 8, "inria"), weights, **changes)),
    ):
        told = pretrain(one, tmp_path / name, say=lambda _: None, accelerator="cpu")
        assert told["samples"] == 8


@pytest.mark.parametrize("view", ["packed", "aodraw_downsampled", {"planes": "demosaiced", "gamma": 2.2}])
def test_pairs_of_raw_and_jpeg_show_one_place(weights: Path, tmp_path: Path, view: Any) -> None:
    """A mosaic and its JPEG of the same scene, through crops, mirrors and turns; and a run learns from them."""
    rng, members = np.random.default_rng(3), []
    camera = {"cfa": "RGGB", "black": [512.0] * 4, "white": 16383.0, "full": 16383.0, "white_by_site": []}
    camera |= {"white_balance": [2.0, 1.0, 1.5], "matrix": [0.0] * 9}
    for n in range(8):
        (top, left), (y, x) = rng.uniform(130, 300, 2), np.indices((420, 450))
        light = 0.05 + 0.8 * np.exp(-((y - top) ** 2 + (x - left) ** 2) / 2 / 16**2)
        picture, out = Image.fromarray((255 * light ** (1 / 2.2)).astype(np.uint8)[..., None].repeat(3, 2)), BytesIO()
        picture.save(out, "JPEG", quality=95)
        fields = {"width": 450, "height": 420, "camera": json.dumps(camera), "source": "aodraw", "split": "train"}
        mosaic = (512 + light * 15871).astype(np.uint16)
        files = (("raw", codec.encode(mosaic)), ("jpg", out.getvalue()), ("json", json.dumps(fields).encode()))
        members += [(f"p{n}.{suffix}", data) for suffix, data in files]
    data = write_tar(tmp_path / "pairs.tar", members)
    augment = {"scale": [0.6, 1.0], "turns": True}
    of = objective(weights, view=view, pairs=True, augment=augment, labels=0, image_px=64)
    asked = of.loading()
    loader = Loader(data, 8, transform=asked.transform, columns=asked.columns, raw=asked.raw, threads=1, seed=2)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for made in loader:
            pictures, shown = of.both(made, 0.5, generator())
            assert shown.shape == (8, of.bands, 64, 64)
            assert pictures.shape == (8, 3, 64, 64)
            there, here = centre(pictures.float().mean(1)), centre(shown[:, [1, -1]].mean(1))
            assert (there - here).abs().max() * 64 < 0.4
    one = run_recipe(data, weights, objective={"view": view, "pairs": True, "labels": 0}, budget={"epochs": 1})
    assert pretrain(one, tmp_path / "run", say=lambda _: None, accelerator="cpu")["samples"] == 8
    with pytest.raises(ValidationError, match="pairs"):
        objective(weights, view=None, pairs=True)
    with pytest.raises(RecipeError, match="twin"):
        Loader(data, 8, transform=asked.transform, columns=["twin"])
