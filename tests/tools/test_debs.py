"""Packages without root: what depends on what, and what is fetched again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import debs

DEPENDS = """\
redis-server
  PreDepends: init-system-helpers
  Depends: redis-tools
    redis-tools-next
redis-tools
 |Depends: libssl3
  Depends: libssl1.1
  Depends: <virtual>
    provider
  Depends: libc6
init-system-helpers
libssl3
  Depends: libc6
libc6
"""


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> debs.Apt:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(debs.Apt, "_run", lambda self, *arguments, cwd=None: DEPENDS)
    return debs.Apt(tmp_path)


def test_a_closure_follows_the_first_of_alternatives(apt: debs.Apt) -> None:
    assert apt.closure(["redis-server"]) == ["init-system-helpers", "libc6", "libssl3", "redis-server", "redis-tools"]


def test_what_is_left_out_brings_nothing_along(apt: debs.Apt) -> None:
    assert apt.closure(["redis-server"], without={"redis-tools"}) == ["init-system-helpers", "redis-server"]


def test_without_apt_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(debs.DebsError, match="no Debian or Ubuntu"):
        debs.Apt(tmp_path)


def test_a_fingerprint_is_of_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one.deb", tmp_path / "two.deb"
    one.write_bytes(b"a")
    two.write_bytes(b"b")
    both = debs.fingerprint([one, two])
    assert both == debs.fingerprint([two, one])
    two.write_bytes(b"c")
    assert both != debs.fingerprint([one, two])
