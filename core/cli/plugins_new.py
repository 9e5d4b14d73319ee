"""`core plugins new KIND NAME`: write a complete package, with tests and CI, for any kind of plugin.

The files come from `core/cli/templates`: those of `common`, then those of the kind over them. A kind's folder holds a
`template.toml` beside its files; `Template` says what stands in it. Same arguments, same files.
"""

from __future__ import annotations

import difflib
import re
import runpy
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from core.cli.output import json_option, print_json
from core.interfaces.errors import ConfigError
from core.interfaces.kinds import KINDS

TEMPLATES = Path(__file__).parent / "templates"
MAX_NAME = 30
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")
_ARCHITECTURE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Spellings that cutting off a plural's ending does not give.
_ALIASES = {"quantization": "quant", "policy": "schedule_policies", "schedule_policy": "schedule_policies"}
_SUFFIX = ".jinja"


@dataclass(frozen=True, slots=True)
class Template:
    """`template.toml` of a kind. Texts are rendered like files.

    title: what the package is, with its article ("an attention backend"). summary: one line for its manifest.
    target: "module:attribute" of the entry point, below the package. entry_name: of the entry point.
    capabilities: lines of TOML. requires: lines of TOML. config: "module:Model" of the settings, or "".
    architecture: "optional", "required" or "no", whether the kind takes --architecture. files: what each module is,
    for the README. use: commands that put the plugin to use. run: modules that write further files into the package.
    """

    title: str
    summary: str
    target: str
    entry_name: str = "{{ snake }}"
    capabilities: str = ""
    requires: str = ""
    config: str = ""
    architecture: str = "no"
    files: Mapping[str, str] = field(default_factory=dict)
    use: Sequence[str] = ()
    run: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class NewPackage:
    """A package as it will be written. files: path below the package's folder -> text."""

    kind: str
    name: str
    entry_name: str
    distribution: str
    package: str
    files: Mapping[str, str]
    use: tuple[str, ...]
    run: tuple[str, ...]

    def write(self, folder: Path) -> list[str]:
        """Write everything below `folder`, which must not hold anything yet; the paths, sorted.
        Raises ConfigError if it does, or cannot be written."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder} exists already, and nothing is overwritten",
                field="path",
                value=str(folder),
                hint="choose another NAME or --path, or remove the folder first",
            )
        try:
            for path, text in self.files.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8", newline="\n")
        except OSError as exc:
            raise ConfigError(
                f"{folder} cannot be written: {exc}",
                field="path",
                value=str(folder),
                hint="choose a folder that you may write to with --path",
            ) from exc
        for module in self.run:
            runpy.run_path(str(folder / "src" / self.package / f"{module}.py"), run_name="__main__")
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def next_steps(self, folder: Path) -> list[str]:
        """Commands from here to a plugin in use."""
        return [
            f"cd {shlex.quote(str(folder))}",
            'pip install -e ".[test]"',
            "pytest",
            "core plugins validate .",
            *self.use,
        ]


def find_kind(given: str) -> str:
    """The kind meant by `given`: its name, its singular, - for _. Raises ConfigError with the kinds and a close one."""
    word = given.strip().lower().replace("-", "_")
    spellings = {singular(kind): kind for kind in KINDS} | {kind: kind for kind in KINDS} | _ALIASES
    if word in spellings:
        return spellings[word]
    close = difflib.get_close_matches(word, spellings, n=1)
    raise ConfigError(
        f"kind {given!r} is unknown",
        field="kind",
        value=given,
        hint=(f"did you mean {spellings[close[0]]!r}? " if close else "") + f"Kinds: {', '.join(KINDS)}",
    )


def singular(kind: str) -> str:
    """ "schedule_policies" -> "schedule_policy", "models" -> "model"; names without a plural as they are."""
    if kind.endswith("ies"):
        return kind[:-3] + "y"
    return kind[:-1] if kind.endswith("s") else kind


def check_name(name: str) -> None:
    """Raises ConfigError unless `name` can be part of a distribution's, a module's and an entry point's name."""
    if _NAME.fullmatch(name) and not name.startswith(("plugin-", "plugin_")) and len(name) <= MAX_NAME:
        return
    way = re.sub(r"[^a-z0-9]+", "-", re.sub(r"^plugin[-_]", "", name.lower())).strip("-")[:MAX_NAME].rstrip("-")
    if not _NAME.fullmatch(way):
        way = "my-plugin"
    raise ConfigError(
        f"name is {name!r}; it must be at most {MAX_NAME} lower-case letters and digits, words joined by single - or "
        "_, beginning with a letter and not with 'plugin-', which is put before it",
        field="name",
        value=name,
        hint=f"for example {way!r}, which makes the distribution 'plugin-{way}'",
    )


