"""What an image is built from is linted, pinned, complete, and says the same in every place that says it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from comfy_nodes.training.kohya import TOKENIZERS
from pod_images.model_files import load_manifest

hcl2 = pytest.importorskip("hcl2", reason="python-hcl2 is a development dependency that is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "pod_images" / "comfyui"
DOCKERFILE = FOLDER / "Dockerfile"
REQUIREMENTS = [FOLDER / "agent-requirements.txt", FOLDER / "sd-scripts-requirements.txt"]
PINS = [*REQUIREMENTS, FOLDER / "comfyui-constraints.txt"]


def linter(name: str) -> str:
    """A linter that pip put beside this interpreter, or one of the system."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is a development dependency that is not installed")
    return found


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their words, lines joined, comments gone."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def words_of(instruction: str) -> list[str]:
    return [words for name, words in instructions() if name == instruction]


def arguments() -> dict[str, str]:
    return dict(words.split("=", 1) for words in words_of("ARG"))


def environment() -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", " ".join(words_of("ENV"))))


def bake() -> dict[str, Any]:
    """docker-bake.hcl with the quotes that the parser keeps taken off."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {bare(key): bare(one) for key, one in value.items()}
        if isinstance(value, list):
            return [bare(one) for one in value]
        return value.strip('"') if isinstance(value, str) else value

    with (REPOSITORY / "docker-bake.hcl").open() as file:
        found: dict[str, Any] = bare(hcl2.load(file))
    return found


def bake_variables() -> dict[str, str]:
    return {name: block["default"] for variable in bake()["variable"] for name, block in variable.items()}


def bake_target() -> dict[str, Any]:
    target: dict[str, Any] = bake()["target"][0]["comfyui"]
    return target


def pins(path: Path) -> dict[str, str]:
    lines = [line.strip() for line in path.read_text().splitlines()]
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([linter("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_finds_nothing_in_the_start_script() -> None:
    command = [linter("shellcheck"), "--enable=all", "--exclude=SC2249,SC2250,SC2310,SC2312", str(FOLDER / "start.sh")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_argument_has_a_default_and_none_of_them_moves() -> None:
    moving = {name: value for name, value in arguments().items() if not value or "latest" in value or ":main" in value}
    assert moving == {}


def test_the_base_is_taken_by_tag_and_digest() -> None:
    assert words_of("FROM") == ["${CUDA_IMAGE}@${CUDA_DIGEST}"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", arguments()["CUDA_DIGEST"])


def test_the_bake_file_gives_the_dockerfile_exactly_its_own_arguments() -> None:
    given, variables = bake_target()["args"], bake_variables()
    assert {name: variables[value.strip("${}")] for name, value in given.items()} == arguments()


def test_the_bake_file_builds_what_is_there_for_the_platform_of_the_digest_under_tags_with_versions() -> None:
    target = bake_target()
    assert (REPOSITORY / target["context"] / target["dockerfile"]).resolve() == DOCKERFILE
    assert target["platforms"] == ["linux/amd64"]
    assert all("${TROUPE_VERSION}" in tag for tag in target["tags"])


def test_nothing_is_added_from_an_address_and_no_secret_is_built_in() -> None:
    secrets = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY", re.IGNORECASE)
    assert words_of("ADD") == []
    assert [name for name in {**arguments(), **environment()} if secrets.search(name)] == []


def test_the_image_has_a_health_check_labels_and_an_entrypoint_that_hears_signals() -> None:
    assert len(words_of("HEALTHCHECK")) == len(words_of("LABEL")) == 1
    assert words_of("ENTRYPOINT") == ['["/usr/bin/tini", "--", "/opt/troupe/app/pod_images/comfyui/start.sh"]']


def test_the_agent_does_not_run_as_root_where_the_volume_can_be_handed_over() -> None:
    made = re.search(r"useradd [^&]* (\w+) +&&", " ".join(words_of("RUN")))
    assert made is not None
    assert environment()["TROUPE_RUN_AS"] == made[1]


def test_the_start_script_and_the_image_name_the_same_paths() -> None:
    script = (FOLDER / "start.sh").read_text()
    defaults = dict(re.findall(r"\$\{([A-Z_]+):?-([^$}]+)\}", script))
    shared = environment().keys() & defaults.keys()
    assert len(shared) >= 9
    assert {name: defaults[name] for name in shared} == {name: environment()[name] for name in shared}


def test_every_path_of_ours_in_the_image_exists_in_this_repository() -> None:
    named = re.findall(r"/opt/troupe/app/([\w./-]+\.\w+)", DOCKERFILE.read_text())
    assert named != []
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def test_what_the_image_copies_is_let_through_to_the_build() -> None:
    sources = [words.split()[0] for words in words_of("COPY")]
    assert [source for source in sources if not (REPOSITORY / source).exists() or ignored(source)] == []


KEPT_OUT = [
    ".git/config",
    ".venv/bin/python",
    "data/secrets.json",
    "tests/images/conftest.py",
    "controlplane/app.py",
    "pod_images/embedded/models/x.safetensors",
    "comfy_nodes/__pycache__/host.cpython-311.pyc",
]


@pytest.mark.parametrize("path", KEPT_OUT)
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert ignored(path)


def ignored(path: str) -> bool:
    """Docker's rule: the last pattern that fits a path or a folder above it decides."""
    verdict = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        exception = pattern.startswith("!")
        pattern = pattern.lstrip("!")
        above = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
        fits = any(fnmatch(one, pattern) or fnmatch(f"/{one}", pattern.replace("**", "*")) for one in above)
        if fits:
            verdict = not exception
    return verdict


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.name)
def test_every_package_is_pinned_to_one_version(path: Path) -> None:
    loose = [line for line in path.read_text().splitlines() if line and not re.match(r"#|[\w.-]+==[\w.]+$", line)]
    assert loose == []


