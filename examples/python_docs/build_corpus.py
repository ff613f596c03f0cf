"""Write the reference documentation of the Python standard library as Markdown, one file per public module.

    python examples/python_docs/build_corpus.py FOLDER

The text is this interpreter's own docstrings, so nothing is downloaded: `# module`, then a heading for each
function, class and method with its signature. Run it as a process of its own; it imports every module.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import io
import pkgutil
import re
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Opens a browser, prints a poem, needs a display, tests, other people's code, grammar for a dead tool,
# or generated tables: nothing that a reader of the documentation looks up.
SKIPPED = {
    *("antigravity", "this", "tkinter", "turtle", "turtledemo", "idlelib", "test", "lib2to3", "distutils"),
    *("ensurepip", "pydoc_data", "sre_compile", "sre_constants", "sre_parse", "nturl2path", "genericpath"),
    *("posixpath", "ntpath", "posix", "nt", "pyexpat", "opcode", "xxsubtype", "xxlimited", "xxlimited_35"),
}
# Parts that the official documentation does not show: code pages, and how a package is made inside.
WITHOUT_SUBMODULES = {"asyncio", "encodings"}
SKIPPED_SUBMODULES = re.compile(
    r"multiprocessing\.(popen_.*|forkserver|reduction|resource_.*|spawn|util|heap|queues|process|context|synchronize)"
    r"|ctypes\.(macholib.*|wintypes)|xml\.dom\.(expatbuilder|minicompat|NodeFilter|domreg|xmlbuilder)"
    r"|xml\.sax\.expatreader|email\.(base64mime|quoprimime|iterators)|importlib\.(simple|readers)|json\.scanner"
    r"|unittest\.(util|async_case|case|suite|loader|main|result|runner|signals)|concurrent\.futures\..*"
    r"|wsgiref\.types|pathlib\..*|sysconfig\..*|importlib\.metadata\..*|importlib\.resources\..*"
)
ALSO = ("os.path", "collections.abc")  # public modules that are no files of their own packages
GENERATED = re.compile(r"Alias for field number \d+|Initialize self\.  See help")
MIN_MODULE_TEXT = 200  # characters of a module's own text that make a page without any member worth keeping


@dataclass(frozen=True)
class Page:
    """One module as Markdown; members counts its headings below the first."""

    module: str
    text: str
    members: int


@dataclass
class Corpus:
    """What was written: modules, headings, characters, and what could not be imported."""

    modules: int = 0
    members: int = 0
    characters: int = 0
    missing: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the .md files go; made if it does not exist")
    corpus = write_corpus(parser.parse_args().folder)
    print(
        f"Python {sys.version.split()[0]}: {corpus.modules} modules, {corpus.members} functions, classes and "
        f"methods, {corpus.characters:,} characters. Not on this platform: {', '.join(corpus.missing) or 'none'}"
    )


def write_corpus(folder: Path) -> Corpus:
    """Write one Markdown file per module into folder; equal for equal interpreters."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus()
    modules = {}
    for name in module_names():
        try:
            modules[name] = import_quietly(name)
        except BaseException:  # not built for this platform; SystemExit from a module that is a script
            corpus.missing.append(name)
    documented: dict[int, Any] = {}  # id → object; held, so that no id is used twice
    order = sorted(modules, key=lambda name: (name != "builtins", name.count("."), name))
    for name in order:  # what several modules export is shown once: by builtins, by a package before its parts
        page = make_page(name, modules[name], documented)
        if page is None:
            continue
        (folder / f"{name}.md").write_text(page.text, encoding="utf-8", newline="\n")
        corpus.modules += 1
        corpus.members += page.members
        corpus.characters += len(page.text)
    return corpus


def module_names() -> list[str]:
    """Every public module of the standard library, submodules included, by name."""
    names = set(ALSO)
    for top in sys.stdlib_module_names:
        if top.startswith("_") or top in SKIPPED:
            continue
        names.add(top)
        spec = importlib.util.find_spec(top)
        if spec is not None and spec.submodule_search_locations and top not in WITHOUT_SUBMODULES:
            names.update(submodules(top, list(spec.submodule_search_locations)))
    return sorted(names)


def submodules(package: str, locations: list[str]) -> Iterator[str]:
    for found in pkgutil.iter_modules(locations):
        name = f"{package}.{found.name}"
        if found.name.startswith("_") or found.name in {"test", "tests"} or SKIPPED_SUBMODULES.fullmatch(name):
            continue
        yield name
        if found.ispkg:
            yield from submodules(name, [f"{location}/{found.name}" for location in locations])


def import_quietly(name: str) -> types.ModuleType:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        module = importlib.import_module(name)
    origin = getattr(module.__spec__, "origin", None) or "built-in"
    library = Path(sysconfig.get_path("stdlib"))
    if origin not in {"built-in", "frozen"}:
        place = Path(origin)
        if "site-packages" in place.parts or not place.is_relative_to(library):
            raise ImportError(f"{name} does not come from the standard library")
    return module


