"""Debian packages without root: fetched by the machine's own apt, verified by it, unpacked into a folder.

apt keeps its lists in a private folder, so neither root nor an earlier `apt-get update` is needed.
Used for the example's images, for a real Redis and pip where nobody may install, and for the tests' Consul.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

LISTS_AGE = 24 * 3600.0
"""Seconds after which package lists are fetched again."""


class DebsError(Exception):
    """Packages that could not be had; the message says why."""


def cache_folder() -> Path:
    """Where this project keeps what it downloaded."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mesh-orchestrator"


class Apt:
    """The machine's apt with lists of its own. `source`: one sources.list line instead of the machine's."""

    def __init__(self, folder: Path, source: str | None = None) -> None:
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise DebsError("this is no Debian or Ubuntu: there is no apt-get")
        self._folder = folder
        options = {
            "Dir::State::Lists": f"{folder}/lists",
            "Dir::Cache": f"{folder}/cache",
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Debug::NoLocking": "true",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        for name in ("lists/partial", "cache", "archives"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if source is not None:
            (folder / "sources.list").write_text(source + "\n")
            options |= {"Dir::Etc::SourceList": f"{folder}/sources.list", "Dir::Etc::SourceParts": "/dev/null"}
            options |= {"Dir::State::status": "/dev/null"}
        self._options = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Fetches the package lists, unless they are fresh."""
        stamp = self._folder / "lists" / ".fetched"
        if not stamp.exists() or time.time() - stamp.stat().st_mtime > LISTS_AGE:
            self._run("apt-get", "-qq", "--error-on=any", "update")
            stamp.touch()

    def closure(self, roots: Iterable[str], without: Iterable[str] = ()) -> list[str]:
        """`roots` with all that they depend on, less what an image has no use for."""
        omit = set(without)
        queue = [*roots]
        depends = self._depends(queue)
        found: dict[str, None] = {}
        while queue:
            name = queue.pop()
            if name not in found and name not in omit:
                found[name] = None
                queue.extend(depends.get(name, []))
        return sorted(found)

    def _depends(self, packages: Sequence[str]) -> dict[str, list[str]]:
        """What every package reachable from `packages` depends on; of alternatives, the first."""
        depends: dict[str, list[str]] = {}
        package, choice_made = "", False
        for line in self._run("apt-cache", "depends", "--recurse", "--important", *packages).splitlines():
            if not line.startswith(" "):
                package, choice_made = line.strip(), False
                depends.setdefault(package, [])
            elif match := re.match(r" ([ |])(?:Pre)?Depends: ([^<\s:]+)", line):
                if not choice_made:
                    depends[package].append(match[2])
                choice_made = match[1] == "|"  # more alternatives follow
        return depends

    def fetch(self, packages: Sequence[str]) -> list[Path]:
        """The packages' .deb files; what was fetched before is not fetched again."""
        folder = self._folder / "archives"
        wanted = self._run("apt-get", "--print-uris", "download", *packages).splitlines()
        names = [line.split()[1] for line in wanted if line.startswith("'")]
        if len(names) != len(set(packages)):
            raise DebsError(f"apt knows {len(names)} of the {len(set(packages))} packages {' '.join(packages)}")
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            self._run("apt-get", "-qq", "download", *[name.split("_")[0] for name in missing], cwd=folder)
        return [folder / name for name in names]

    def _run(self, command: str, *arguments: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [command, *self._options, *arguments], cwd=cwd, capture_output=True, text=True,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        if done.returncode:
            raise DebsError(f"{command} {arguments[0]}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout


def unpack(debs: Iterable[Path], root: Path) -> None:
    """What the packages hold, as files under `root`; no script of theirs runs."""
    root.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        done = subprocess.run(["dpkg", "-x", str(deb), str(root)], capture_output=True, text=True)
        if done.returncode:
            raise DebsError(f"dpkg -x {deb.name}: {done.stderr.strip()}")


def fingerprint(paths: Iterable[Path]) -> str:
    """One short hash of names and contents."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def machine_apt() -> Apt:
    """The packages of this machine's own release, with fresh lists."""
    apt = Apt(cache_folder() / "apt")
    apt.update()
    return apt


def unpacked(apt: Apt, packages: Sequence[str], name: str) -> Path:
    """A folder that holds just these packages unpacked, kept in the cache under `name` and their content's hash."""
    debs = apt.fetch(packages)
    root = cache_folder() / "unpacked" / f"{name}-{fingerprint(debs)}"
    if not root.exists():
        partial = root.with_name(f"{root.name}.{os.getpid()}")
        unpack(debs, partial)
        partial.rename(root)
    return root
