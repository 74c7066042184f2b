"""What README and docs promise: blocks run, links lead somewhere, settings and files are named."""

import ast
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pure.checkpoint import NANO

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FRONT, BODY = README.removeprefix("---\n").split("\n---\n", 1)
PAGES = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*.md")]
)
BLOCKS = re.findall(r"^```python\n(.*?)^```", BODY, re.DOTALL | re.MULTILINE)
SETTINGS = ROOT / "ui" / "settings.py"
# The keys of a Space's front matter that we use, and the colours it knows (Hub documentation).
KEYS = {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version"}
KEYS |= {"app_file", "license", "short_description", "models", "tags"}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def without_code(page):
    """A page's text, fenced, indented and inline code left out."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def anchor(heading):
    """What GitHub and the Hub make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def links(page):
    """Targets of links and pictures that stay inside the project."""
    text = without_code((ROOT / page).read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    return [t for t in targets if not re.match(r"[a-z][a-z+.-]*:", t)]


LINKS = sorted({(str(page), target) for page in PAGES for target in links(page)})


@pytest.fixture(scope="module")
def front():
    return yaml.safe_load(FRONT)


def test_the_front_matter_is_what_a_space_understands(front):
    assert set(front) == KEYS
    assert {front["colorFrom"], front["colorTo"]} <= COLOURS
    assert front["sdk"] == "gradio"
    assert len(front["short_description"]) <= 60  # the Hub refuses longer ones
    assert len(front["emoji"]) == 1
    assert front["license"] == "mit"
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", model) for model in front["models"])


def test_the_space_runs_the_versions_we_test(front):
    for file, sign in (("requirements.txt", "=="), ("constraints.txt", "==")):
        [gradio] = re.findall(
            rf"^gradio{sign}(\S+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
        )
        assert gradio == front["sdk_version"]
    assert front["python_version"] in ("3.11", "3.12")


def test_the_app_is_where_the_front_matter_says(front):
    assert (ROOT / front["app_file"]).is_file()


def test_every_requirement_is_pinned_for_the_tests():
    def names(file):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        found = [re.match(r"[A-Za-z0-9_.-]+", line) for line in lines]
        return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}

    files = sorted(path.name for path in ROOT.glob("requirements*.txt"))
    assert "requirements.txt" in files
    for file in files:
        assert names(file) <= names("constraints.txt"), file


def test_there_are_links_and_blocks_to_look_at():
    assert len(LINKS) > 5
    assert BLOCKS


@pytest.mark.parametrize(("page", "target"), LINKS, ids=[f"{p}-{t}" for p, t in LINKS])
def test_links_lead_somewhere(page, target):
    path, _, fragment = target.partition("#")
    file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    if file.parent == ROOT / "docs" / "images" and not NANO.is_dir():
        pytest.skip("the pictures are made once PURE-nano's weights are there: make figures")
    assert file.exists()
    assert file.is_relative_to(ROOT)
    if fragment:
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert fragment in map(anchor, headings)


def test_every_picture_says_what_to_see():
    for page in PAGES:
        for text in re.findall(r"!\[([^\]]*)\]\(", (ROOT / page).read_text(encoding="utf-8")):
            assert len(text.split()) >= 5, f"{page}: {text!r}"


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_python_of_the_readme_runs(block, tmp_path, monkeypatch):
    if '"nano"' in block and not NANO.is_dir():
        pytest.skip("the block needs PURE-nano's weights in pure/weights/nano")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for path in (tmp_path / "examples").glob("*.png"):
        with Image.open(path) as example:
            small = example.convert("RGB").resize((24, 16))  # one tile when four times as large
        small.save(path)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    for name in re.findall(r'\.save\("([^"]+)"\)', block):
        with Image.open(tmp_path / name) as result:
            assert result.size == (96, 64)


def test_every_environment_variable_is_in_the_readme():
    names = set(re.findall(r"\bPURE_[A-Z_]+\b", SETTINGS.read_text(encoding="utf-8")))
    assert names
    documented = set(re.findall(r"^\| `(PURE_[A-Z_]+)` \|", BODY, re.MULTILINE))
    assert documented == names


def test_the_tree_in_the_readme_is_the_tree():
    tree = BODY.split("## What is where", 1)[1].split("\n## ", 1)[0]
    listed, folder = {}, ""
    for line in re.findall(r"^ {4}(.*)$", tree, re.MULTILINE):
        name, clause = re.fullmatch(r" *(\S+) {2,}(\S.*)", line).groups()
        path = f"{folder}{name}" if line.startswith(" ") else name
        folder = name if name.endswith("/") else folder
        listed[path] = clause
    missing = [path for path in listed if not (ROOT / path).exists()]
    assert missing == []
    for package in {path.split("/")[0] for path in listed if re.fullmatch(r"\w+/\w+\.py", path)}:
        modules = {
            f"{package}/{path.name}"
            for path in (ROOT / package).glob("*.py")
            if ast.parse(path.read_text(encoding="utf-8")).body and path.name != "__init__.py"
        }
        assert modules <= set(listed), f"README.md does not name {modules - set(listed)}"
