"""The commands that list what has a name: models, protocols, gates, manifests."""

import json
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from dialog_gen.core.console import Json


def add_list_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the command line."""
    for command in (models, protocols, gates, manifests):
        app.command()(command)


def models(json_output: Json = False) -> None:
    """List the models that have a name."""
    from dialog_gen.models.registry import MODELS

    _print_table([{"name": name, **entry.to_json()} for name, entry in MODELS.all().items()], json_output)


def protocols(json_output: Json = False) -> None:
    """List the protocols that come with the package."""
    from dialog_gen.protocols.protocol import load_protocol, shipped_protocols

    loaded = [load_protocol(name) for name in shipped_protocols()]
    rows = [{"name": p.name, "turns": len(p.turns), "pairs": p.pairs, "description": p.description} for p in loaded]
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
        typer.echo(json.dumps([{**m.model_dump(), "size_bytes": m.size_bytes or None} for m in loaded], indent=2))
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
        typer.echo(json.dumps(rows, indent=2))
        return
    shown = ("name", "source", "turns", "pairs", "images", "size", "protocol", "licence", "limits", "description")
    columns = [key for key in shown if rows and key in rows[0]]
    # A table that is piped into a file or a program must not be truncated.
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console(width=None if sys.stdout.isatty() else 1000, soft_wrap=False).print(table)
