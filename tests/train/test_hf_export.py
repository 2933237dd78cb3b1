from pathlib import Path

import open_clip
import pytest
import torch
from helpers.loops import VOCABULARY, make_clip
from torch.nn.functional import normalize
from transformers import CLIPImageProcessor, CLIPModel

from dialog_gen.clip.base import Clip
from dialog_gen.core.errors import UsageError
from dialog_train.hf_export import check_export_hf, export_hf

TOKENS = torch.tensor([[1, 5, 7, VOCABULARY - 1, 0, 0], [1, VOCABULARY - 1, 0, 0, 0, 0]])


def noisy(clip: Clip) -> Clip:
    """Norms and biases start at 1 and 0, which hides a mix-up."""
    with torch.no_grad():
        for parameter in clip.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return clip


@pytest.mark.parametrize("pool", [{"pool_type": "argmax"}, {"pool_type": "eos", "eos_id": VOCABULARY - 1}])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_gives_the_same_vectors(tmp_path: Path, quick_gelu: bool, pool: dict[str, object]) -> None:
    clip = make_clip(**pool)
    if quick_gelu:
        clip.config["quick_gelu"] = True
        model = open_clip.CLIP(**clip.config).eval()
        clip = Clip(**{name: getattr(clip, name) for name in Clip.__slots__} | {"model": model})
    clip = noisy(clip)
    export_hf(clip, tmp_path)
    exported = CLIPModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = exported(input_ids=torch.nn.functional.pad(TOKENS, (0, 6)), pixel_values=pixels)
        texts = normalize(clip.model.encode_text(torch.nn.functional.pad(TOKENS, (0, 6))), dim=-1)
        images = normalize(clip.model.encode_image(pixels), dim=-1)
    torch.testing.assert_close(found.text_embeds, texts, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.image_embeds, images, rtol=0, atol=1e-5)
    assert exported.logit_scale.item() == pytest.approx(clip.model.logit_scale.item())


def test_image_processor_has_the_settings_of_the_transform(tmp_path: Path) -> None:
    export_hf(make_clip(), tmp_path)
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    assert list(processor.image_mean) == [0.5] * 3
    assert dict(processor.crop_size) == {"height": 32, "width": 32}


def test_refuses_what_clip_model_cannot_express(tmp_path: Path) -> None:
    for clip in (make_clip(custom=True), make_clip(pool_type="first"), make_clip(proj_bias=True)):
        for export in (check_export_hf, lambda clip: export_hf(clip, tmp_path)):
            with pytest.raises(UsageError, match="cannot become a CLIPModel"):
                export(clip)
    assert not list(tmp_path.iterdir())