def render(kind: str, name: str, architecture: str | None = None) -> NewPackage:
    """The package `plugin-NAME` of a kind, without writing it. Raises ConfigError for a bad name or architecture."""
    import jinja2

    check_name(name)
    info = KINDS[kind]
    raw = tomllib.loads((TEMPLATES / kind / "template.toml").read_text(encoding="utf-8"))
    template = Template(**raw)
    snake = name.replace("-", "_")
    camel = "".join(word[:1].upper() + word[1:] for word in snake.split("_"))
    words: dict[str, Any] = {
        "kind": kind,
        "group": info.group,
        "api": info.api,
        "stage": info.stage,
        "name": name,
        "dashed": name.replace("_", "-"),
        "snake": snake,
        "camel": camel,
        "distribution": f"plugin-{name.replace('_', '-')}",
        "package": f"plugin_{snake}",
        "architecture": _architecture(kind, template, architecture, f"{camel}ForCausalLM"),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the output is source code
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def text(source: str) -> str:
        return environment.from_string(source).render(words)

    words["entry_name"] = text(template.entry_name)
    for key in ("title", "summary", "target", "config", "capabilities", "requires"):
        words[key] = text(getattr(template, key)).strip("\n")
    words["files"] = {text(path): text(what) for path, what in template.files.items()}
    words["use"] = [text(command) for command in template.use]
    sources: dict[str, str] = {}
    for folder in ("common", kind):
        for path in sorted((TEMPLATES / folder).rglob(f"*{_SUFFIX}")):
            target = path.relative_to(TEMPLATES / folder).as_posix().removesuffix(_SUFFIX)
            sources[target.replace("__package__", words["package"])] = path.relative_to(TEMPLATES).as_posix()
    files = {target: environment.get_template(source).render(words) for target, source in sorted(sources.items())}
    return NewPackage(
        kind,
        name,
        words["entry_name"],
        words["distribution"],
        words["package"],
        files,
        tuple(words["use"]),
        tuple(template.run),
    )


def _architecture(kind: str, template: Template, given: str | None, default: str) -> str:
    if given is not None and template.architecture == "no":
        raise ConfigError(
            f"architecture is {given!r}, but plugins of kind {kind} have none",
            field="architecture",
            value=given,
            hint="leave --architecture out",
        )
    if given is None and template.architecture == "required":
        raise ConfigError(
            f"architecture is missing: a package of kind {kind} needs to know what its checkpoint is of",
            field="architecture",
            hint="say --architecture NAME, a Hugging Face architecture name; `core plugins list --kind models` shows "
            "what is installed",
        )
    if given is not None and not _ARCHITECTURE.fullmatch(given):
        raise ConfigError(
            f"architecture is {given!r}; it must be a class name as in config.json",
            field="architecture",
            value=given,
            hint=f"for example {default!r}",
        )
    return given or default


def check_free(package: NewPackage) -> None:
    """Raises ConfigError if what is installed has a plugin of that kind and name, or a command of that name."""
    from core.cli.commands import COMMANDS
    from core.registry.catalog import Catalog
    from core.registry.records import canonical

    owners = {
        record.distribution
        for record in Catalog.scan(groups=[KINDS[package.kind].group]).of_kind(package.kind)
        if record.name == package.entry_name and canonical(record.distribution) != canonical(package.distribution)
    }
    if package.kind == "commands" and package.entry_name in {spec.name for spec in COMMANDS}:
        owners.add("core")
    if owners:
        raise ConfigError(
            f"{package.kind} {package.entry_name!r} is taken by {', '.join(sorted(owners))}, which is installed here",
            field="name",
            value=package.name,
            hint="choose another NAME: two plugins of one kind and name cannot be used side by side",
        )


def _new(kind: str, name: str, path: Path, architecture: str | None, as_json: bool) -> None:
    package = render(find_kind(kind), name, architecture)
    check_free(package)
    folder = path / package.distribution
    files = package.write(folder)
    steps = package.next_steps(folder)
    if as_json:
        print_json(
            {
                "kind": package.kind,
                "name": package.entry_name,
                "distribution": package.distribution,
                "package": package.package,
                "folder": str(folder),
                "files": files,
                "next_steps": steps,
            }
        )
        return
    click.echo(f"{package.distribution}: {KINDS[package.kind].group} = {package.entry_name}, {len(files)} files")
    for file in files:
        click.echo(f"  {folder / file}")
    click.echo("\nNext steps:")
    for step in steps:
        click.echo(f"  {step}")


command = click.Command(
    "new",
    callback=_new,
    params=[
        click.Argument(["kind"]),
        click.Argument(["name"]),
        click.Option(
            ["--path"],
            type=click.Path(file_okay=False, path_type=Path),
            default=Path(),
            help="Folder in which the folder plugin-NAME is made. Default: here.",
        ),
        click.Option(["--architecture"], help="Hugging Face architecture name. Kinds models and checkpoints only."),
        json_option(),
    ],
    help="Write a complete package plugin-NAME with an implementation that works, its tests and CI.\n\n"
    f"KIND: {', '.join(singular(kind) for kind in KINDS)}.",
)
