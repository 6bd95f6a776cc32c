"""Encoders on real libraries with small random models; weights go through files, never through the network."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from detection.encoder_contract import TEXTS, EncoderContract, crops, dense, pil_image, whole
from guardalign_guardrails.detection.encoders import Crop, OpenClipEncoder, TransformersEncoder, load_encoder
from guardalign_guardrails.detection.encoders.pixels import batched, clip_box, crop_batch
from guardalign_guardrails.errors import EncoderUnavailable

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "patch_size": None}
OPEN_CLIP = {
    "tiny-vit": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-vit-48": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": {**VIT, "image_size": 48}, "text_cfg": TEXT},
    "tiny-resnet": {"embed_dim": 24, "vision_cfg": RESNET, "text_cfg": TEXT},
    "tiny-coca-vit": {"embed_dim": 24, "vision_cfg": {**VIT, "attentional_pool": True}, "text_cfg": TEXT},
}
TIMM = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
if importlib.util.find_spec("timm"):
    OPEN_CLIP["tiny-timm"] = {"embed_dim": 24, "custom_text": True, "vision_cfg": TIMM, "text_cfg": TEXT}
ALPHABET = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789 ,.!?"))
SPECIALS = ["<pad>", "<unk>", "<eos>"]


def shake(model: Any, seed: int = 0) -> Any:
    """Move every weight off its initial value: zero biases would hide a forgotten one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "logit" not in name:
                weight.copy_(weight + 0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small models gain nothing from more, and waiting threads burn a busy machine's time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.pt for every small open_clip architecture, which open_clip knows by name."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "configs").mkdir()
    for name, config in OPEN_CLIP.items():
        (folder / "configs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "configs")
    for name in OPEN_CLIP:
        torch.manual_seed(0)
        torch.save(shake(open_clip.create_model(name)).state_dict(), folder / f"{name}.pt")
    return folder


def save_hub_model(kind: str, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *ALPHABET])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(vocabulary), "max_position_embeddings": 32}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**sizes, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(
            text_config=text, vision_config={**vision, "image_size": 32}, projection_dim=24
        )
        model, images = transformers.CLIPModel(config), transformers.CLIPImageProcessor()
    elif kind == "siglip":
        # 36 is no multiple of 8, as 384 is none of 14.
        config = transformers.SiglipConfig(
            text_config={**text, "projection_size": 32}, vision_config={**vision, "image_size": 36}
        )
        model, images = transformers.SiglipModel(config), transformers.SiglipImageProcessor()
    else:
        config = transformers.Siglip2Config(
            text_config={**text, "projection_size": 32}, vision_config={**vision, "num_patches": 16}
        )
        model, images = transformers.Siglip2Model(config), transformers.Siglip2ImageProcessor(patch_size=8)
    with torch.no_grad():
        model.logit_scale.fill_(2.6592)
    for part in (shake(model), tokenizer, images):
        part.save_pretrained(folder)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small checkpoint per family, as ``save_pretrained`` writes it."""
    folder = tmp_path_factory.mktemp("transformers")
    for kind in ("clip", "siglip", "siglip2"):
        save_hub_model(kind, folder / kind)
    return folder


def on_cpu(spec: str, **options: Any) -> Any:
    return load_encoder(spec, device="cpu", **options)


@functools.cache
def loaded(spec: str) -> Any:
    """An encoder shared by tests that only look: loading one takes longer than using it."""
    return on_cpu(spec)


class OpenClipContract(EncoderContract):
    model = ""

    @pytest.fixture(autouse=True)
    def _weights(self, clips: Path) -> None:
        self.weights = clips / f"{self.model}.pt"

    def make(self, **options: Any) -> OpenClipEncoder:
        return on_cpu(f"open_clip:{self.model}/{self.weights}", **options)


class TestOpenClipVit(OpenClipContract):
    model = "tiny-vit"
    dense_resolution = 56


class TestOpenClipResNet(OpenClipContract):
    model = "tiny-resnet"
    dense_resolution = 96


class TestOpenClipWithoutDenseFeatures(OpenClipContract):
    model = "tiny-coca-vit"
    has_dense = False

    def test_asking_for_cells_says_to_use_the_grid(self) -> None:
        with pytest.raises(EncoderUnavailable, match="no dense features; use regions method 'grid'"):
            self.make().encode_map([pil_image()])


@pytest.mark.skipif("tiny-timm" not in OPEN_CLIP, reason="needs timm")
class TestOpenClipTimmTower(TestOpenClipWithoutDenseFeatures):
    model = "tiny-timm"


class HubContract(EncoderContract):
    kind = ""
    dense_resolution = 56

    @pytest.fixture(autouse=True)
    def _folder(self, hub: Path) -> None:
        self.folder = hub / self.kind

    def make(self, **options: Any) -> TransformersEncoder:
        return on_cpu(f"transformers:{self.folder}", **options)


class TestTransformersClip(HubContract):
    kind = "clip"


class TestTransformersSiglip(HubContract):
    kind = "siglip"

    def test_a_strip_that_patches_do_not_tile_is_squashed_in(self) -> None:
        """36 pixels hold four patches of 8 and a strip of 4 that the convolution would not see."""
        image = Image.new("RGB", (36, 36))
        marked = image.copy()
        marked.paste((255, 0, 0), (33, 0, 36, 36))
        plain, red = self.make().encode_crops([whole(image), whole(marked)])
        assert (plain - red).abs().max() > 1e-3


class TestTransformersSiglip2Naflex(HubContract):
    kind = "siglip2"


def specs(clips: Path, hub: Path) -> list[str]:
    return [
        f"open_clip:tiny-vit/{clips}/tiny-vit.pt",
        f"open_clip:tiny-resnet/{clips}/tiny-resnet.pt",
        *(f"transformers:{hub}/{kind}" for kind in ("clip", "siglip", "siglip2")),
    ]


# Features against the libraries' own path


def test_crop_features_are_what_the_library_computes(clips: Path, hub: Path) -> None:
    for spec in specs(clips, hub):
        encoder = loaded(spec)
        towers = encoder._towers()
        pixels = crop_batch(crops(), towers.size, towers.mean, towers.std)
        with torch.inference_mode():
            if spec.startswith("open_clip"):
                expected = towers.module.encode_image(pixels)
            elif spec.endswith("siglip2"):
                patches = naflex_patches(pixels)
                mask = torch.ones(patches.shape[:2], dtype=torch.int32)
                shapes = torch.tensor([[4, 4]] * len(patches))
                expected = towers.module.vision_model(patches, mask, shapes).pooler_output
            else:
                output = towers.module.get_image_features(pixels, interpolate_pos_encoding=True)
                expected = output if isinstance(output, Tensor) else output.pooler_output
        expected = functional.normalize(expected, dim=-1)
        torch.testing.assert_close(encoder.encode_crops(crops()), expected, atol=1e-5, rtol=0)


def naflex_patches(pixels: Tensor) -> Tensor:
    from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

    return torch.stack([convert_image_to_patches(image, 8) for image in pixels])


def test_siglip_texts_are_lower_cased_and_padded_to_full_length(hub: Path) -> None:
    encoder = loaded(f"transformers:{hub}/siglip")
    tokens = encoder._towers().tokenize(["A Cat", "a cat"])
    assert list(tokens) == ["input_ids"]
    assert tokens["input_ids"].shape == (2, 32)
    assert torch.equal(tokens["input_ids"][0], tokens["input_ids"][1])


def test_a_text_longer_than_the_model_reads_is_cut(clips: Path, hub: Path) -> None:
    for spec in specs(clips, hub):
        assert torch.isfinite(loaded(spec).encode_texts(["a very long text " * 50])).all()


def test_temperature_is_the_models_own_and_not_rounded(clips: Path, hub: Path) -> None:
    for spec in specs(clips, hub):
        exact = loaded(spec).logit_scale
        assert exact == pytest.approx(1 / 0.07, rel=1e-4)
        assert on_cpu(spec, dtype=torch.bfloat16).logit_scale == exact


# Dense features against independent computations


def alone(count: int) -> Tensor:
    """An attention mask that leaves every token only itself: the value path by way of full attention."""
    return torch.full((count, count), float("-inf")).fill_diagonal_(0.0)


def dense_pixels(towers: Any, side: int) -> Tensor:
    return crop_batch([whole(pil_image(7))], (side, side), towers.mean, towers.std)


@torch.no_grad()
def test_vit_cells_equal_attention_in_which_each_patch_sees_itself(clips: Path) -> None:
    encoder = loaded(f"open_clip:tiny-vit/{clips}/tiny-vit.pt")
    towers = encoder._towers()
    visual = towers.module.visual
    x = visual._embeds(dense_pixels(towers, 32))
    x = visual.transformer.resblocks[0](x)
    x = visual.transformer.resblocks[1](x, attn_mask=alone(17))
    expected = functional.normalize(visual.ln_post(x[0, 1:]) @ visual.proj, dim=-1)
    (features,) = dense(encoder, [pil_image(7)])
    assert (features.rows, features.columns) == (4, 4)
    torch.testing.assert_close(features.cells, expected, atol=1e-5, rtol=0)


def test_vit_cells_at_another_size_equal_the_checkpoint_open_clip_resizes(clips: Path) -> None:
    small = loaded(f"open_clip:tiny-vit/{clips}/tiny-vit.pt")
    large = loaded(f"open_clip:tiny-vit-48/{clips}/tiny-vit.pt")
    (ours,), (theirs,) = dense(small, [pil_image(7)], 48), dense(large, [pil_image(7)])
    assert (ours.rows, ours.columns) == (theirs.rows, theirs.columns) == (6, 6)
    torch.testing.assert_close(ours.cells, theirs.cells, atol=1e-5, rtol=0)


@torch.no_grad()
def test_resnet_cells_equal_the_attention_pool_of_one_cell_without_position(clips: Path) -> None:
    encoder = loaded(f"open_clip:tiny-resnet/{clips}/tiny-resnet.pt")
    towers = encoder._towers()
    visual = towers.module.visual
    maps = visual.forward_intermediates(dense_pixels(towers, 64), indices=[4], intermediates_only=True)
    cells = maps["image_intermediates"][0][0].flatten(1).T
    pool = copy.deepcopy(visual.attnpool)
    pool.positional_embedding = torch.nn.Parameter(torch.zeros(2, cells.shape[1]))
    expected = functional.normalize(pool(cells[:, :, None, None]), dim=-1)
    (features,) = dense(encoder, [pil_image(7)])
    assert (features.rows, features.columns) == (2, 2)
    torch.testing.assert_close(features.cells, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", [32, 56])
def test_clip_cells_equal_attention_in_which_each_patch_sees_itself(hub: Path, side: int) -> None:
    encoder = loaded(f"transformers:{hub}/clip")
    towers = encoder._towers()
    vision = towers.module.vision_model
    x = vision.pre_layrnorm(vision.embeddings(dense_pixels(towers, side), interpolate_pos_encoding=True))
    first, last = vision.encoder.layers
    x = first(x, attention_mask=None)
    x = last(x, attention_mask=alone(x.shape[1])[None, None])
    expected = functional.normalize(towers.module.visual_projection(vision.post_layernorm(x[0, 1:])), dim=-1)
    (features,) = dense(encoder, [pil_image(7)], side)
    assert features.rows == features.columns == side // 8
    torch.testing.assert_close(features.cells, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_cells_equal_the_value_path_of_the_pooling_head(hub: Path, kind: str) -> None:
    encoder = loaded(f"transformers:{hub}/{kind}")
    towers = encoder._towers()
    vision = towers.module.vision_model
    x = vision(**towers.vision_inputs(dense_pixels(towers, 32))).last_hidden_state[0]
    attention = vision.head.attention
    value = x @ attention.in_proj_weight[64:].T + attention.in_proj_bias[64:]
    value = value @ attention.out_proj.weight.T + attention.out_proj.bias
    expected = functional.normalize(value + vision.head.mlp(vision.head.layernorm(value)), dim=-1)
    (features,) = dense(encoder, [pil_image(7)])
    assert (features.rows, features.columns) == (4, 4)
    torch.testing.assert_close(features.cells, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_a_mean_of_siglip_tokens_is_the_pooling_head_attending_to_all_alike(hub: Path, kind: str) -> None:
    encoder = loaded(f"transformers:{hub}/{kind}")
    head = copy.deepcopy(encoder._towers().module.vision_model.head)
    head.attention.in_proj_weight[:64] = 0
    head.attention.in_proj_bias[:64] = 0
    tokens = encoder.encode_map([pil_image(7)])[0].flatten(0, 1)
    expected = functional.normalize(head(tokens[None]), dim=-1)
    torch.testing.assert_close(encoder.embed(tokens.mean(0, keepdim=True)), expected, atol=1e-5, rtol=0)


def test_encoding_cells_leaves_the_model_as_it_was(clips: Path, hub: Path) -> None:
    for spec in specs(clips, hub):
        encoder = loaded(spec)
        before, structure = encoder.encode_crops(crops()[:1]), str(encoder._towers().module)
        dense(encoder, [pil_image()])
        assert str(encoder._towers().module) == structure
        torch.testing.assert_close(encoder.encode_crops(crops()[:1]), before, atol=0, rtol=0)


def test_a_resolution_that_cells_do_not_tile_is_an_error(clips: Path) -> None:
    encoder = loaded(f"open_clip:tiny-vit/{clips}/tiny-vit.pt")
    with pytest.raises(ValueError, match="multiples of 8 pixels, not 50"):
        encoder.encode_map([pil_image()], 50)


# Loading, precision, fingerprints


def test_eight_threads_load_once(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []
    load = OpenClipEncoder._load
    monkeypatch.setattr(OpenClipEncoder, "_load", lambda self: loads.append(1) or load(self))
    contract = TestOpenClipVit()
    contract.weights = clips / "tiny-vit.pt"
    contract.test_threads_that_come_first_at_once_agree()
    assert len(loads) == 1


def test_a_batch_of_any_size_gives_the_same_features(clips: Path, hub: Path) -> None:
    for spec in specs(clips, hub):
        two, many = on_cpu(spec, batch_size=2), loaded(spec)
        torch.testing.assert_close(two.encode_texts(TEXTS), many.encode_texts(TEXTS), atol=1e-5, rtol=0)
        torch.testing.assert_close(two.encode_crops(crops()), many.encode_crops(crops()), atol=1e-5, rtol=0)
        images = [pil_image(1), pil_image(2)]
        for a, b in zip(dense(two, images, 64), dense(many, images, 64), strict=True):
            torch.testing.assert_close(a.cells, b.cells, atol=1e-5, rtol=0)


def test_bfloat16_is_close_to_float32_and_another_encoder(clips: Path, hub: Path) -> None:
    for spec in specs(clips, hub):
        wide, narrow = loaded(spec), on_cpu(spec, dtype=torch.bfloat16)
        for a, b in (
            (wide.encode_texts(TEXTS), narrow.encode_texts(TEXTS)),
            (wide.encode_crops(crops()), narrow.encode_crops(crops())),
            (dense(wide, [pil_image()], 64)[0].cells, dense(narrow, [pil_image()], 64)[0].cells),
        ):
            assert b.dtype == torch.float32
            assert (a * b).sum(-1).min() > 0.99
        assert wide.fingerprint != narrow.fingerprint


def test_a_mixed_precision_model_in_memory_runs_as_it_is(clips: Path) -> None:
    exact = loaded(f"open_clip:tiny-vit/{clips}/tiny-vit.pt")
    model = open_clip.create_model("tiny-vit", str(clips / "tiny-vit.pt"), precision="bf16")
    towers = exact._towers()
    mixed = OpenClipEncoder.from_modules(model, towers.tokenizer, towers.mean, towers.std, towers.size, "mixed")
    assert (mixed.encode_crops(crops()) * exact.encode_crops(crops())).sum(-1).min() > 0.99
    assert (dense(mixed, [pil_image()])[0].cells * dense(exact, [pil_image()])[0].cells).sum(-1).min() > 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu(clips: Path, hub: Path) -> None:
    for spec in specs(clips, hub):
        cpu, gpu = on_cpu(spec), load_encoder(spec, device="cuda")
        torch.testing.assert_close(cpu.encode_texts(TEXTS), gpu.encode_texts(TEXTS), atol=1e-3, rtol=0)
        torch.testing.assert_close(cpu.encode_crops(crops()), gpu.encode_crops(crops()), atol=1e-3, rtol=0)
        assert cpu.fingerprint == gpu.fingerprint


def test_the_same_weights_from_another_path_are_the_same_encoder(clips: Path, hub: Path, tmp_path: Path) -> None:
    for name in ("tiny-vit", "tiny-resnet"):
        elsewhere = tmp_path / f"{name}-moved.pt"
        elsewhere.write_bytes((clips / f"{name}.pt").read_bytes())
        here, there = (on_cpu(f"open_clip:{name}/{path}") for path in (clips / f"{name}.pt", elsewhere))
        assert here.fingerprint == there.fingerprint
    for kind in ("clip", "siglip", "siglip2"):
        save_hub_model(kind, tmp_path / "moved" / kind)
        here, there = (on_cpu(str(path)) for path in (hub / kind, tmp_path / "moved" / kind))
        assert here.fingerprint == there.fingerprint


def test_one_changed_weight_makes_another_encoder(clips: Path, tmp_path: Path) -> None:
    weights = torch.load(clips / "tiny-vit.pt", weights_only=True)
    weights["visual.proj"][3, 5] += 1e-3
    torch.save(weights, tmp_path / "changed.pt")
    spec = "open_clip:tiny-vit/{}"
    changed, original = (on_cpu(spec.format(p)) for p in (tmp_path / "changed.pt", clips / "tiny-vit.pt"))
    assert changed.fingerprint != original.fingerprint


def test_the_same_weights_under_another_activation_are_another_encoder(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-vit-gelu.json").write_text(json.dumps({**OPEN_CLIP["tiny-vit"], "quick_gelu": False}))
    open_clip.add_model_config(tmp_path)
    gelu, quick = (on_cpu(f"open_clip:{name}/{clips}/tiny-vit.pt") for name in ("tiny-vit-gelu", "tiny-vit"))
    assert gelu.fingerprint != quick.fingerprint


def test_modules_in_memory_make_the_same_encoder_as_their_files(clips: Path, hub: Path) -> None:
    from_file = on_cpu(f"open_clip:tiny-vit/{clips}/tiny-vit.pt")
    model = open_clip.create_model("tiny-vit", str(clips / "tiny-vit.pt")).train()
    shape = model.visual.preprocess_cfg
    tokenizer = open_clip.get_tokenizer("tiny-vit")
    wrapped = OpenClipEncoder.from_modules(model, tokenizer, shape["mean"], shape["std"], 32, "mine")
    assert wrapped.name == "mine"
    assert wrapped.fingerprint == from_file.fingerprint
    torch.testing.assert_close(wrapped.encode_crops(crops()), from_file.encode_crops(crops()), atol=1e-6, rtol=0)

    folder = hub / "clip"
    from_folder = on_cpu(str(folder))
    kinds = (transformers.AutoModel, transformers.AutoTokenizer, transformers.AutoImageProcessor)
    parts = [kind.from_pretrained(folder) for kind in kinds]
    assert TransformersEncoder.from_modules(*parts, "mine").fingerprint == from_folder.fingerprint


# What a user writes


def test_a_folder_is_opened_by_the_library_that_wrote_it(clips: Path, hub: Path, tmp_path: Path) -> None:
    assert isinstance(on_cpu(str(hub / "clip")), TransformersEncoder)
    config = {"model_cfg": OPEN_CLIP["tiny-vit"], "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    encoder = on_cpu(str(tmp_path))
    assert isinstance(encoder, OpenClipEncoder)
    with pytest.raises(EncoderUnavailable, match="could not be loaded"):
        encoder.encode_texts(["weights that are not there are never random ones"])
    torch.save(torch.load(clips / "tiny-vit.pt", weights_only=True), tmp_path / "open_clip_pytorch_model.bin")
    assert encoder.encode_texts(TEXTS).shape == (len(TEXTS), 24)
    assert encoder._towers().mean == (0.5, 0.5, 0.5)
    assert load_encoder(encoder.name, device="cpu").fingerprint == encoder.fingerprint


def test_a_weights_file_may_be_written_relative_to_the_working_folder(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips.parent)
    encoder = on_cpu(f"open_clip:tiny-vit/{clips.name}/tiny-vit.pt")
    assert encoder.encode_texts(["x"]).shape == (1, 24)


@pytest.mark.parametrize("spec", ["", "clip", "open_clip:", "open_clip:ViT-L-14", "transformers:", "offline:x", "/no"])
def test_anything_else_is_answered_with_the_forms(spec: str) -> None:
    with pytest.raises(EncoderUnavailable) as caught:
        load_encoder(spec)
    assert_is_a_one_line_remedy(caught.value, "open_clip:MODEL/TAG")


def assert_is_a_one_line_remedy(error: EncoderUnavailable, remedy: str) -> None:
    assert "\n" not in str(error)
    assert remedy in str(error)


@pytest.mark.parametrize(
    ("package", "extra", "spec"),
    [("open_clip", "open-clip", "open_clip:ViT-L-14/openai"), ("transformers", "transformers", "transformers:a/b")],
)
def test_a_missing_package_names_its_extra(
    package: str, extra: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    encoder = load_encoder(spec)
    for _ in range(2):
        with pytest.raises(EncoderUnavailable) as caught:
            encoder.encode_texts(["x"])
        assert_is_a_one_line_remedy(caught.value, f"pip install 'guardalign-guardrails[{extra}]'")


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("open_clip:ViT-Z-99/openai", "list_models"),
        ("open_clip:ViT-B-32/no-such-tag", "laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32//no/such/file.pt", "neither a weights file nor a tag"),
        ("transformers:/no/such/folder", "save_pretrained"),
    ],
)
def test_missing_weights_name_the_remedy(spec: str, remedy: str) -> None:
    with pytest.raises(EncoderUnavailable) as caught:
        load_encoder(spec).encode_texts(["x"])
    assert_is_a_one_line_remedy(caught.value, remedy)


def test_a_weights_file_of_another_model_is_refused(clips: Path) -> None:
    with pytest.raises(EncoderUnavailable) as caught:
        on_cpu(f"open_clip:tiny-vit/{clips}/tiny-resnet.pt").encode_texts(["x"])
    assert_is_a_one_line_remedy(caught.value, "local weights file")


def test_a_checkpoint_with_gaps_is_refused(hub: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in (hub / "clip").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderUnavailable, match=r"lacks 1 of its weights \(first: visual_projection.weight\)"):
        on_cpu(str(tmp_path)).encode_texts(["x"])


def test_a_model_that_is_no_clip_is_refused(tmp_path: Path) -> None:
    transformers.BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(EncoderUnavailable, match="'bert' model; those of type clip, siglip, siglip2"):
        on_cpu(str(tmp_path)).encode_texts(["x"])


@pytest.mark.parametrize(("spec", "quick"), [("ViT-L-14/openai", True), ("ViT-L-14/laion2b_s32b_b82k", False)])
def test_a_tag_trained_with_quick_gelu_runs_with_it(spec: str, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip only warns when tag and architecture disagree, and then computes other features."""
    asked: dict[str, Any] = {}

    def record(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise RuntimeError("no download")

    monkeypatch.setattr(open_clip, "create_model", record)
    with pytest.raises(EncoderUnavailable, match="no download"):
        load_encoder(f"open_clip:{spec}").encode_texts(["x"])
    assert asked["force_quick_gelu"] is quick
    assert asked["require_pretrained"] is True


def test_importing_encoders_imports_no_model_library() -> None:
    code = (
        "import sys; import guardalign_guardrails.detection.encoders as e; e.load_encoder('open_clip:ViT-L-14/openai');"
        "print([m for m in ('open_clip', 'transformers', 'torchvision') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "[]"


# Pixels


def test_pixels_are_squashed_whole_and_normalised() -> None:
    image, mean, std = pil_image(8, 100, 50), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    expected = np.asarray(image.resize((24, 16), Image.Resampling.BICUBIC, reducing_gap=3.0)) / 255.0
    expected = ((expected - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
    result = crop_batch([whole(image)], (16, 24), mean, std)
    assert result.shape == (1, 3, 16, 24)
    np.testing.assert_allclose(result[0].numpy(), expected, atol=1e-5)


def test_a_mark_in_any_corner_reaches_the_pixels() -> None:
    plain = Image.new("RGB", (200, 40))
    for x, y in ((0, 0), (190, 0), (0, 30), (190, 30)):
        marked = plain.copy()
        marked.paste((255, 255, 255), (x, y, x + 10, y + 10))
        a, b = crop_batch([whole(plain), whole(marked)], (32, 32), (0.5,) * 3, (0.5,) * 3)
        assert (a - b).abs().max() > 0.5


def test_images_in_other_modes_are_read_as_rgb() -> None:
    image = pil_image(8)
    for mode in ("L", "P", "RGBA"):
        other = image.convert(mode)
        a, b = crop_batch([whole(other), whole(other.convert("RGB"))], (8, 8), (0.5,) * 3, (0.5,) * 3)
        assert torch.equal(a, b)


def test_no_crops_give_no_pixels() -> None:
    assert crop_batch([], (8, 9), (0.5,) * 3, (0.5,) * 3).shape == (0, 3, 8, 9)


@pytest.mark.parametrize("box", [(-5, -5, 3, 3), (9.9, 9.9, 9.95, 9.95), (50, 50, 60, 60), (4, 4, 4, 4), (7, 7, 2, 2)])
def test_a_clipped_box_lies_inside_and_holds_a_pixel(box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = clip_box(box, 10, 10)
    assert 0 <= left <= right - 1 <= 9
    assert 0 <= top <= bottom - 1 <= 9
    crop_batch([Crop(Image.new("RGB", (10, 10)), box)], (4, 4), (0.5,) * 3, (0.5,) * 3)


def test_a_batch_size_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        load_encoder("open_clip:ViT-L-14/openai", batch_size=0)


def test_batches_keep_order_and_leave_nothing_out() -> None:
    assert list(batched([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
