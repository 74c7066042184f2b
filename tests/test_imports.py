"""Who imports whom, what importing loads, and that importing does nothing else."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW_UI = {"evaluation", "baselines", "pure", "imaging", "study"}
# What each may import besides itself.
ARROWS = {
    "app": {"ui", *BELOW_UI},
    "ui": BELOW_UI,
    "evaluation": {"baselines", "pure", "imaging"},
    "baselines": {"pure", "imaging"},
    "pure": {"imaging"},
    "imaging": set(),
    "study": set(),
    "tools": BELOW_UI,
    "examples": set(),
}
OURS = {*ARROWS, "tests"}
GRADIO_MAY = {"app", "ui"}
# Optional or slow: imported by the function that needs them.
LATE = {
    "diffusers",
    "gradio_client",
    "ncnn",
    "peft",
    "pyiqa",
    "spaces",
    "spandrel",
    "timm",
    "transformers",
    "xformers",
}
# The entry point: `spaces` wants to be there before CUDA, and Gradio's switches before Gradio.
EARLY_MAY = {"app": {"spaces"}, "examples": {"gradio_client"}}
ENVIRONMENT_MAY = Path("ui/settings.py")
# may set variables that a library reads when it is imported
PROGRAMS = (Path("app.py"), Path("pure/__main__.py"))

FILES = sorted(
    path.relative_to(ROOT)
    for layer in ARROWS
    for path in [*(ROOT / layer).rglob("*.py"), *ROOT.glob(f"{layer}.py")]
)


def layer_of(file):
    return file.parts[0].removesuffix(".py")


def module_of(file):
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def imports(tree):
    """(name, node) of every import, wherever it stands; relative ones start with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node


def at_import(tree):
    """The nodes that run, or may run, when the module is imported: all but function bodies."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            signature = [*node.decorator_list, node.args]
            yield from (inner for part in signature for inner in ast.walk(part))
        elif not isinstance(node, ast.Lambda):
            yield from at_import(node)


def is_environment(node):
    names = {"environ", "environb", "getenv", "getenvb"}
    return (isinstance(node, ast.Attribute) and node.attr in names) or (
        isinstance(node, ast.Name) and node.id in names
    )


def settings_of(tree):
    """Lines that give a library a constant through the environment before it is imported.

    `os.environ["NAME"] = "value"`, and `os.environ.setdefault("NAME", "value")`.
    """
    assigned = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and all(isinstance(t, ast.Subscript) and is_environment(t.value) for t in node.targets)
    ]
    defaults = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)  # what it returns is not used
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "setdefault"
        and is_environment(node.value.func.value)
        and all(isinstance(argument, ast.Constant) for argument in node.value.args)
    ]
    return assigned + defaults


@pytest.fixture(params=FILES, ids=str)
def file(request):
    return request.param


@pytest.fixture
def tree(file):
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), filename=str(file))


def test_there_are_modules_to_look_at():
    assert Path("pure/pipeline.py") in FILES
    assert Path("imaging/load.py") in FILES


def test_arrows_point_down(file, tree):
    layer = layer_of(file)
    roots = {name.split(".")[0] for name, _ in imports(tree)}
    assert roots & OURS <= ARROWS[layer] | {layer}


def test_imports_are_absolute_and_name_what_they_take(tree):
    for name, node in imports(tree):
        assert not name.startswith("."), f"line {node.lineno}: a relative import"
        assert not any(alias.name == "*" for alias in node.names), f"line {node.lineno}: a star"


def test_nobody_changes_the_path(tree):
    touched = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "path"
        and isinstance(node.value, ast.Name)
        and node.value.id == "sys"
    ]
    assert touched == []


def test_gradio_stays_in_the_interface(file, tree):
    roots = {name.split(".")[0] for name, _ in imports(tree)}
    assert "gradio" not in roots or layer_of(file) in GRADIO_MAY


def test_heavy_packages_are_imported_late(file, tree):
    early = {
        name.split(".")[0]
        for node in at_import(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name, _ in imports(ast.Module([node], []))
    }
    assert early & LATE <= EARLY_MAY.get(layer_of(file), set())


def test_the_environment_is_read_in_one_place_and_not_on_import(file, tree):
    where = tree if file != ENVIRONMENT_MAY else ast.Module([], [])
    written = settings_of(tree) if file in PROGRAMS else []
    read = [node.lineno for node in ast.walk(where) if is_environment(node)]
    early = [node.lineno for node in at_import(tree) if is_environment(node)]
    assert set(read + early) <= set(written)


def defines_a_method(tree):
    names = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return bool(names & {"METHOD", "METHODS"})


def test_methods_do_not_know_each_other_and_one_knows_the_model():
    files = [file for file in FILES if layer_of(file) == "baselines"]
    trees = {file: ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in files}
    methods = {module_of(file) for file in files if defines_a_method(trees[file])}
    assert "baselines.interpolation" in methods
    for file in files:
        names = {name for name, _ in imports(trees[file])}
        assert not names & methods, file
        knows_the_model = any(name.split(".")[0] == "pure" for name in names)
        assert not knows_the_model or file == Path("baselines/pure.py"), file


LOADED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_importing_everything_below_the_interface_loads_no_framework_and_writes_nothing(tmp_path):
    layers = {"pure", "imaging", "baselines", "evaluation", "study"}
    names = [module_of(file) for file in FILES if layer_of(file) in layers]
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    done = subprocess.run(
        [sys.executable, "-B", "-c", LOADED, *names],
        cwd=here,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_", "TORCH"))},
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"pure", "imaging", "torch"} <= loaded
    assert loaded & {"gradio", "matplotlib", *LATE} == set()
    assert list(home.rglob("*")) == []
    assert list(here.rglob("*")) == []
