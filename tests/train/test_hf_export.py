"""The exported folder is read by transformers, sentence-transformers and open_clip, which must agree with us."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from helpers.loops import CONFIG, PREPROCESS, VOCABULARY, make_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transform import image_transform
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip, save_clip
from dialog_gen.clip.text.tokens import TextEncoder, save_tokenizer
from dialog_gen.clip.third_tower.checkpoint import new_third_tower
from dialog_gen.core.errors import UsageError
from dialog_train.cli import run
from dialog_train.hf_export import check_export_hf, export_hf

CONTEXT, CLIP_VOCABULARY = 24, 49408
TEXTS = [
    "a photo of a cat",
    "A Photo of TWO dogs",
    "  what is\tthe  colour\n of it? ",
    "Is it raining? no",
    "the dog's 12th café, naïve Ünïcode",
    "x",
    "a long text " * 20,
    "under_scores, #1 and 3.5 % (of \\ them)",
    "DON'T you'll I've 日本語 😀",
    "",
]


def clip_of(resize_mode: str = "shortest", tokenizer: Any = None, **config: Any) -> Clip:
    """A random CLIP with the vocabulary of CLIP's own tokenizer; norms and biases at 1 and 0 would hide a mix-up."""
    text = {"context_length": CONTEXT, "vocab_size": CLIP_VOCABULARY, **config.pop("text", {})}
    options: dict[str, Any] = text
    clip = make_clip(**options)
    if config:
        model = open_clip.CLIP(**{**clip.config, **config}).eval()
        clip = replace(clip, model=model, config={**clip.config, **config})
    with torch.no_grad():
        for parameter in clip.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    preprocess = {**PREPROCESS, "resize_mode": resize_mode}
    return replace(
        clip,
        tokenizer=tokenizer or SimpleTokenizer(context_length=CONTEXT),
        preprocess=image_transform(
            32, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_mode=resize_mode
        ),
        preprocess_config=preprocess,
    )


def photos() -> list[Image.Image]:
    """Smooth fields of colour with grain, with sides whose crop begins at a whole pixel."""
    random, found = np.random.default_rng(0), []
    for height, width in ((240, 360), (400, 300)):
        coarse = random.normal(size=(height // 20, width // 20, 3)).cumsum(0).cumsum(1)
        coarse = 255 * (coarse - coarse.min()) / np.ptp(coarse)
        smooth = np.asarray(Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC))
        grain = random.integers(-20, 20, (height, width, 3))
        found.append(Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)))
    return found


def image_vectors(clip: Clip) -> torch.Tensor:
    return clip.embed_images(torch.stack([clip.preprocess(photo) for photo in photos()]))


def near(found: Any, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=0, atol=tolerance)


END = CLIP_VOCABULARY - 1


