# SPDX-License-Identifier: Apache-2.0
"""Folders of images: which of them are the classes, and what they hold, links followed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path

from shared_scripts.arguments import InputError
from vision_scripts.part import Part, Source, reading, shown

logger = logging.getLogger(__name__)

SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
KINDS = ", ".join(SUFFIXES)
SPLITS = frozenset(
    ("dev", "eval", "evaluation", "test", "testing", "train", "training")
    + ("trainval", "val", "valid", "validation")
)
ARCHIVERS = "__MACOSX"
"""Folder of hidden files that one system's archives bring along."""


@dataclass
class Tree:
    """What a folder holds, links followed.

    Attributes:
        root: the folder.
        images: folder -> the images directly in it.
        folders: below the root.
        others: files that are no images.
        lost: links that lead nowhere, or back to a folder that they lie in.
        away: links that lead out of the root.
    """

    root: Path
    images: dict[Path, list[Path]] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    lost: list[Path] = field(default_factory=list)
    away: list[Path] = field(default_factory=list)

    def visit(self, folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Tree:
        """Take in a folder and those below it.

        Args:
            folder: the root, or one below it.
            above: device and inode of the folders that lead to it: a link to one of them would
                never end.
        """
        with reading(shown(folder), "a folder"):
            state = folder.stat()
            above |= {(state.st_dev, state.st_ino)}
            for path in sorted(folder.iterdir()):
                if not path.name.startswith(".") and path.name != ARCHIVERS:
                    self._take(path, above)
        return self

    def _take(self, path: Path, above: frozenset[tuple[int, int]]) -> None:
        # `resolve` raises for a link to itself.
        if path.is_symlink() and not Path(realpath(path)).is_relative_to(realpath(self.root)):
            self.away.append(path)
        if path.is_dir():
            state = path.stat()
            if (state.st_dev, state.st_ino) in above:
                self.lost.append(path)
            else:
                self.folders.append(path)
                self.visit(path, above)
        elif path.is_file() and path.suffix.lower() in SUFFIXES:
            self.images.setdefault(path.parent, []).append(path)
        else:
            dead = path.is_symlink() and not path.exists()
            (self.lost if dead else self.others).append(path)

    def parts(self, path: Path) -> tuple[str, ...]:
        """Return the names that lead from the root to a folder."""
        return path.relative_to(self.root).parts


def from_folder(folder: Path, argument: str) -> Part:
    """Read a folder with one folder of images per class, however deep these lie.

    Raises:
        InputError: there is none, or it is not clear which folders are the classes.
    """
    if not folder.is_dir():
        raise InputError(f"{argument} {shown(folder)}: there is no such folder")
    tree = Tree(folder).visit(folder)
    where = f"{argument} {shown(folder)}"
    classes = _classes(tree, where)
    names, depth = sorted(path[-1] for path in classes), len(classes[0])
    numbers = {name: number for number, name in enumerate(names)}
    found = sorted(
        (numbers[tree.parts(at)[depth - 1]], path)
        for at, own in tree.images.items()
        if at != folder
        for path in own
    )
    _report(tree, where)
    images = [Source(shown(path), path.read_bytes) for _, path in found]
    return Part(images, [label for label, _ in found], tuple(names), shown(folder))


def _classes(tree: Tree, where: str) -> list[tuple[str, ...]]:
    """Return the folder of each class, as the names that lead to it.

    The outermost folders that hold images have to lie equally deep. The innermost of the levels
    that lead to them is the classes'. A level with one name only, such as a folder around all the
    others or one called "images" in each class, is none.
    """
    outer = [path for path in tree.images if path != tree.root and not _inside(path, tree)]
    if not outer:
        _refuse_empty(tree, 1, where)
        raise InputError(
            f"{where}: has no folders; it needs one per class, with its images (labels in a "
            "metadata file are not read: a table of them goes into --train_file)"
        )
    paths = sorted(tree.parts(path) for path in outer)
    _refuse_mixed(paths, where)
    levels = [sorted(set(names)) for names in zip(*paths, strict=True)]
    varied = [level for level, names in enumerate(levels) if len(names) > 1]
    level = varied[-1] if varied else len(levels) - 1
    _refuse_splits(levels, tree.root, where)
    _refuse_empty(tree, level + 1, where)
    folders = sorted({path[: level + 1] for path in paths})
    _refuse_doubles(folders, where)
    if level or len(levels) > 1:
        logger.warning(
            "%s: folders of %d levels could be the classes; those taken are %s (such as %s)",
            *(where, len(levels), listed(sorted(levels[level])), _joined(folders[0])),
        )
    return folders


def _inside(path: Path, tree: Tree) -> bool:
    """Return whether a folder lies in one that holds images itself, the root left out."""
    above = path.parents[: max(0, len(tree.parts(path)) - 1)]
    return any(parent in tree.images for parent in above)


def _refuse_mixed(paths: Sequence[tuple[str, ...]], where: str) -> None:
    flat, deep = min(paths, key=len), max(paths, key=len)
    if len(flat) != len(deep):
        raise InputError(
            f"{where}: images lie in folders of different depth, such as {_joined(flat)} and "
            f"{_joined(deep)}, so it is not clear which folders are the classes: have all classes "
            "on one level"
        )


def _refuse_splits(levels: Sequence[Sequence[str]], root: Path, where: str) -> None:
    for level, names in enumerate(levels):
        if len(names) > 1 and SPLITS.issuperset(name.lower() for name in names):
            argument = where.split()[0]
            fitting = [n for n in names if ("train" in n.lower()) == (argument == "--train_dir")]
            around = root.joinpath(*(above[0] for above in levels[:level]))
            example = shown(around / (fitting or names)[0])
            raise InputError(
                f"{where}: its folders {', '.join(names)} are splits of the data, not classes: "
                f"give a folder of one split, with its classes, such as {argument} {example}"
            )


def _refuse_empty(tree: Tree, depth: int, where: str) -> None:
    filled = {above for path in tree.images for above in (path, *path.parents)}
    for path in tree.folders:
        parts = tree.parts(path)
        if len(parts) <= depth and path not in filled:
            raise InputError(
                f"{where}: the folder {_joined(parts)!r} has no image ({KINDS}); "
                "fill it or take it out"
            )


def _refuse_doubles(folders: Sequence[tuple[str, ...]], where: str) -> None:
    seen: dict[str, list[str]] = {}
    for path in folders:
        seen.setdefault(path[-1], []).append(_joined(path))
    twice = {name: found for name, found in seen.items() if len(found) > 1}
    for found in twice.values():
        raise InputError(
            f"{where}: the classes would be {listed(sorted(seen))}, of which {listed(list(twice))} "
            f"are in several folders, such as {' and '.join(found[:2])}: give a folder with one "
            "folder per class, or other names where they are different classes"
        )


def _joined(parts: Sequence[str]) -> str:
    return shown(Path(*parts))


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return names as text, of many the first ones."""
    return ", ".join(shown(name) for name in names[:most]) + (", ..." if len(names) > most else "")


def _report(tree: Tree, where: str) -> None:
    """Count what a user may not expect."""
    deeper = [path for at, own in tree.images.items() if _inside(at, tree) for path in own]
    loose = tree.others + tree.images.get(tree.root, [])
    texts = (
        "images are in folders within a class's folder, such as %s: they are of that class",
        f"files are left out, such as %s: in no class's folder, or no image ({KINDS})",
        "links are left out, such as %s: they lead nowhere, or in a circle",
        "links lead out of this folder, such as %s: what they lead to is read",
    )
    away = [path for path in tree.away if path not in tree.lost]
    for found, text in zip((deeper, loose, tree.lost, away), texts, strict=True):
        if found:
            logger.warning(f"%s: %d {text}", where, len(found), shown(found[0]))