def make_page(name: str, module: types.ModuleType, documented: dict[int, Any]) -> Page | None:
    """The module's page; None if it has nothing to say that another page does not say."""
    about = clean(module.__doc__)
    sections = []
    members = public_members(name, module)
    # A module's functions may be methods of a hidden instance (random.shuffle): they are shown as functions.
    functions = {id(value.__func__) for _, value in members if inspect.ismethod(value)}
    for member, value in members:
        if id(value) in documented:
            continue
        section = describe(f"{name}.{member}", value, level=2, elsewhere=functions)
        if section:
            documented[id(value)] = value
            sections.extend(section)
    if not sections and len(about) < MIN_MODULE_TEXT:
        return None
    title = f"# {name}"
    return Page(name, "\n\n".join(part for part in (title, about, *sections) if part) + "\n", len(sections))


def public_members(name: str, module: types.ModuleType) -> list[tuple[str, Any]]:
    """Functions and classes that belong to the module, by name."""
    listed = getattr(module, "__all__", None)
    members = []
    for member in sorted(set(listed if listed is not None else dir(module))):
        value = getattr(module, member, None)
        if member.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        home = getattr(value, "__module__", None) or name
        # Without __all__, what was imported from elsewhere is not ours; C accelerators are (_struct, posix).
        if listed is None and home.lstrip("_") not in (name, "posix", "nt", "io") and not home.startswith(f"{name}."):
            continue
        members.append((member, value))
    return members


def describe(name: str, value: Any, level: int, elsewhere: set[int]) -> list[str]:
    """The sections of a function, or of a class and its methods; empty if nobody documented it."""
    text = clean(own_docstring(value))
    methods = []
    if inspect.isclass(value):
        making = clean(own_docstring(vars(value).get("__init__")))
        text = "\n\n".join(part for part in (text, making) if part)
        for member, attribute in sorted(attributes(value).items()):
            inner = getattr(attribute, "__func__", attribute)  # classmethod, staticmethod
            if id(inner) not in elsewhere and (inspect.isroutine(inner) or inspect.isdatadescriptor(inner)):
                methods.extend(describe(f"{name}.{member}", inner, level + 1, elsewhere))
    if not text and not methods:
        return []
    heading = f"{'#' * level} {name}"
    call = signature(value, method=level > 2)
    parts = (heading, f"```python\n{name}{call}\n```" if call else "", text)
    return ["\n\n".join(part for part in parts if part), *methods]


def attributes(cls: type) -> dict[str, Any]:
    """Public attributes that the class defines, or inherits from a class that has no page of its own."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        hidden = base.__name__.startswith("_") or any(p.startswith("_") for p in base.__module__.split("."))
        if base is cls or hidden:
            for name, value in vars(base).items():
                if not name.startswith("_"):
                    found.setdefault(name, value)
    return found


def own_docstring(value: Any) -> str | None:
    """The docstring that was written for this very object, not one that it inherits."""
    if isinstance(value, types.NoneType):
        return None
    text = vars(value).get("__doc__") if inspect.isclass(value) else getattr(value, "__doc__", None)
    if not isinstance(text, str) or GENERATED.search(text):
        return None
    return text


def signature(value: Any, method: bool) -> str:
    """The call as `(a, b=1)`; empty where Python does not know it. A default is shown if it is a plain value."""
    if isinstance(value, property) or inspect.isdatadescriptor(value):
        return ""
    try:
        known = inspect.signature(value)
    except Exception:  # C code may name defaults that do not exist yet
        return ""
    parameters = [
        parameter if is_plain(parameter.default) else parameter.replace(default=SOMETHING)
        for parameter in known.parameters.values()
    ]
    if method and parameters and parameters[0].name in {"self", "cls", "type"}:
        del parameters[0]
    return re.sub(r"<(?:[^<>]|<[^<>]*>)*>", "...", str(known.replace(parameters=parameters)))


class Something:
    def __repr__(self) -> str:
        return "..."


SOMETHING = Something()


def is_plain(default: Any) -> bool:
    """False for what differs between machines: objects, the environment, paths."""
    if default is inspect.Parameter.empty or default is None or isinstance(default, bool | int | float):
        return True
    if isinstance(default, tuple):
        return all(map(is_plain, default))
    here = (sys.prefix, sys.base_prefix)
    return isinstance(default, str | bytes) and len(default) < 40 and not any(p in str(default) for p in here)


def clean(docstring: str | None) -> str:
    """A docstring as Markdown: examples fenced, underlined titles bold, nothing that reads as a heading."""
    if not docstring:
        return ""
    lines = inspect.cleandoc(docstring).expandtabs().splitlines()
    out: list[str] = []
    fenced = False
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>")
        if example and not fenced:
            out += ["```python"] if not out or not out[-1] else ["", "```python"]
            fenced = True
        if fenced and not line.strip():
            out.append("```")
            fenced = False
        underline = re.fullmatch(r"([=\-~^*+#])\1{2,}\s*", line)
        if not fenced and underline and out and out[-1].strip():
            alone = len(out) < 2 or not out[-2].strip()
            out[-1:] = [f"**{out[-1].strip()}**"] if alone else [out[-1], ""]
            if alone and i + 1 < len(lines) and lines[i + 1].strip():
                out.append("")
            continue
        out.append(f"\\{line}" if not fenced and line.startswith("#") else line.rstrip())
    if fenced:
        out.append("```")
    return re.sub(r"0x[0-9a-fA-F]{8,}", "0x...", "\n".join(out)).strip()


if __name__ == "__main__":
    main()
