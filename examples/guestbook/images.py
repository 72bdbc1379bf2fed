"""The guestbook's two images, made from the machine's own Debian or Ubuntu packages: no registry, no root.

    PYTHONPATH=examples python -m guestbook.images

apt fetches and verifies the packages, dpkg unpacks them, and the engine imports the folder.
An image carries the hash of all that went into it, so what is there already is not made again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools import debs

HERE = Path(__file__).parent
LABEL = "guestbook.content"

UNUSED = {"debconf", "dpkg", "init-system-helpers", "libdb5.3", "libgssapi-krb5-2", "libnsl2", "lsb-base",
          "media-types", "perl-base", "sysvinit-utils", "adduser", "ucf", "libfile-find-rule-perl"}  # fmt: skip
"""What packages depend on for their installation, or for modules that nothing here uses."""

TRIMMED = [f"usr/share/{name}" for name in ("doc", "man", "locale", "lintian", "bug", "perl5")]

LINKED = ("bin", "lib", "lib64", "sbin")
"""Since Debian 12 these are links into /usr; older packages still carry files under the old names."""


class ImageError(Exception):
    """An image could not be made; the message says why."""


@dataclass(frozen=True)
class Image:
    tag: str
    packages: Sequence[str]
    command: str  # JSON, as in a Dockerfile
    files: Sequence[Path] = field(default=())  # of the example, put under /app/guestbook


WEB = Image(
    "guestbook-web:1", ["python3-minimal", "libpython3-stdlib", "dash"], '["python3", "-m", "guestbook.web"]',
    [HERE / name for name in ("__init__.py", "web.py", "redis.py", "resolve.py", "entries.py")],
)  # fmt: skip
REDIS = Image("guestbook-redis:1", ["redis-server", "dash"], '["redis-server", "--protected-mode", "no"]')


def make(image: Image, apt: debs.Apt) -> bool:
    """Makes the image unless the engine has it with this very content; True if it was made."""
    packages = apt.fetch(apt.closure(image.packages, without=UNUSED))
    content = debs.fingerprint([*packages, *image.files, Path(__file__)])
    if _docker("image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', image.tag) == content:
        return False
    with tempfile.TemporaryDirectory(prefix="guestbook-image-") as folder:
        root, archive = Path(folder, "root"), Path(folder, "image.tar")
        fill(root, image, packages)
        _run("tar", "-C", str(root), "--owner=0", "--group=0", "-cf", str(archive), ".")
        changes = [f"LABEL {LABEL}={content}", f"CMD {image.command}", "WORKDIR /app", "USER 65534",
                   "ENV PYTHONUNBUFFERED=1"]  # fmt: skip
        _run("docker", "import", *[f"--change={change}" for change in changes], str(archive), image.tag)
    return True


def fill(root: Path, image: Image, packages: Sequence[Path]) -> None:
    """The image's files under `root`."""
    (root / "usr").mkdir(parents=True)
    for name in LINKED:
        (root / "usr" / name).mkdir()
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        archive = root.with_name("package.tar")
        with archive.open("wb") as output:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=output, check=True)
        _run("tar", "-C", str(root), "--keep-directory-symlink", "-xf", str(archive))
    for name in TRIMMED:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in ("app", "data", "dev", "etc", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(exist_ok=True)
    for name in ("data", "tmp"):  # a new named volume takes the mode of the folder it is mounted on
        (root / name).chmod(0o1777)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    (root / "etc" / "nsswitch.conf").write_text("hosts: files dns\n")
    if not (root / "bin" / "sh").exists():
        (root / "bin" / "sh").symlink_to("dash")
    if image.files:
        (root / "app" / "guestbook").mkdir()
    for file in image.files:
        shutil.copy(file, root / "app" / "guestbook")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ImageError(f"{' '.join(command[:2])}: {done.stderr.strip()}")


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True).stdout.strip()


def make_all(say: Callable[[str], None]) -> None:
    """Both images. Raises `ImageError` or `debs.DebsError`."""
    apt = debs.machine_apt()
    for image in (WEB, REDIS):
        say(f"{image.tag}: {'made from Debian packages' if make(image, apt) else 'is here already'}")


def main() -> None:
    try:
        make_all(print)
    except (ImageError, debs.DebsError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