def test_the_agent_runs_with_the_versions_that_were_tested() -> None:
    tested = {name.lower(): version for name, version in pins(REPOSITORY / "constraints.txt").items()}
    assert {name: tested.get(name.lower()) for name in pins(REQUIREMENTS[0])} == pins(REQUIREMENTS[0])


def test_what_runs_in_the_agents_environment_imports_only_what_is_installed_there() -> None:
    installed = {"pyyaml": "yaml"}
    provided = {installed.get(name.lower(), name.lower()) for name in pins(REQUIREMENTS[0])}
    ours = {"pod_images", "comfy_nodes"}
    imported = {name.split(".")[0] for node in agent_syntax() for name in absolute_names(node)}
    assert imported - sys.stdlib_module_names - ours == provided


def test_what_runs_in_the_agents_environment_needs_nothing_of_the_pod_that_is_left_out() -> None:
    assert "embedded" not in {name for node in agent_syntax() for name in relative_names(node)}


def agent_syntax() -> Iterator[ast.AST]:
    """Every node of every module of pod_images but the pod of one process."""
    for path in sorted((REPOSITORY / "pod_images").rglob("*.py")):
        if "embedded" not in path.relative_to(REPOSITORY).parts:
            yield from ast.walk(ast.parse(path.read_text()))


def absolute_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []


def relative_names(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ImportFrom) and node.level:
        return {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return set()


def test_comfyui_is_held_to_the_torch_that_is_installed() -> None:
    given, constraints = arguments(), pins(FOLDER / "comfyui-constraints.txt")
    assert {name: constraints[name] for name in ("torch", "torchvision", "torchaudio")} == {
        "torch": given["TORCH_VERSION"],
        "torchvision": given["TORCHVISION_VERSION"],
        "torchaudio": given["TORCHAUDIO_VERSION"],
    }


def test_every_file_of_the_manifest_is_pinned_by_its_commit_and_names_its_licence() -> None:
    files = load_manifest(FOLDER / "models.yaml")
    loose = [file.title for file in files if not (re.fullmatch(r"[0-9a-f]{40}", file.revision) and file.licence)]
    assert loose == []


def test_every_checkpoint_of_the_manifest_is_pinned_by_digest_and_size() -> None:
    files = [file for file in load_manifest(FOLDER / "models.yaml") if file.folder == "checkpoints"]
    assert [file.title for file in files if not (file.sha256 and file.bytes)] == []


def test_the_manifest_has_every_checkpoint_that_the_sdxl_base_and_its_templates_name() -> None:
    templates = REPOSITORY / "workflow_templates"
    bases = yaml.safe_load((templates / "models.yaml").read_text())
    sdxl = next(base for base in bases if base["id"] == "sdxl")
    graphs = [(templates / name / "graph.json").read_text() for name in sdxl["templates"].values()]
    named = set(re.findall(r"[\w.-]+\.safetensors", " ".join([str(sdxl), *graphs])))
    fetched = {file.name for file in load_manifest(FOLDER / "models.yaml") if file.folder == "checkpoints"}
    assert named == fetched


def test_the_manifest_puts_the_tokenizers_where_the_trainer_looks_for_them() -> None:
    fetched = [file.name for file in load_manifest(FOLDER / "models.yaml") if file.folder == "tokenizers"]
    assert {name.split("/")[0] for name in fetched} == set(TOKENIZERS)
