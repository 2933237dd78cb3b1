"""The help of the command lines: whole descriptions, options in groups, and an example for each command."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.visible import visible, visible_lines

_OTHERS = "Options"
_UNLIMITED = 1 << 20
_LEFT_OUT = "dialog_gen.left_out"


def new_app(kind: str = "command") -> typer.Typer:
    """A command line, or a group of commands; `kind` names its commands in the error for an unknown one."""
    return typer.Typer(
        cls=_group_of(kind),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Its own layout needs rich, which would take what is in brackets for markup.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def command(
    *,
    example: str = "",
    groups: Mapping[str, Sequence[str]] | None = None,
    texts: Mapping[str, Callable[[], str]] | None = None,
    reads_config: bool = False,
) -> type[TyperCommand]:
    """A class for `app.command(cls=...)`.

    `example` is a command line, or several, shown at the end. `groups` maps a heading to the names of the parameters
    that are shown under it; the others come first. `texts` maps the name of a parameter to a function that returns its
    help text, for texts that list the content of a registry: the registry's modules are imported only when somebody
    asks for help. A command that `reads_config` takes defaults from a file: for each flag `--x` that may be absent,
    `--no-x` leaves out what the file says of it (see `left_out`), and switches a switch off.
    """
    heading_of = {name: heading for heading, names in (groups or {}).items() for name in names}

    class Command(TyperCommand):
        def make_parser(self, ctx: Any) -> Any:
            parser: Any = super().make_parser(ctx)
            for parameter in self.params if reads_config else ():
                if isinstance(parameter, TyperOption) and not parameter.required and not parameter.is_eager:
                    _add_off_switch(parser, parameter)
            if reads_config:
                parser.parse_args = _later_wins(parser.parse_args)
            return parser

        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if reads_config:
                ctx.meta[_LEFT_OUT] = self.make_parser(ctx).parse_args(list(args))[0].get(_LEFT_OUT, [])
            return super().parse_args(ctx, args)

        def format_help(self, ctx: Any, formatter: Any) -> None:
            for parameter in self.params:
                if parameter.name in (texts or {}) and isinstance(parameter, TyperOption):
                    parameter.help = visible((texts or {})[parameter.name]())
            super().format_help(ctx, formatter)

        def format_options(self, ctx: Any, formatter: Any) -> None:
            shown: dict[str, list[tuple[str, str]]] = {"Arguments": [], _OTHERS: []}
            shown |= {heading: [] for heading in groups or {}}
            for parameter in self.get_params(ctx):
                if (record := parameter.get_help_record(ctx)) is None:
                    continue
                record = (_plain(record[0]), record[1])
                other = "Arguments" if parameter.param_type_name == "argument" else _OTHERS
                shown[heading_of.get(parameter.name or "", other)].append(record)
            for heading, records in shown.items():
                _section(formatter, heading, records)

        def format_epilog(self, ctx: Any, formatter: Any) -> None:
            if example:
                with formatter.section("Example" if "\n" not in example else "Examples"):
                    for line in example.splitlines():
                        formatter.write(f"{'':{formatter.current_indent}}{line}\n")

    return Command


def left_out(context: typer.Context) -> Collection[str]:
    """The parameters of a command that `reads_config` whose settings in the file do not count, because of `--no-x`."""
    return context.meta.get(_LEFT_OUT, ())


def _add_off_switch(parser: Any, parameter: TyperOption) -> None:
    flags = [f"--no-{flag[2:]}" for flag in parameter.opts if flag.startswith("--")]
    if parameter.is_bool_flag:
        parser.add_option(parameter, flags, parameter.name, action="store_const", const=False)
    else:
        parser.add_option(_Off(parameter.name), flags, _LEFT_OUT, action="append_const", const=parameter.name)


class _Off(NamedTuple):
    """Stands for `--no-x` in the order of what was given."""

    name: str


def _later_wins(parse: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    """Takes the value of `--x V` away if `--no-x` follows it."""

    def parse_args(args: list[str]) -> Any:
        found, rest, order = parse(args)
        last = {one.name: one for one in order}
        for name in found.get(_LEFT_OUT, ()):
            if isinstance(last[name], _Off):
                found.pop(name, None)
        return found, rest, order

    return parse_args


def _plain(flag: str) -> str:
    """A flag with its kind of value in words: "--limit <integer>" of "--limit <int range>"."""
    for kind, word in (("int", "integer"), ("float", "number"), ("str", "text")):
        flag = flag.replace(f"<{kind}>", f"<{word}>").replace(f"<{kind} range>", f"<{word}>")
    return flag


def _section(formatter: Any, heading: str, records: list[tuple[str, str]]) -> None:
    if records:
        with formatter.section(heading):
            formatter.write_dl(records)


def _group_of(kind: str) -> type[TyperGroup]:
    class Group(TyperGroup):
        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            """Raises UsageError for an unknown command."""
            if args and not args[0].startswith("-") and args[0] not in self.commands:
                raise UsageError(f"unknown {kind} {args[0]!r}; {did_you_mean(args[0], self.commands)}.")
            return super().resolve_command(ctx, args)

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            shown: dict[str, list[tuple[str, str]]] = {}
            for name, one in self.commands.items():
                heading = getattr(one, "rich_help_panel", None)
                text = visible_lines(one.get_short_help_str(_UNLIMITED))
                shown.setdefault(heading if isinstance(heading, str) else "Commands", []).append((name, text))
            for heading, records in shown.items():
                _section(formatter, heading, records)

    return Group
