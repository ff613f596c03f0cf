"""Which files of a folder tree are read: hidden, ignored and looping entries aside, and what ragadapt wrote."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from ragadapt.config import ReadConfig
from ragadapt.corpus.decode import Unreadable
from ragadapt.corpus.paths import printable, read_bounded
from ragadapt.errors import InvalidConfiguration

_GITIGNORE_BYTES = 200_000  # every file is held against every rule of it
_RULES = 5_000
_STARS = 4  # in one rule; a file's name is held against it in the fourth power of its length
_NEVER = ("/.git/", "__pycache__/", "node_modules/", ".ipynb_checkpoints/")  # other programs' stores, never documents


@dataclass(frozen=True, slots=True)
class Found:
    """A file to read. name: posix path relative to the folder that was given. problem: why it is not read, or "".
    left_out: it is read under another name, or is no document by what is known of it. unlisted: a folder, of which
    nobody knows what is in it."""

    path: Path
    name: str
    problem: str = ""
    left_out: bool = False
    unlisted: bool = False


@dataclass(slots=True)
class Ignored:
    """How many entries the rules left out, for the message when nothing remains."""

    hidden: int = 0
    by_gitignore: int = 0
    by_pattern: int = 0

    def __str__(self) -> str:
        counts = (
            (self.hidden, "hidden"),
            (self.by_gitignore, "ignored by .gitignore"),
            (self.by_pattern, "left out by include or exclude"),
        )
        return ", ".join(f"{n} {what}" for n, what in counts if n)


def compile_patterns(patterns: Iterable[str], setting: str) -> GitIgnoreSpec | None:
    """The patterns in .gitignore syntax; None for no patterns. Raises InvalidConfiguration for a malformed one."""
    lines = [p for p in patterns if p.strip()]
    if not lines:
        return None
    for line in lines:
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError as error:
            raise InvalidConfiguration(
                f"{setting} pattern {line!r} is not accepted: {error}. Use .gitignore syntax: '*.md', 'drafts/'."
            ) from error
    return GitIgnoreSpec.from_lines(lines)


def walk(root: Path, config: ReadConfig, ignored: Ignored, inside: Sequence[Path] = ()) -> Iterator[Found]:
    """The files under `root` in a stable order; entries that cannot be followed come with their problem.

    inside: the other files and folders that were given; a link that leads out of all of them is followed if
    config.follow_links says so.
    """
    rules = _Rules(root, config, ignored)
    given = [os.path.normcase(os.path.realpath(path)) for path in (root, *inside)]
    seen = {os.path.realpath(root): "the folder itself"}
    linked: list[tuple[Path, str]] = []
    yield from _folder(root, "", rules, seen, linked)
    while linked:  # links last: an entry is read under its own name where it has one in the tree
        path, name = linked.pop(0)
        real = os.path.realpath(path)
        if not os.path.exists(real):  # noqa: PTH110 — realpath of a loop is still a string
            yield Found(path, name, "a link that leads nowhere, or in a circle")
        elif not config.follow_links and not _is_inside(real, given):
            yield Found(path, name, "a link that leads out of the documents; read.follow_links = true follows it")
        elif real in seen:
            yield Found(path, name, f"a link to {seen[real]}, which is read already", left_out=True)
        elif Path(real).is_dir():
            seen[real] = name
            yield from _folder(path, name + "/", rules, seen, linked)
        else:
            seen[real] = name
            yield Found(path, name)


def _is_inside(real: str, given: Iterable[str]) -> bool:
    real = os.path.normcase(real)
    return any(real == top or real.startswith(top.rstrip(os.sep) + os.sep) for top in given)


def _folder(
    folder: Path, prefix: str, rules: _Rules, seen: dict[str, str], linked: list[tuple[Path, str]]
) -> Iterator[Found]:
    stack = [(folder, prefix)]
    while stack:
        folder, prefix = stack.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            name = prefix or printable(folder.name)
            yield Found(folder, name, f"folder cannot be listed: {error.strerror or error}", unlisted=True)
            continue
        if _is_ours({entry.name for entry in entries}, folder):
            name = prefix or printable(Path(os.path.realpath(folder)).name)
            yield Found(folder, name, "a retriever of ragadapt, not documents", left_out=True)
            continue
        if problem := rules.enter(folder, prefix):
            yield Found(folder / ".gitignore", prefix + ".gitignore", problem)
        below = []
        for entry, name in zip(entries, _names([entry.name for entry in entries]), strict=True):
            path, name = Path(entry.path), prefix + name
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            if not rules.accept(name, is_folder):
                continue
            real = os.path.realpath(path)
            if entry.is_symlink() or os.path.normcase(real) != os.path.normcase(
                Path(os.path.realpath(folder), entry.name)  # junctions on Windows are not symlinks to Python 3.11
            ):
                linked.append((path, name))
            elif is_folder:
                seen[real] = name
                below.append((path, name + "/"))
            elif entry.name.startswith(".") and entry.name.endswith(".answers.jsonl"):  # of `store.answers_file`
                yield Found(path, name, "a language model's answers kept by ragadapt, not documents")
            elif entry.is_file():
                seen[real] = name
                yield Found(path, name)
            else:
                yield Found(path, name, "not a regular file")
        stack.extend(reversed(below))


def _names(names: Sequence[str]) -> Iterator[str]:
    """Each name of a folder in the one form that ids have; where two would get the same, one keeps its own form."""
    taken = {name for name in names if shown(name) == name}
    for raw in names:
        name = shown(raw)
        if name != raw:
            if name in taken:
                name = printable(raw)
            while name in taken:
                name = name.replace("\\", "\\\\")
            taken.add(name)
        yield name


def shown(name: str) -> str:
    """A file's name in its id: letters and accents composed, whatever the file system stores, and always text."""
    return printable(unicodedata.normalize("NFC", name))


