"""Small images for tests, made from Debian packages and imported: no registry, no build."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from tools import debs

FOLDERS = ("bin", "dev", "etc", "proc", "sys", "tmp")


def tiny_image(client: Any) -> str:
    """busybox alone (2 MB): sh, httpd, nc. Its wget crashes, and httpd alone as process 1 ignores SIGTERM."""
    root = debs.unpacked(debs.machine_apt(), ["busybox-static"], "busybox")
    return _imported(client, "mesh-test-tiny", root, root / "bin" / "busybox")


def python_image(client: Any) -> str:
    """python3 with its standard library, and busybox for a shell (45 MB)."""
    apt = debs.machine_apt()
    root = debs.unpacked(apt, [*apt.closure(["python3-minimal", "libpython3-stdlib"]), "busybox-static"], "python")
    return _imported(client, "mesh-test-python", root, root / "bin" / "busybox")


def _imported(client: Any, name: str, root: Path, busybox: Path) -> str:
    """The tag of an image that holds `root`, and busybox under the names of its programs."""
    tag = root.name.rpartition("-")[2]
    if client.images(f"{name}:{tag}", quiet=True):
        return f"{name}:{tag}"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder in FOLDERS:
            if not (root / folder).exists():
                tar.addfile(_entry(folder, tarfile.DIRTYPE))
        tar.add(root, ".")
        for program in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
            if not (root / "bin" / program).exists():
                tar.addfile(_entry(f"bin/{program}", tarfile.SYMTYPE, "busybox"))
    client.import_image_from_data(archive.getvalue(), repository=name, tag=tag)
    return f"{name}:{tag}"


def _entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = kind, target, 0o1777 if name == "tmp" else 0o755
    return entry
