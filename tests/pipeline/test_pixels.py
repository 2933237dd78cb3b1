"""The pixels that a model gets of an image."""

from pathlib import Path
from typing import Any

import pytest
from helpers.architectures import random_model
from PIL import Image

import dialog_gen
from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import ENGINES, EngineOptions
from dialog_gen.models.context import needed
from dialog_gen.models.registry import remote_model, resolve_model
from dialog_gen.protocols.protocol import load_protocol
from dialog_gen.sources.pixels import PixelLimits


@pytest.mark.parametrize(
    ("size", "least", "most", "fitted"),
    [
        ((100, 50), None, None, (100, 50)),
        ((100, 50), 5000, 5000, (100, 50)),
        ((400, 100), None, 10000, (200, 50)),
        ((20, 10), 800, None, (40, 20)),
        ((10000, 1), None, 100, (1000, 1)),
    ],
)
def test_images_are_brought_within_the_limits(
    size: tuple[int, int], least: int | None, most: int | None, fitted: tuple[int, int]
) -> None:
    assert PixelLimits(least, most).fit(Image.new("RGB", size)).size == fitted


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(random_model("qwen2.5-vl", tmp_path_factory.mktemp("models") / "qwen"))


def test_a_run_records_its_pixels_and_their_bound_decides_the_context(qwen: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (64, 64)).save(images / "a.png")

    def config(**given: Any) -> dict[str, Any]:
        run = {"model": qwen, "images": images, "out": tmp_path / "out", "engine": "transformers", "dry_run": True}
        return dialog_gen.generate(**run, **given).summary["config"]

    # The processor of the folder allows fewer pixels than the default for its architecture.
    assert config()["max_pixels"] == 112 * 112
    assert config(max_pixels=100352)["max_pixels"] == 100352
    assert config(min_pixels=3136)["min_pixels"] == 3136
    protocol, model = load_protocol("llava-3qa"), resolve_model(qwen)
    small, large = (needed(model, protocol, 64, PixelLimits(most=tokens * 28 * 28)).image or 0 for tokens in (64, 640))
    assert 40 <= small <= 64 + 60
    assert 600 <= large <= 640 + 60


def test_a_server_has_no_pixel_limits() -> None:
    options = EngineOptions(endpoints=("http://localhost:1/v1",), max_pixels=1000)
    with pytest.raises(UsageError, match=r"--max-pixels 1000: the engine openai sends .* --image-max-side"):
        ENGINES.get("openai").check(remote_model("any"), options)


def test_the_least_is_not_more_than_the_most(qwen: str) -> None:
    with pytest.raises(UsageError, match="--min-pixels 9 is more than --max-pixels 4"):
        ENGINES.get("transformers").check(resolve_model(qwen), EngineOptions(min_pixels=9, max_pixels=4))
