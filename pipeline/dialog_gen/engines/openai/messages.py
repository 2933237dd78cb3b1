"""A request as a server gets it: OpenAI's chat format, with the images as data URLs in their message."""

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import Image

from dialog_gen.engines.base import EngineOptions, Request
from dialog_gen.protocols.protocol import Sampling, image_place
from dialog_gen.sources.images import is_plain

JPEG_QUALITY = 90
# Larger files are encoded again: servers limit the size of a request.
_MAX_STORED_BYTES = 2 << 20
_STORED = {"JPEG": "jpeg", "PNG": "png"}


def chat_body(
    request: Request, model: str, sampling: Sampling, options: EngineOptions, *, limit_name: str
) -> dict[str, Any]:
    """The body of a request for `/chat/completions`.

    `limit_name` is "max_tokens" or "max_completion_tokens". May take some milliseconds for an image.
    """
    content: list[Any] = [[{"type": "text", "text": message.text}] for message in request.messages]
    encoded = request.encoded or (b"",) * len(request.images)
    urls = (
        image_url(image, data, max_side=options.image_max_side, kind=options.image_format)
        for image, data in zip(request.images, encoded, strict=True)
    )
    content[image_place(request.messages)][:0] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {
        "model": model,
        # Answers and system prompts are plain text: not all servers accept parts there.
        "messages": [
            {"role": message.role, "content": parts if message.role == "user" else message.text}
            for message, parts in zip(request.messages, content, strict=True)
        ],
        **sampling_body(request.sampling or sampling, limit_name=limit_name),
        "seed": request.seed,
        **({"logprobs": True} if options.logprobs else {}),
        **({"response_format": _response_format(request.schema)} if request.schema else {}),
    }


def _response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "pairs", "strict": True, "schema": schema}}


def sampling_body(sampling: Sampling, *, limit_name: str) -> dict[str, Any]:
    """The decoding settings of a request. Those that change nothing are left out, since some models refuse them.

    `top_k` and `repetition_penalty` are no part of OpenAI's API, but vLLM's and other servers know them.
    """
    others = sampling.model_dump(
        mode="json", include={"top_p", "top_k", "repetition_penalty", "stop"}, exclude_defaults=True
    )
    return {"temperature": sampling.temperature, **others, limit_name: sampling.max_tokens}


def image_url(image: Image.Image, encoded: bytes, *, max_side: int, kind: str) -> str:
    """The image as a data URL, with at most `max_side` pixels a side.

    A stored JPEG or PNG is sent as it is, if every decoder shows it as this package does and it is small enough;
    otherwise the pixels are encoded as `kind`, "jpeg" (lossy) or "png".
    """
    if stored := _stored_kind(image, encoded, max_side):
        return _data_url(stored, encoded)
    if max(image.size) > max_side:
        image = image.copy()
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, kind, **({"quality": JPEG_QUALITY} if kind == "jpeg" else {}))
    return _data_url(kind, buffer.getvalue())


def _stored_kind(image: Image.Image, encoded: bytes, max_side: int) -> str | None:
    if not encoded or len(encoded) > _MAX_STORED_BYTES or max(image.size) > max_side or not is_plain(encoded):
        return None
    with Image.open(BytesIO(encoded)) as stored:
        # Servers show transparent parts in different colours.
        is_opaque = stored.mode in ("RGB", "L") and not stored.has_transparency_data
        return _STORED.get(stored.format or "") if is_opaque else None


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
