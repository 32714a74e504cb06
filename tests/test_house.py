"""The rules of this repository: where code lives, what it may import, how it is written.

In short: commands at the root, what they share in a few folders, one concept per file. These tests
read the source files and import none of them.
"""
import ast
import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCRIPTS = ("train", "sample", "preprocess", "postprocess", "evaluate", "train_vae", "download",
           "bench", "train_refiner", "export")
FUTURE_SCRIPTS = ()
MAY_IMPORT = {
    "utils": (),
    "mri": ("utils",),
    "diffusion": ("utils", "mri"),
    "training": ("models", "diffusion", "mri", "utils"),
    "metrics": ("mri", "utils", "diffusion.vae", "diffusion.refiner"),
    "reporting": ("mri", "utils"),
    "benchmarks": ("models", "utils", "mri", "diffusion", "training", "metrics", "reporting"),
}
FOLDERS = tuple(MAY_IMPORT)
OURS = (*FOLDERS, "models", *SCRIPTS, *FUTURE_SCRIPTS)

MAX_COLUMNS = 100
MAX_COLUMNS_MARKDOWN = 140
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 400
MAX_SCRIPT_LINES = 320
# train.py has the most flags, evaluate.py four purposes, models.py the whole network, bench.py
# the flags of ten commands
LONGER_SCRIPTS = {"train.py": 410, "evaluate.py": 350, "models.py": 470,
                  "bench.py": 350}
GENERATED = ("docs/demo-report/", "docs/anatomy-report/", "tests/golden/")    # longer lines
LONGER_FUNCTIONS = ()  # "file.py:function", each with a reason

OLD_WORDS = (
    r"\bgoes on\b", r"\banew\b", r"\bmend(s|ed|ing)?\b", r"to the bit", r"turn and turn about",
    r"memoris", r"normalis", r"initialis", r"colour", r"\bgrey\b", r"centre", r"neighbour",
    r"licence")
OLD_WORDS_ALLOWED = {  # file: the words that stay there
    "tests/test_house.py": OLD_WORDS,
    "CHANGELOG.md": OLD_WORDS,                 # quotes what changed
    "metrics/registry.py": (r"memoris",),      # evaluate.py --metrics accepts the former name, too
    "tests/test_evaluate.py": (r"memoris",),   # tests that
    "tests/metrics/test_anatomy_tables.py": (r"\bgrey\b",),   # a column of SynthSeg's
}

# Modules that no test in the folder of the same name imports, and the test file that covers them.
TESTED_ELSEWHERE = {
    "benchmarks/attention_cost.py": "tests/test_bench.py",
    "benchmarks/baseline.py": "tests/test_models.py",
    "benchmarks/metrics_cost.py": "tests/test_bench.py",
    "benchmarks/networks.py": "tests/test_bench.py",
    "benchmarks/preparation_cost.py": "tests/test_bench.py",
    "benchmarks/preprocessing_cost.py": "tests/test_bench.py",
    "benchmarks/sampler_comparison.py": "tests/test_bench.py",
    "benchmarks/sampling_cost.py": "tests/test_bench.py",
    "metrics/flags.py": "tests/test_evaluate.py",
    "mri/nifti_header.py": "tests/mri/test_nifti.py",
    "reporting/flags.py": "tests/test_evaluate_report.py",
    "training/acceleration.py": "tests/test_models.py",
    "training/bookkeeping.py": "tests/test_cluster.py",
    "training/flags.py": "tests/test_train.py",
    "training/dry_run.py": "tests/test_train.py",
    "training/resume.py": "tests/test_cluster.py",
    "training/run_folder.py": "tests/test_cluster.py",
    "training/setup.py": "tests/test_train.py",
    "training/stopping.py": "tests/test_cluster.py",
    "utils/distributed.py": "tests/test_cluster.py",
    "utils/signals.py": "tests/test_cluster.py",
}

# Flags of other programs that the documents mention.
FOREIGN_FLAGS = {
    "--account", "--array", "--constraint", "--cpus-per-task", "--gpus-per-node", "--gres", "--mem",
    "--logdir", "--nodes", "--nproc-per-node", "--partition", "--qos", "--signal", "--time"}


# ------------------------------------------------------------------------------ reading the source

@functools.cache
def tracked():
    """Paths of all files that git tracks, or would track, relative to the root."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others",
               "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return sorted({path for path in done.stdout.split("\0") if path and (ROOT / path).is_file()})


@functools.cache
def text(path):
    """A file's text, or None if it is binary."""
    raw = (ROOT / path).read_bytes()
    try:
        return None if b"\0" in raw else raw.decode()
    except UnicodeDecodeError:
        return None


