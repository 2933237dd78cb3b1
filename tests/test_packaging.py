import ast
import email
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = ("dialog_gen", "dialog_train", "dialog_eval")
CHECKPOINTS = ROOT / "pipeline/dialog_gen/shapes/checkpoints"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file)


def packed(wheel: zipfile.ZipFile, folder: str) -> set[str]:
    return {name.removeprefix(folder) for name in wheel.namelist() if name.startswith(folder)}


def on_disk(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if path.is_file()}


def test_top_level_names(wheel: zipfile.ZipFile) -> None:
    names = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"dialog_gen", "dialog_train", "dialog_eval"}
    assert len(names) == 4


@pytest.mark.parametrize("package", ["pipeline/dialog_gen", "train/dialog_train", "eval/dialog_eval"])
def test_every_module_is_packed_and_typed(wheel: zipfile.ZipFile, package: str) -> None:
    names = packed(wheel, f"{Path(package).name}/")
    for pattern in ("*.py", "*.jinja", "*.js"):
        assert {name for name in names if name.endswith(pattern[1:])} == on_disk(ROOT / package, pattern)
    assert "py.typed" in names


@pytest.mark.parametrize(
    "name",
    [
        "publish/card.md.jinja",
        "cli/project/Makefile",
        "cli/project/gitignore",
        "inspect/page/page.html",
        "inspect/page/page.css",
        "inspect/page/script/main.js",
    ],
)
def test_templates_are_packed(wheel: zipfile.ZipFile, name: str) -> None:
    assert wheel.read(f"dialog_gen/{name}") == (ROOT / "pipeline/dialog_gen" / name).read_bytes()


def test_description_has_no_link_that_breaks_on_an_index_page(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)]*)\)", description)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    # The rest is the README: each of its headings, and each line without a link.
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert set(filter(None, (line for line in lines if "](" not in line))) <= set(description.splitlines())
    assert "[quick-start.md]" not in description
    assert "quick-start.md" in description


def test_description_links_to_a_repository_if_there_is_one() -> None:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    readme = "![a](docs/a.png)\n\n[b](docs/b.md#c) [d](https://x.org/) [e](#f)\n"
    assert hook.index_page(readme, "https://host/u/n/") == (
        "![a](https://host/u/n/raw/HEAD/docs/a.png)\n\n"
        "[b](https://host/u/n/blob/HEAD/docs/b.md#c) [d](https://x.org/) [e](#f)\n"
    )
    assert hook.index_page(readme, None) == "\n\nb [d](https://x.org/) [e](#f)\n"


def requirements(*groups: str) -> list[Requirement]:
    """What pyproject.toml declares: the dependencies, and those of the extras named."""
    extras = [Requirement(line) for group in groups for line in PROJECT["optional-dependencies"][group]]
    # An extra may name other extras of this package.
    own = [group for extra in extras if extra.name == PROJECT["name"] for group in extra.extras]
    if own:
        return [*(extra for extra in extras if extra.name != PROJECT["name"]), *requirements(*own)]
    return [*map(Requirement, PROJECT["dependencies"]), *extras]


def imported_packages() -> dict[str, str]:
    """Top-level name -> a product module that imports it, inside functions too; without the standard library."""
    found: dict[str, str] = {}
    for path in sorted(path for folder in ("pipeline", "train", "eval") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.append(node.module)
            for name in names:
                found.setdefault(name.split(".")[0], path.relative_to(ROOT).as_posix())
    return {name: path for name, path in found.items() if name not in {*OWN, *sys.stdlib_module_names}}


def test_every_imported_package_is_declared() -> None:
    extras = [name for name in PROJECT["optional-dependencies"] if name != "dev"]
    declared = {canonicalize_name(requirement.name) for requirement in requirements(*extras)}
    distributions = packages_distributions()
    imported = imported_packages()
    assert {"torch", "PIL", "jinja2", "img2dataset"} <= imported.keys()
    # It comes with torch for GPUs; without it, plain operations run.
    del imported["triton"]
    undeclared = {
        name: path
        for name, path in imported.items()
        if not {canonicalize_name(owner) for owner in distributions.get(name, [name])} & declared
    }
    assert undeclared == {}


def test_the_constraints_satisfy_what_is_declared() -> None:
    lines = (ROOT / "constraints/constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pinned.items()}
    declared = requirements("download", "train", "eval", "dev")
    wrong = [str(r) for r in declared if not r.specifier.contains(versions[canonicalize_name(r.name)])]
    assert wrong == []


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("dialog_gen/protocols/", "pipeline/dialog_gen/protocols"),
        ("dialog_gen/data_manifests/", "data_manifests"),
        ("dialog_train/recipes/", "train/recipes"),
    ],
)
def test_toml_files_are_packed(wheel: zipfile.ZipFile, folder: str, source: str) -> None:
    files = on_disk(ROOT / source, "*.toml")
    assert files
    assert {name for name in packed(wheel, folder) if name.endswith(".toml")} == files


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="no checkpoints were made yet")
def test_checkpoints_are_packed_and_small(wheel: zipfile.ZipFile) -> None:
    folder = "dialog_gen/shapes/checkpoints/"
    assert packed(wheel, folder) == on_disk(CHECKPOINTS, "*")
    assert any(name.endswith(".safetensors") for name in packed(wheel, folder))
    sizes_bytes = [member.file_size for member in wheel.infolist() if member.filename.startswith(folder)]
    assert sum(sizes_bytes) < 16e6


def test_nothing_of_the_tests_is_packed(wheel: zipfile.ZipFile) -> None:
    assert not [name for name in wheel.namelist() if "test" in name or "__pycache__" in name]


def test_what_is_unpacked_finds_its_files(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    script = """if True:
        from dialog_gen.download.manifests import load_manifest, shipped_manifests
        from dialog_gen.protocols.protocol import load_protocol, shipped_protocols
        from dialog_train.config import shipped_recipes
        for name in shipped_manifests(): load_manifest(name)
        for name in shipped_protocols(): load_protocol(name)
        print(*shipped_manifests().values(), *shipped_protocols().values(), *shipped_recipes().values(), sep="\\n")
    """
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [Path(line).relative_to(tmp_path / "site").as_posix() for line in done.stdout.splitlines()]
    assert {
        "dialog_gen/data_manifests/shapes.toml",
        "dialog_gen/protocols/llava-3qa.toml",
        "dialog_train/recipes/draft-shapes.toml",
    } <= set(found)
