"""The commands that list what has a name: models, protocols, gates, manifests."""

import sys
from typing import Annotated, Any

import typer

from dialog_gen.cli.options import LISTING
from dialog_gen.core.console import Json, print_result, say, say_json, say_table
from dialog_gen.core.help import command


def add_list_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    for function, example in (
        (models, "dialog-gen models\ndialog-gen models --check Qwen/Qwen2.5-VL-3B-Instruct"),
        (protocols, "dialog-gen protocols"),
        (gates, "dialog-gen gates --json"),
        (manifests, "dialog-gen manifests"),
    ):
        app.command(cls=command(example=example), rich_help_panel=LISTING)(function)


def models(
    check: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Check this model instead: a name, Hugging Face id or folder; loads no weights."
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """List the models that have a name, or check a model: its prompts, and the tokens of images."""
    from dialog_gen.models.registry import MODELS

    if check is not None:
        from dialog_gen.generation.model_report import model_report

        report = model_report(check)
        print_result(report.to_json(), str(report), json_output)
        return
    rows = [{"name": name, **entry.to_json()} for name, entry in MODELS.all().items()]
    if json_output or not sys.stdout.isatty():
        _print_table(rows, json_output)
        return
    # A terminal of 100 columns has no room for all of it.
    shown = {"name": "name", "gpu_memory_gb": "GPU GB", "protocol": "protocol", "description": "description"}
    say_table([*shown.values()], [["" if row[key] is None else row[key] for key in shown] for row in rows])
    say("\nSource, licence and image tokens of each: dialog-gen models --json")


def protocols(json_output: Json = False) -> None:
    """List the protocols that come with the package."""
    from dialog_gen.protocols.protocol import load_protocol, shipped_protocols

    loaded = [load_protocol(name) for name in shipped_protocols()]
    rows = [
        {
            "name": p.name,
            "turns": len(p.turns),
            "pairs": p.pairs,
            "fallback": p.fallback,
            "description": p.description,
        }
        for p in loaded
    ]
    _print_table(rows, json_output)


def gates(json_output: Json = False) -> None:
    """List the quality gates: what their scores mean, and the default limits beyond which a pair is marked."""
    from dialog_gen.gates.base import gates_in_order

    rows: list[dict[str, Any]] = []
    for name, gate in gates_in_order().items():
        settings = gate.settings_class()
        limits = {"limits": settings.limits_text(), "settings": settings.model_dump()}
        rows.append({"name": name, **limits, "description": gate.description})
    _print_table(rows, json_output)


def manifests(json_output: Json = False) -> None:
    """List the image sets that can be downloaded."""
    from dialog_gen.download.manifests import load_manifest, shipped_manifests

    loaded = [load_manifest(name) for name in shipped_manifests()]
    if json_output:
        say_json([{**m.model_dump(), "size_bytes": m.size_bytes or None} for m in loaded])
        return
    rows = [
        {
            "name": m.name,
            "images": ", ".join(f"{split} {rows:,}" for split, rows in m.rows.items()),
            "size": f"{m.size_bytes / 1e9:.1f} GB" if m.size_bytes else "",
            "licence": m.licence,
            "description": m.description,
        }
        for m in loaded
    ]
    _print_table(rows, json_output)


def _print_table(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        say_json(rows)
        return
    shown = (
        "name",
        "source",
        "turns",
        "pairs",
        "fallback",
        "images",
        "size",
        "image_tokens",
        "gpu_memory_gb",
        "protocol",
        "licence",
        "limits",
        "description",
    )
    columns = [key for key in shown if rows and key in rows[0]]
    say_table(columns, [["" if row[column] is None else row[column] for column in columns] for row in rows])