@functools.cache
def tree(path):
    return ast.parse(text(path), path)


def python_files(*folders):
    """Tracked Python files in these folders; "" is the root itself, without its folders."""
    return [path for path in tracked() if path.endswith(".py") and folder_of(path) in folders]


def folder_of(path):
    return path.split("/")[0] if "/" in path else ""


def code_files():
    """All Python files but the tests."""
    return python_files("", "demo", *FOLDERS)


def imports(path):
    """(line, dotted name) of every import in a file: "mri.geometry", "mri.geometry.to_ras"."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def assert_none(wrong):
    """Fails with one line per finding."""
    if wrong:
        pytest.fail("\n".join(sorted(wrong)), pytrace=False)


def is_within(name, modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


def functions(path):
    """(name, number of lines, decorators not counted) of every function in a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


# ------------------------------------------------------------------------------------ the folders

def test_the_root_holds_the_scripts_and_models_only():
    found = {Path(path).stem for path in python_files("")}
    required = {"models", *SCRIPTS}
    assert required <= found <= required | set(FUTURE_SCRIPTS)


def test_code_folders_hold_nothing_but_a_docstring_in_their_init():
    for folder in FOLDERS:
        (docstring,) = tree(f"{folder}/__init__.py").body
        assert isinstance(docstring, ast.Expr) and isinstance(docstring.value.value, str), folder


def test_python_files_lie_in_known_folders():
    known = {"", "demo", "tests", *FOLDERS}
    assert_none([p for p in tracked() if p.endswith(".py") and folder_of(p) not in known])


def test_folders_import_what_they_may():
    wrong = []
    for folder, allowed in MAY_IMPORT.items():
        for path in python_files(folder):
            for line, name in imports(path):
                ours = name.startswith(".") or is_within(name, OURS)
                if ours and not is_within(name, (*allowed, folder)):
                    wrong.append(f"{path}:{line} imports {name}")
    assert_none(wrong)


def test_models_imports_nothing_of_ours_and_nobody_imports_a_script():
    assert_none([name for _, name in imports("models.py") if is_within(name, OURS)])
    scripts = (*SCRIPTS, *FUTURE_SCRIPTS)
    assert_none([f"{path}:{line} imports {name}" for path in code_files()
                 for line, name in imports(path) if is_within(name, scripts)])


# --------------------------------------------------------------------------------------- one door

@functools.cache
def definitions(path):
    """Names that a module defines itself at its top level; imported ones are not among them."""
    names = set()
    for node in ast.walk(ast.Module(_top_level(tree(path).body), [])):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def imported_names(path):
    """Names that a module imports at its top level."""
    statements = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {alias.asname or alias.name for node in statements for alias in node.names}


def _top_level(body):
    """The statements of a module's body without the bodies of functions and classes."""
    out = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node = type(node)(**{**dict(ast.iter_fields(node)), "body": []})
        out.append(node)
    return out


def module_file(name):
    """The file of one of our modules, or None: "mri.geometry" -> "mri/geometry.py"."""
    path = name.replace(".", "/") + ".py"
    return path if is_within(name, OURS) and path in tracked() else None


def uses(path):
    """(line, module, name) of each name of our modules that a file uses."""
    aliases, hidden = {}, set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if module_file(full):
                    aliases[alias.asname or alias.name] = full
                elif module_file(node.module or ""):
                    yield node.lineno, node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if module_file(alias.name):
                    aliases[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.arg):
            hidden.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            hidden.add(node.id)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            if name in aliases and name not in hidden:
                yield node.lineno, aliases[name], node.attr


def test_every_name_comes_from_the_module_that_defines_it():
    """No re-exports; and no use of a name that does not exist."""
    assert_none([f"{path}:{line} takes {name} from {module}" for path in code_files()
                 for line, module, name in uses(path)
                 if name not in definitions(module_file(module)) and not name.startswith("__")])
    assert_none([path for path in code_files() if "noqa: F401" in text(path)])


def test_tests_use_names_that_exist():
    """They may also reach for what a module imports, to replace it."""
    wrong = []
    for path in python_files("tests"):
        if path.startswith("tests/golden/"):  # ran with earlier versions
            continue
        for line, module, name in uses(path):
            file = module_file(module)
            if name not in definitions(file) | imported_names(file) | {"__name__", "__file__"}:
                wrong.append(f"{path}:{line} takes {name} from {module}")
    assert_none(wrong)


