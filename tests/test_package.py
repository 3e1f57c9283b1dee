"""The properties of the house: what is imported where, and when."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

import minigpt


def imports(file) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_lightning_is_imported_in_training_alone():
    for file in (ROOT / "minigpt").rglob("*.py"):
        uses = any(name.split(".")[0] in ("lightning", "pytorch_lightning") for name in imports(file))
        assert not uses or file.parent.name == "training", file


ORDER = [
    "processes", "errors", "words", "command_line", "files", "terminal", "seeds", "data", "models", "generation", "cpu",
    "evaluation", "inspection", "checkpoints", "runs", "loading", "comparison", "export", "training", "app", "commands",
    "__main__",
]  # fmt: skip


def room(module: str) -> str:
    """The room of a dotted name inside the package, or of what the package hands on under that name."""
    name = module.split(".")[1]
    return minigpt._HOMES.get(name, module).split(".")[1]


def test_imports_run_one_way():
    for file in (ROOT / "minigpt").rglob("*.py"):
        here = file.relative_to(ROOT / "minigpt").parts[0].removesuffix(".py")
        for name in imports(file):
            if here != "__init__" and name.startswith("minigpt."):
                assert ORDER.index(room(name)) <= ORDER.index(here), f"{file} imports {name}"


@pytest.mark.parametrize("name", minigpt.__all__)
def test_every_public_name_is_there(name):
    assert getattr(minigpt, name).__name__ == name


def test_type_checkers_see_every_public_name_at_its_home():
    tree = ast.parse((ROOT / "minigpt" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names if alias.asname == alias.name}
    assert seen == minigpt._HOMES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="TinyGTP"):
        minigpt.TinyGTP  # noqa: B018


ABSENT = """
import sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name == "lightning":
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Absent)
import minigpt
"""


@pytest.mark.slow
def test_without_lightning_a_sentence_says_what_to_install():
    sentence = "minigpt needs lightning, which is not installed in this Python: pip install lightning."
    python = [sys.executable, "-c", f"{ABSENT}try:\n    minigpt.train\nexcept minigpt.MiniGPTError as e:\n    print(e)"]
    assert subprocess.run(python, capture_output=True, text=True, check=True).stdout.strip() == sentence
    code = f"{ABSENT}from minigpt import commands\nsys.exit(commands.run(commands.train, ['--config', 'tiny']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (2, sentence)


def test_matplotlib_is_imported_at_the_first_figure_alone():
    drawing = [file for file in (ROOT / "minigpt").rglob("*.py") if "matplotlib" in "".join(sorted(imports(file)))]
    assert {file.name for file in drawing} == {"canvas.py", "figures.py", "study.py"}
    for file in (ROOT / "minigpt").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            draws = isinstance(node, ast.ImportFrom) and (node.module or "").endswith((".figures", ".canvas"))
            at_the_top = draws and file.name != "figures.py"
            assert not at_the_top, f"{file} imports the figures before it draws one"


@pytest.mark.slow
def test_looking_inside_without_a_figure_imports_no_matplotlib(trained_run):
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import minigpt\n"
        "from minigpt.inspection.introspection import name_of, surprisal\n"
        f"lm = minigpt.load({str(trained_run)!r})\n"
        "surprisal(lm.model, lm.tokenizer.encode('un matin,'))\n"
        "print('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


# The private names of libraries that minigpt depends on, each for want of a public one; see CONTRIBUTING.md.
PRIVATE = {
    "os": {"_exit"},  # documented, in spite of its name
    "torch": {
        "_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks", "_has_any_global_hook",
        "_inductor", "_step_supports_amp_scaling", "_version", "_weight_int8pack_mm", "_get_file_writer",
    },
    "lightning": {
        "_accelerator_connector", "_can_stop_early", "_data_parallel_size", "_original_handlers",
        "_process_group_backend", "_restarting", "_signal_connector", "_start_method", "_tensor_parallel_size",
        "_timeout",
    },
    "optuna": {"_heartbeat", "_storage", "_trial_id"},  # signs of life without `Study.optimize`, which loses a Ctrl-C
    "argparse and jsonargparse": {"_actions", "_loaders_dumpers", "_option_string_actions"},
}  # fmt: skip


def test_no_further_private_name_of_a_library_is_used():
    used, own = set(), set()
    for file in (ROOT / "minigpt").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute):
                (own if isinstance(node.ctx, ast.Store) else used).add(node.attr)
            elif isinstance(node, ast.ImportFrom):
                used |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    known = set().union(*PRIVATE.values())
    assert private - own - known == set()
    assert known - private - own == set(), "no longer used"
