"""The architectures of the embedded generators: LLaVA-1.5's and BLIP-2's, with about two million parameters each."""

from typing import Any, cast

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, LLAVA_CHAT_TEMPLATE
from dialog_gen.shapes.render import IMAGE_SIZE_PX

WIDTH = 128
# One patch for each quadrant of the scene.
_PATCH_PX = IMAGE_SIZE_PX // 2


def build_llava(tokenizer: PreTrainedTokenizerFast) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA-1.5 of about two million parameters, with random weights, and its processor."""
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE_PX,
            "patch_size": _PATCH_PX,
            "projection_dim": WIDTH,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            # Models this small learn slowly with the usual 0.02.
            "initializer_range": 0.08,
            **_token_ids(tokenizer),
        },
        image_token_index=cast("int", tokenizer.convert_tokens_to_ids("<image>")),
        image_seq_length=(IMAGE_SIZE_PX // _PATCH_PX) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE_PX}, crop_size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}
        ),
        tokenizer=tokenizer,
        patch_size=_PATCH_PX,
        vision_feature_select_strategy="default",
        # CLIP's class token, which the "default" strategy drops again.
        num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT_TEMPLATE,
    )
    return LlavaForConditionalGeneration(config), processor


def build_blip2(tokenizer: PreTrainedTokenizerFast) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    """A BLIP-2 with an OPT, of about two million parameters, with random weights, and its processor."""
    queries = 16
    config = Blip2Config(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE_PX,
            "patch_size": _PATCH_PX,
            "initializer_range": 0.02,
        },
        qformer_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "encoder_hidden_size": WIDTH,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        text_config={
            "model_type": "opt",
            "hidden_size": WIDTH,
            "word_embed_proj_dim": WIDTH,
            "ffn_dim": 3 * WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "dropout": 0.0,
            "init_std": 0.05,
            **_token_ids(tokenizer),
        },
        num_query_tokens=queries,
        image_token_index=cast("int", tokenizer.convert_tokens_to_ids("<image>")),
    )
    processor = Blip2Processor(
        image_processor=BlipImageProcessor(size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}),
        tokenizer=tokenizer,
        num_query_tokens=queries,
        chat_template=BLIP2_CHAT_TEMPLATE,
    )
    model = Blip2ForConditionalGeneration(config)
    # The queries are zeros by default, and equal queries would stay equal during training.
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    return model, processor


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