# ------------------------------------------------------------------------------------- arguments

def test_library_code_takes_named_arguments_not_a_namespace():
    """`*args`, handed on to a function, is no Namespace."""
    wrong = []
    for path in python_files(*FOLDERS):
        handed_on = set()
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and node.args.vararg:
                handed_on |= set(ast.walk(node))
        for node in set(ast.walk(tree(path))) - handed_on:
            if isinstance(node, ast.Name) and node.id == "args" \
                    or isinstance(node, ast.arg) and node.arg == "args":
                wrong.append(f"{path}:{node.lineno} args")
        # training/pretrained.py lets torch.load unpickle one, as a file may hold it
        if "Namespace" in text_of_code(path) and path != "training/pretrained.py":
            wrong.append(f"{path} Namespace")
    assert_none(wrong)


def text_of_code(path):
    """A file's code without comments and docstrings."""
    code = ast.parse(text(path))
    for node in ast.walk(code):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(0)
    return ast.unparse(code)


def test_scripts_do_not_change_their_arguments_after_parsing():
    wrong = []
    for path in python_files("", "demo"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del) \
                    and isinstance(node.value, ast.Name) and node.value.id == "args":
                wrong.append(f"{path}:{node.lineno} changes args.{node.attr}")
    assert_none(wrong)


# ------------------------------------------------------------------------------------------ size

def test_lines_are_short():
    suffixes = {".py": MAX_COLUMNS, ".sh": MAX_COLUMNS, ".sbatch": MAX_COLUMNS,
                ".toml": MAX_COLUMNS, ".yml": MAX_COLUMNS, ".md": MAX_COLUMNS_MARKDOWN}
    wrong = []
    for path in tracked():
        if path.startswith(GENERATED):
            continue
        limit = MAX_COLUMNS if Path(path).name == "Makefile" else suffixes.get(Path(path).suffix)
        if limit is None:
            continue
        for number, line in enumerate(text(path).splitlines(), 1):
            if len(line) > limit and not is_table_row(path, line):
                wrong.append(f"{path}:{number} has {len(line)} columns")
    assert_none(wrong)


def is_table_row(path, line):
    """Markdown cannot break a row of a table."""
    return path.endswith(".md") and line.startswith("|")


def test_functions_are_short():
    assert_none([f"{path}:{name} has {lines} lines" for path in code_files()
                 for name, lines in functions(path)
                 if lines > MAX_FUNCTION_LINES and f"{path}:{name}" not in LONGER_FUNCTIONS])


def test_files_are_short():
    wrong = []
    for path in code_files():
        limit = MAX_SCRIPT_LINES if Path(path).stem in SCRIPTS else MAX_MODULE_LINES
        limit = LONGER_SCRIPTS.get(path, limit)
        lines = len(text(path).splitlines())
        if lines > limit:
            wrong.append(f"{path} has {lines} lines")
    assert_none(wrong)


# --------------------------------------------------------------------------------------- language

def test_the_old_vocabulary_is_gone():
    wrong = []
    for path in tracked():
        if text(path) is None or path.startswith("tests/golden/"):
            continue
        allowed = OLD_WORDS_ALLOWED.get(path, ())
        for number, line in enumerate(text(path).splitlines(), 1):
            wrong += [f"{path}:{number} {word}" for word in OLD_WORDS
                      if word not in allowed and re.search(word, line, re.IGNORECASE)]
    assert_none(wrong)


# ------------------------------------------------------------------------------------------ tests

def test_tests_mirror_the_folders():
    """Every module of a folder is imported by a test in the folder of the same name in tests/."""
    wrong = [f"{path}: no file in tests/{folder_of(path)}/ imports it"
             for path in python_files(*FOLDERS) if not path.endswith("__init__.py")
             if path not in TESTED_ELSEWHERE and not is_imported_by_its_tests(path)]
    assert_none(wrong)
    listed = (*TESTED_ELSEWHERE, *TESTED_ELSEWHERE.values())
    assert_none([f"{path} does not exist" for path in listed if path not in tracked()])


def is_imported_by_its_tests(path):
    module = path.removesuffix(".py").replace("/", ".")
    tests = [p for p in python_files("tests") if p.startswith(f"tests/{folder_of(path)}/")]
    return any(is_within(name, [module]) for p in tests for _, name in imports(p))