def _is_ours(names: set[str], folder: Path) -> bool:
    """Whether the folder with these entries is a saved retriever, the unfinished build of one, or vectors for one."""
    beside = (({"build.json", "stages"}, ".build"), ({"vectors.json", "vectors.npy"}, ".vectors"))
    return "ragadapt.json" in names or any(
        parts <= names and folder.name.startswith(".") and folder.name.endswith(end) for parts, end in beside
    )


class _Rules:
    """Hidden names, .gitignore files of every level (those above the folder included), include and exclude."""

    def __init__(self, root: Path, config: ReadConfig, ignored: Ignored) -> None:
        self.config, self.ignored = config, ignored
        self.include = compile_patterns(config.include, "include")
        self.exclude = compile_patterns(config.exclude, "exclude")
        self.never = GitIgnoreSpec.from_lines(_NEVER)
        self.specs: list[tuple[str, GitIgnoreSpec]] = []  # (prefix of names below it, patterns)
        self.above: list[tuple[str, GitIgnoreSpec]] = []  # (path from that folder down to the root, patterns)
        if config.gitignore:
            self.above = _above(root)

    def enter(self, folder: Path, prefix: str) -> str:
        """Take up the folder's own rules; why they cannot be, or ""."""
        self.specs = [(p, spec) for p, spec in self.specs if prefix.startswith(p)]
        spec, problem = _read_gitignore(folder) if self.config.gitignore else (None, "")
        if spec is not None:
            self.specs.append((prefix, spec))
        return problem

    def accept(self, name: str, is_folder: bool) -> bool:
        base = name.rpartition("/")[2]
        tested = name + "/" if is_folder else name
        if self.never.match_file(tested):
            return False
        if base.startswith(".") and not self.config.hidden:
            self.ignored.hidden += base not in (".git", ".gitignore", ".gitattributes")
            return False
        if base == ".gitignore":
            return False
        if self._git_ignores(tested):
            self.ignored.by_gitignore += 1
            return False
        left_out = self.exclude is not None and self.exclude.match_file(tested)
        if not is_folder and self.include is not None:
            left_out = left_out or not self.include.match_file(tested)
        self.ignored.by_pattern += left_out
        return not left_out

    def _git_ignores(self, name: str) -> bool:
        for prefix, spec in reversed(self.specs):  # the nearest file that has an opinion wins
            verdict = spec.check_file(name.removeprefix(prefix)).include
            if verdict is not None:
                return bool(verdict)
        for lead, spec in self.above:
            verdict = spec.check_file(lead + name).include
            if verdict is not None:
                return bool(verdict)
        return False


def _above(root: Path) -> list[tuple[str, GitIgnoreSpec]]:
    """The .gitignore files between the repository's top and the folder, nearest first.

    A file that ignores the folder itself is left out: the user named the folder, so it is wanted.
    """
    root = Path(os.path.realpath(root))
    found = []
    for folder in root.parents if not (root / ".git").exists() else ():
        lead = root.relative_to(folder).as_posix() + "/"
        spec, _ = _read_gitignore(folder)
        if spec is not None and not spec.check_file(lead).include:
            found.append((lead, spec))
        if (folder / ".git").exists():
            return found
    return []  # no repository: those files speak of something else


def _read_gitignore(folder: Path) -> tuple[GitIgnoreSpec | None, str]:
    """The folder's rules, None without any, and what of them is not applied, or ""."""
    try:
        data = read_bounded(folder / ".gitignore", _GITIGNORE_BYTES)
    except OSError:
        return None, ""
    except Unreadable as error:
        return None, f"{error}; no rules are taken from it"
    if data is None:
        return None, f"over-size: more than {_GITIGNORE_BYTES:,} bytes; no rules are taken from it"
    accepted: list[str] = []
    slow = 0
    for line in data.decode("utf-8", "replace").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if len(re.findall(r"\*+", line)) > _STARS or len(accepted) == _RULES:
            slow += 1
            continue
        try:
            GitIgnoreSpec.from_lines([line])
        except ValueError:
            continue  # git, too, passes over a line that it cannot read
        accepted.append(line)
    limits = f"those with more than {_STARS} stars, or after the first {_RULES:,}"
    problem = f"{slow:,} of its rules are not applied: {limits}" if slow else ""
    return GitIgnoreSpec.from_lines(accepted), problem