@pytest.mark.parametrize("text", [{"pool_type": "argmax"}, {"pool_type": "eos", "eos_id": END}], ids=["argmax", "eos"])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_transformers_gives_our_vectors(tmp_path: Path, quick_gelu: bool, text: dict[str, Any]) -> None:
    config: dict[str, Any] = {"quick_gelu": True} if quick_gelu else {}
    clip = clip_of(text=text, **config)
    export_hf(clip, tmp_path)
    model = AutoModel.from_pretrained(tmp_path).eval()
    assert type(model) is CLIPModel
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is CLIPTokenizer
    # As the model card says: with Pillow's own resizing, as ours; the default one rounds some pixels otherwise.
    processor: Any = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(processor) is CLIPProcessor
    inputs = processor(text=TEXTS, images=photos(), return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        found = model(**inputs)
    near(found.text_embeds, clip.embed_texts(TEXTS))
    near(found.image_embeds, image_vectors(clip))
    assert model.logit_scale.item() == pytest.approx(clip.model.logit_scale.item())
    texts = clip.embed_texts(TEXTS)
    assert (texts @ texts.T)[~torch.eye(len(TEXTS), dtype=torch.bool)].max() < 0.999


def test_its_tokenizer_gives_open_clips_ids(tmp_path: Path) -> None:
    clip = clip_of()
    export_hf(clip, tmp_path)
    expected, _ = TextEncoder(SimpleTokenizer(context_length=CONTEXT))(TEXTS)
    tokenizers = {
        "AutoTokenizer": AutoTokenizer.from_pretrained(tmp_path),
        "CLIPProcessor": CLIPProcessor.from_pretrained(tmp_path).tokenizer,
        "vocab.json and merges.txt": CLIPTokenizer(
            vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"), model_max_length=CONTEXT
        ),
    }
    for name, tokenizer in tokenizers.items():
        assert tokenizer(TEXTS, truncation=True)["input_ids"] == [ids.tolist() for ids in expected], name
        assert tokenizer.model_max_length == CONTEXT
    through_open_clip = HFTokenizer(str(tmp_path), context_length=CONTEXT)
    # open_clip cleans texts itself, as it does before its own tokenizer.
    texts = [*TEXTS, "“curly” quotes", "salt &amp; pepper"]
    expected, _ = TextEncoder(SimpleTokenizer(context_length=CONTEXT))(texts)
    found = through_open_clip(texts).tolist()
    assert [row[: len(ids)] for row, ids in zip(found, expected, strict=True)] == [ids.tolist() for ids in expected]
    special = json.loads((tmp_path / "special_tokens_map.json").read_text())
    assert (special["bos_token"], special["eos_token"]) == ("<|startoftext|>", "<|endoftext|>")


def test_sentence_transformers_gives_our_vectors(tmp_path: Path) -> None:
    clip = clip_of()
    export_hf(clip, tmp_path)
    model = SentenceTransformer(str(tmp_path), device="cpu")
    texts = model.encode(TEXTS, convert_to_tensor=True, normalize_embeddings=True)
    near(texts, clip.embed_texts(TEXTS))
    images = model.encode(photos(), convert_to_tensor=True, normalize_embeddings=True)
    near(images, image_vectors(clip), 1e-3)
    model = SentenceTransformer(str(tmp_path), device="cpu", processor_kwargs={"backend": "pil"})
    near(model.encode(photos(), convert_to_tensor=True, normalize_embeddings=True), image_vectors(clip))


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_open_clip_gives_our_vectors(tmp_path: Path, mode: str) -> None:
    """From the checkpoint folder, which needs no export."""
    clip = clip_of(mode)
    save_clip(clip, tmp_path)
    place = f"local-dir:{tmp_path}"
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    model.eval()
    with torch.no_grad():
        near(model.encode_text(open_clip.get_tokenizer(place)(TEXTS), normalize=True), clip.embed_texts(TEXTS))
        pixels = torch.stack([preprocess(photo) for photo in photos()])  # type: ignore[reportCallIssue]
        near(model.encode_image(pixels, normalize=True), image_vectors(clip))


def test_exports_a_model_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    clip = load_clip("shapes-clip")
    export_hf(clip, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["a red circle", "Is there a star? yes", "what colour is it?"]
    with torch.no_grad():
        found = CLIPModel.from_pretrained(tmp_path).eval()(
            **tokenizer(texts, padding=True, return_tensors="pt"), pixel_values=torch.zeros(1, 3, 64, 64)
        )
    near(found.text_embeds, clip.embed_texts(texts))


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_image_processor_has_the_settings_of_the_transform(tmp_path: Path, mode: str) -> None:
    clip = clip_of(mode)
    export_hf(clip, tmp_path)
    expected = torch.stack([clip.preprocess(photo) for photo in photos()])
    exact = CLIPImageProcessorPil.from_pretrained(tmp_path)(images=photos(), return_tensors="pt")["pixel_values"]
    near(exact, expected, 1e-6)
    near(
        CLIPImageProcessor.from_pretrained(tmp_path)(images=photos(), return_tensors="pt")["pixel_values"],
        expected,
        2.1 / 127.5,  # two grey levels
    )


def test_refuses_what_clip_model_cannot_express(tmp_path: Path) -> None:
    def coca() -> Clip:
        config: dict[str, Any] = {**CONFIG}
        config["text_cfg"] = {**config["text_cfg"], "vocab_size": VOCABULARY, "embed_cls": True}
        decoder: Any = {"context_length": 12, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 1}
        config["vision_cfg"] = {**config["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2}
        model = open_clip.CoCa(**config, multimodal_cfg=decoder).eval()
        return replace(clip_of(), model=model, config=config)

    other_cleaning = SimpleTokenizer(context_length=CONTEXT, clean="canonicalize")
    masking = SimpleTokenizer(context_length=CONTEXT, reduction_mask="random")
    wide = clip_of()
    wide = replace(wide, preprocess_config={**wide.preprocess_config, "size": [32, 64]})
    pooling = {**CONFIG["vision_cfg"], "pool_type": "avg"}
    attending = {**CONFIG["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2}
    third_tower = new_third_tower(clip_of(), beta=0.5)
    refused: dict[str, Clip] = {
        f"it is a {third_tower.kind}": third_tower,
        "only a native CLIP": make_clip(custom=True),
        "pools by 'first'": make_clip(pool_type="first"),
        "they differ in": make_clip(proj_bias=True),
        "towers of CoCa": coca(),
        r"which pool by attention": clip_of(vision_cfg=attending),
        "image tower has settings that CLIPModel lacks": clip_of(vision_cfg=pooling),
        "text tower has settings that CLIPModel lacks": clip_of(text={"no_causal_mask": True}),
        'no resize_mode = "longest"': clip_of("longest"),
        "only square ones": wide,
        "another cleaning": clip_of(tokenizer=other_cleaning),
        "leaves out words": clip_of(tokenizer=masking),
        "of an unknown kind": clip_of(tokenizer=object()),
    }
    for message, clip in refused.items():
        exports: tuple[Callable[[Clip], None], ...] = (check_export_hf, lambda clip: export_hf(clip, tmp_path / "hf"))
        for export in exports:
            with pytest.raises(UsageError, match="cannot become a CLIPModel") as caught:
                export(clip)
            assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_exports_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = clip_of()
    save_clip(clip, tmp_path / "run/model")
    (tmp_path / "run/train.json").write_text("{}")
    assert run(["export", str(tmp_path / "run"), "--out", str(tmp_path / "hf")]) == 0
    printed = capsys.readouterr()
    assert "a CLIPModel with its processor and tokenizer" in printed.out
    assert not printed.err, "bars of transformers"
    model = AutoModel.from_pretrained(tmp_path / "hf").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "hf")(TEXTS, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        near(normalize(model.get_text_features(**tokens).pooler_output, dim=-1), clip.embed_texts(TEXTS))
    for given, out, said in (("run", "hf", "exists: choose another folder"), (".", "other", "is no checkpoint: give")):
        assert run(["export", str(tmp_path / given), "--out", str(tmp_path / out)]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_saved_tokenizer_keeps_no_truncation_of_a_call(tmp_path: Path) -> None:
    clip = clip_of()
    export_hf(clip, tmp_path / "hf")
    wrapped = HFTokenizer(str(tmp_path / "hf"), context_length=CONTEXT)
    TextEncoder(wrapped)(TEXTS)  # asks for one token more than the context
    save_tokenizer(wrapped, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/tokenizer.json").read_text())
    assert (saved["truncation"], saved["padding"]) == (None, None)
    long, short = AutoTokenizer.from_pretrained(tmp_path / "saved")(["a " * 60, "a"])["input_ids"]
    assert (len(long), len(short)) == (62, 3)