# ------------------------------------------------------------------------------------------ flags

def flag_calls(node):
    """Calls of add_argument within a syntax tree."""
    return [call for call in ast.walk(node) if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]


def flags_of_call(call, values):
    """{flag: name of its value in the Namespace} of one call of add_argument.

    :param values: {name: text}, the variables that may stand for a flag
    """
    names = [arg.value if isinstance(arg, ast.Constant) else values[arg.id]
             for arg in call.args if not isinstance(arg, ast.Starred)]
    keywords = {k.arg: k.value for k in call.keywords}
    dest = keywords["dest"].value if "dest" in keywords else names[0].lstrip("-")
    found = dict.fromkeys(names, dest.replace("-", "_"))
    if ast.unparse(keywords.get("action", ast.Constant(""))).endswith("BooleanOptionalAction"):
        found |= {name.replace("--", "--no-", 1): found[name] for name in names}
    return found


@functools.cache
def flags_of(script):
    """{flag: name of its value} of a script, those of the helpers in FOLDER/flags.py included.

    An argument without dashes goes by its name.
    """
    helpers = {f.name: f for path in code_files() if path.endswith("/flags.py")
               for f in tree(path).body if isinstance(f, ast.FunctionDef)}
    return {"--help": None, "--version": None} | flags_within(tree(f"{script}.py"), {}, helpers)


def flags_within(node, values, helpers):
    """{flag: name of its value} of a syntax tree, those of the helpers that it calls included."""
    found = {}
    for call in flag_calls(node):
        found |= flags_of_call(call, values)
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            name = getattr(call.func, "attr", getattr(call.func, "id", None))
            if name in helpers and name.startswith("add_"):
                found |= flags_within(helpers[name], arguments_of(helpers[name], call), helpers)
    return found


def arguments_of(function, call):
    """{parameter: value} of a call, as far as they are constants."""
    parameters = [a.arg for a in function.args.args]
    defaults = dict(zip(reversed(parameters), reversed(function.args.defaults)))
    given = dict(zip(parameters, call.args)) | {k.arg: k.value for k in call.keywords}
    return {name: value.value for name, value in (defaults | given).items()
            if isinstance(value, ast.Constant)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_used(script):
    used = set()
    for node in ast.walk(tree(f"{script}.py")):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            used.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "getattr":
            used |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    flags = {flag: dest for flag, dest in flags_of(script).items() if dest}
    assert len(flags) > 1
    assert_none([flag for flag, dest in flags.items() if dest not in used])


FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def test_documents_mention_existing_flags_only():
    known = FOREIGN_FLAGS.union(*(flags_of(script) for script in SCRIPTS))
    documents = [p for p in tracked() if p in ("README.md", "BENCHMARKS.md", "CONTRIBUTING.md")
                 or p.startswith("docs/") and p.endswith(".md")]
    assert "README.md" in documents
    wrong = [f"{path}:{number} {flag}" for path in documents
             for number, line in enumerate(text(path).splitlines(), 1)
             for flag in FLAG.findall(line) if flag not in known]
    assert_none(wrong)


COMMAND = re.compile(r"(?:python3? |torchrun .*?|slurm/)(\w+)\.(?:py|sbatch)\b([^`#]*)")


def test_examples_use_the_flags_of_their_script():
    """Every command `python SCRIPT.py --flag ...` anywhere in the repository."""
    wrong, count = [], 0
    for path in tracked():
        if Path(path).suffix not in (".md", ".py", ".sh", ".sbatch") or path.startswith("tests/"):
            continue
        joined = re.sub(r"\\\n[ #]*", "", text(path))
        for script, rest in COMMAND.findall(joined):
            script = script.removesuffix("_multi")
            rest = re.sub('"[^"]*"', "", rest)     # flags of other scripts, handed on
            flags = FLAG.findall(rest.split("\n")[0].split("&&")[0])
            if script in SCRIPTS:
                count += len(flags)
                wrong += [f"{path}: {script}.py {f}" for f in flags if f not in flags_of(script)]
    assert count > 50
    assert_none(wrong)


# ---------------------------------------------------------------------------------------- version

def test_the_changelog_has_the_version():
    (version,) = [node.value.value for node in tree("utils/version.py").body
                  if isinstance(node, ast.Assign)]
    headings = [line for line in text("CHANGELOG.md").splitlines() if line.startswith("## ")]
    assert any(re.match(rf"## \[?v?{re.escape(version)}\b", line) for line in headings), headings
