"""Folders of the host, and files made of the store's values."""

from typing import Any

import pytest

from mesh.spec.errors import SpecError
from mesh.spec.service import ServiceSpec, parse_spec, trusted_spec


def mounted(*mounts: dict[str, Any]) -> ServiceSpec:
    return parse_spec({"name": "web", "image": "web:1", "mounts": list(mounts)})


def test_what_is_written_comes_back() -> None:
    mounts: list[dict[str, Any]] = [
        {"source": "/etc/ssl", "path": "/etc/ssl", "read_only": True},
        {"config": "site", "path": "/etc/site.conf"},
        {"secret": "key", "path": "/run/key", "mode": "0400"},
        {"content": "a = b", "path": "/etc/a.conf"},
    ]
    spec = mounted(*mounts)
    assert spec.canonical()["mounts"] == mounts
    assert trusted_spec(spec.canonical()) == spec
    assert [mount.is_file for mount in spec.mounts] == [False, True, True, True]
    assert [mount.permissions for mount in spec.mounts[1:]] == [0o444, 0o400, 0o444]


@pytest.mark.parametrize(
    ("mount", "fault"),
    [
        ({"path": "/a"}, "mounts.0: needs exactly one of source, config, secret, content, got none"),
        ({"source": "/a", "config": "b", "path": "/a"},
         "mounts.0: needs exactly one of source, config, secret, content, got source and config"),
        ({"config": "a", "path": "/etc/../a"}, "mounts.0.path: must be the path of a file, without . and .., got "),
        ({"config": "a", "path": "/etc/"}, "mounts.0.path: must be the path of a file"),
        ({"config": "a", "path": "a"}, "mounts.0.path: must be a path that begins with /"),
        ({"config": "a b", "path": "/a"}, "mounts.0.config: must be a word"),
        ({"config": "a", "path": "/a", "mode": 444}, "mounts.0.mode: must be permissions in octal, as text"),
        ({"config": "a", "path": "/a", "mode": "888"}, "mounts.0.mode: must be permissions in octal"),
        ({"config": "a", "path": "/a", "mode": "7777"}, "mounts.0.mode: must be permissions in octal"),
        ({"config": "a", "path": "/a", "read_only": True}, "mounts.0.read_only: is for source"),
        ({"source": "/a", "path": "/a", "mode": "0400"}, "mounts.0.mode: is for files made of"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(mount: dict[str, Any], fault: str) -> None:
    with pytest.raises(SpecError) as refused:
        mounted(mount)
    assert refused.value.errors[0].startswith(fault)
