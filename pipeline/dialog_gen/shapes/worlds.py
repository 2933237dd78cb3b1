"""The versions of the embedded world, by name: what their files, downloads, truth and training are made from."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar, get_args

from PIL import Image

from dialog_gen.shapes import choices, language, render, scenes
from dialog_gen.shapes.questions import Question, QuestionKind
from dialog_gen.shapes.second import captions as captions_2
from dialog_gen.shapes.second import choices as choices_2
from dialog_gen.shapes.second import questions as questions_2
from dialog_gen.shapes.second import render as render_2
from dialog_gen.shapes.second import scenes as scenes_2


class AnyScene(Protocol):
    """A scene graph of some world."""

    def to_json(self) -> dict[str, Any]:
        """The scene as JSON values; `World.scene_from_json` reads it back."""
        ...


S = TypeVar("S", bound=AnyScene)


@dataclass(frozen=True, slots=True, kw_only=True)
class World(Generic[S]):
    """A version of the embedded world, with scenes of type S. Its parts are functions of the modules that it names."""

    name: str
    splits: tuple[str, ...]
    """The first is the default."""
    image_size_px: int
    draw_scene: Callable[[Any, int, int], S]
    """Split, seed and index -> scene."""
    scene_from_json: Callable[[dict[str, Any]], S]
    render: Callable[[S], Image.Image]
    render_png: Callable[[S], bytes]
    web_caption: Callable[[S, random.Random], str]
    retrieval_captions: Callable[[S, random.Random, int], list[str]]
    negated_captions: Callable[[S, random.Random, int], list[str]] | None
    ask: Callable[[S, random.Random, int], list[Question]]
    judge: Callable[[S, str, str], bool]
    question_kind: Callable[[str], str]
    question_kinds: dict[str, QuestionKind[S]]
    answer_groups: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]
    class_of: Callable[[S], str | None]
    class_templates: tuple[str, ...]
    description: Callable[[S, random.Random], str]
    """A long text about a scene, which says all there is to say."""
    choice_files: Callable[[choices.Scenes], Iterator[tuple[str, Iterator[str] | bytes]]]
    """Scenes of a split -> name of each file of choices, and its lines or the bytes of an image."""

    @property
    def answers(self) -> tuple[str, ...]:
        """All answers to questions."""
        return tuple(answer for group in self.answer_groups for answer in group)


FIRST: Final[World[scenes.Scene]] = World(
    name="shapes",
    splits=get_args(scenes.Split),
    image_size_px=render.IMAGE_SIZE_PX,
    draw_scene=scenes.draw_scene,
    scene_from_json=scenes.Scene.from_json,
    render=render.render,
    render_png=render.render_png,
    web_caption=language.web_caption,
    retrieval_captions=language.retrieval_captions,
    negated_captions=None,
    ask=language.ask,
    judge=language.judge,
    question_kind=language.question_kind,
    question_kinds=language.QUESTION_KINDS,
    answer_groups=language.ANSWER_GROUPS,
    classes=language.CLASSES,
    class_of=language.class_of,
    class_templates=language.CLASS_TEMPLATES,
    description=language.description,
    choice_files=choices.choice_files,
)
SECOND: Final[World[scenes_2.Scene]] = World(
    name="shapes-2",
    splits=get_args(scenes_2.Split),
    image_size_px=render_2.IMAGE_SIZE_PX,
    draw_scene=scenes_2.draw_scene,
    scene_from_json=scenes_2.Scene.from_json,
    render=render_2.render,
    render_png=render_2.render_png,
    web_caption=captions_2.web_caption,
    retrieval_captions=captions_2.retrieval_captions,
    negated_captions=captions_2.negated_captions,
    ask=questions_2.ask,
    judge=questions_2.judge,
    question_kind=questions_2.question_kind,
    question_kinds=questions_2.QUESTION_KINDS,
    answer_groups=questions_2.ANSWER_GROUPS,
    classes=captions_2.CLASSES,
    class_of=captions_2.class_of,
    class_templates=captions_2.CLASS_TEMPLATES,
    description=captions_2.description,
    choice_files=choices_2.choice_files,
)
WORLDS: Final[dict[str, World[Any]]] = {world.name: world for world in (FIRST, SECOND)}


def world_of(scene: AnyScene) -> World[Any]:
    """The world that a scene is of."""
    return FIRST if isinstance(scene, scenes.Scene) else SECOND
