# ruff: noqa: RUF001 - characters that look alike are the point.
"""The fast ids are those of open_clip's tokenizers, for any text."""

import html
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from dialog_gen.clip.text import word_ids
from dialog_gen.clip.text.tokens import TextEncoder
from dialog_gen.clip.text.word_ids import fast_ids

CLEAN = ("lower", "whitespace", "canonicalize")
TOKENIZERS = {clean: SimpleTokenizer(clean=clean) for clean in CLEAN}
ODD = [
    "",
    " ",
    "!",
    "!!! ! 0 00",
    "a dog's dogs' it'S we'll'd 'tis ''s",
    "<start_of_text> a <END_OF_TEXT> <end_of_text>s <start_of_text",
    "fish &amp; chips &amp;amp;lt; &lt;b&gt; &eacute; &#39; & &",
    "schÃ¶n â€œquotedâ€\x9d cafÃ©",
    "“curly” ‘quotes’ — dash … ﬁne Ａ ｆｕｌｌ",
    "tab\tline\nreturn\r\nvertical\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2003\u2028end",
    "\x00\x07\x1b[31mred\x1b[0m\x7f",
    "İstanbul ΣΑΣ ſharp K Kelvin straße ǅ",
    "😀👍🏽 👨‍👩‍👧 🇩🇪 ☃️ zero\u200bwidth\ufeff",
    "日本語 한국어 العربية हिन्दी ไทย",
    "e\u0301 a\u0308 \u0301",
    "x" * 400,
    "word " * 200,
    "#hash_tag snake_case CamelCase 3.14 1,000 50% a/b a-b http://x.y/z?q=1",
]
ALPHABET = "aAbBeEsStT0159 '\"!?.,-_<>/&;#\t\n\r\x1fÃ©â€œéÉßſK“’…—ＡﬁΣİ😀🏽\u200d日語한عह\u0301\xa0\u2028"
WORDS = [
    "dog",
    "Dogs",
    "it's",
    "they'll",
    "&amp;",
    "&lt;p&gt;",
    "Ã©",
    "caf\u00e9",
    "2024",
    "<end_of_text>",
    "🐶",
    "e.g.",
]


def odd_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        if number % 2:
            texts.append("".join(rng.choices(ALPHABET, k=rng.randint(0, 60))))
        else:
            texts.append(rng.choice(["", " ", "\n"]).join(rng.choices(WORDS, k=rng.randint(0, 100))))
    return [html.escape(text) if number % 7 == 0 else text for number, text in enumerate(texts)]


def open_clips(tokenizer: Any, texts: list[str], length: int) -> list[list[int]]:
    """The ids of open_clip's own call, without the zeros of the padding: each text ends with another token."""
    return [np.trim_zeros(row, "b").tolist() for row in tokenizer(texts, context_length=length).numpy()]


@pytest.mark.parametrize("clean", CLEAN)
@pytest.mark.parametrize("length", [8, 77])
def test_ids_are_open_clips(clean: str, length: int) -> None:
    texts = ODD + odd_texts(1500, seed=length)
    encode = fast_ids(SimpleTokenizer(clean=clean))
    assert encode is not None
    expected = open_clips(TOKENIZERS[clean], texts, length)
    assert encode(texts, length) == expected
    # The second time, all words are in the table.
    assert encode(texts, length) == expected


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80) | st.text(st.characters(max_codepoint=127), max_size=80))
def test_ids_of_any_text(text: str) -> None:
    for tokenizer in TOKENIZERS.values():
        encode = fast_ids(tokenizer)
        assert encode is not None
        assert encode([text], 77) == open_clips(tokenizer, [text], 77)


def test_a_full_table_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_ids, "_MOST_WORDS", 5)
    encode: Any = fast_ids(SimpleTokenizer())
    assert encode(ODD * 2, 77) == open_clips(TOKENIZERS["lower"], ODD * 2, 77)
    assert len(encode._words) <= 5


def test_additional_special_tokens_with_spaces() -> None:
    tokenizer = SimpleTokenizer(additional_special_tokens=["<a b>"])
    expected = open_clips(SimpleTokenizer(additional_special_tokens=["<a b>"]), ["x <a b> y"], 77)
    assert [row.tolist() for row in TextEncoder(tokenizer)(["x <a b> y"])[0]] == expected
    assert fast_ids(tokenizer) is None


def test_other_tokenizers_are_called(tmp_path: Path) -> None:
    assert fast_ids(SimpleTokenizer(reduction_mask="random")) is None
    assert fast_ids(hugging_face(tmp_path, pad="[PAD]", end=True, strip_sep_token=True)) is None


def hugging_face(folder: Path, *, pad: str, end: bool, **options: Any) -> open_clip.tokenizer.HFTokenizer:
    """A byte-level BPE without merges, so that every text has ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    frame = "<s> $A </s>" if end else "<s> $A"
    inner.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("<s>", 1), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token=pad)
    fast.save_pretrained(folder)
    return open_clip.tokenizer.HFTokenizer(str(folder), context_length=20, **options)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize(
    ("pad", "options"),
    [
        ("[PAD]", {}),
        ("</s>", {}),
        ("[PAD]", {"clean": "canonicalize"}),
        ("</s>", {"clean": "lower"}),
    ],
)
def test_ids_of_hugging_face(pad: str, end: bool, options: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = hugging_face(tmp_path, pad=pad, end=end, **options)
    assert fast_ids(tokenizer) is not None
    texts = ODD + odd_texts(500, seed=1)
    encoder = TextEncoder(tokenizer)
    rows, cut = encoder(texts)
    longer = tokenizer(texts, context_length=21)
    for row, whole, more, is_cut in zip(rows, tokenizer(texts), longer, cut, strict=True):
        assert [*row, *[encoder.pad_id] * (20 - len(row))] == whole.tolist()
        assert is_cut == (more[-1] != encoder.pad_id or (pad == "</s>" and more[-2] != encoder.pad_id))
        # One end token belongs to the text, although it is that of the padding.
        assert encoder.pad_id not in row[:-1]


@pytest.mark.parametrize("clean", CLEAN)
def test_flat_ids(clean: str) -> None:
    encoder = pickle.loads(pickle.dumps(TextEncoder(SimpleTokenizer(clean=clean))))
    texts = ODD + odd_texts(100, seed=3)
    ids, ends, cut = encoder.flat(texts)
    rows, truncated = encoder(texts)
    assert [row.tolist() for row in rows] == [row.tolist() for row in np.split(ids, ends[:-1])]
    assert cut.tolist() == truncated == [len(row) == 78 for row in open_clips(TOKENIZERS[clean], texts, 78)]
    assert [row.tolist() for row in rows] == open_clips(TOKENIZERS[clean], texts, 77)
    assert encoder([]) == ([], [])
