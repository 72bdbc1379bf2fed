"""Specs are read from JSON, YAML 1.2 and TOML; every fault says its file and line."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mesh.spec import yaml12
from mesh.spec.files import MAX_FILE, read_specs
from mesh.spec.service import ServiceSpec, SpecError
from mesh.spec.strict_json import DocumentError


def specs(tmp_path: Path, **files: str | bytes) -> dict[str, ServiceSpec]:
    """The services in files such as `web_yaml="…"`, by name."""
    specs = (source.spec for source in read_specs(write(tmp_path, **files)))
    return {spec.name: spec for spec in specs if isinstance(spec, ServiceSpec)}


def write(tmp_path: Path, **files: str | bytes) -> list[str]:
    paths = []
    for name, content in files.items():
        path = tmp_path / name.replace("_", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(str(path))
    return paths


def errors(tmp_path: Path, **files: str | bytes) -> list[str]:
    """What is wrong, without the temporary folder."""
    with pytest.raises(SpecError) as raised:
        read_specs(write(tmp_path, **files))
    return [sentence.replace(f"{tmp_path}/", "") for sentence in raised.value.errors]


# ── what is read ─────────────────────────────────────────────────────────────────────────────


def test_yaml_is_1_2_where_on_and_yes_are_text(tmp_path: Path) -> None:
    found = specs(tmp_path, web_yaml="""
        name: web
        image: web
        env: {A: yes, B: off, C: 0o10, D: 1_000, E: 12:30:00, F: 2024-01-01, G: ~text, H: 1e3}
        traffic: {retries: {on: [reset, 502]}}
        singleton: true
    """)["web"]  # fmt: skip
    assert found.env == {"A": "yes", "B": "off", "C": "8", "D": "1_000", "E": "12:30:00", "F": "2024-01-01",
                         "G": "~text", "H": "1000.0"}  # fmt: skip
    assert found.traffic.retries.on == ["reset", 502]
    assert found.singleton is True


def test_several_documents_lists_and_mappings_hold_several_services(tmp_path: Path) -> None:
    found = specs(
        tmp_path,
        many_yaml="name: a\nimage: x\n---\n---\nservices:\n  b: {image: x}\n  c: {name: c, image: x}\n",
        list_yml="- {name: d, image: x}\n- {name: e, image: x}\n",
        more_json='{"services": [{"name": "f", "image": "x"}]}',
        one_toml='name = "g"\nimage = "x"\n[ports.http]\nport = 80\n',
        some_toml='[services.h]\nimage = "x"\n[services.i]\nimage = "x"\n',
        listed_toml='[[services]]\nname = "j"\nimage = "x"\n',
    )
    assert sorted(found) == list("abcdefghij")
    assert found["g"].ports["http"].port == 80


def test_anchors_are_followed(tmp_path: Path) -> None:
    found = specs(tmp_path, s_yaml="services:\n  a: {image: x, env: &env {K: v}}\n  b: {image: x, env: *env}\n")
    assert found["b"].env == {"K": "v"}


def test_a_folder_gives_its_own_files_in_order(tmp_path: Path) -> None:
    write(tmp_path, b_yaml="name: b\nimage: x\n", a_json='{"name": "a", "image": "x"}', notes_txt="no spec")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", c_yaml="name: c\nimage: x\n")
    assert [source.spec.name for source in read_specs([str(tmp_path)])] == ["a", "b"]


@pytest.mark.parametrize(
    "text", ['{"name": "a", "image": "x"}', "name: a\nimage: x\n", 'name = "a"\nimage = "x"\n', "- name: a\n  image: x"]
)
def test_standard_input_may_have_any_format(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    (source,) = read_specs(["-"])
    assert (source.spec.name, source.file) == ("a", "-")


# ── what is wrong ────────────────────────────────────────────────────────────────────────────


def test_every_fault_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    assert errors(
        tmp_path,
        a_yaml="name: web\nimage: x\nports:\n  http:\n    port: 80\n    target: 0\nreplcias: 3\n---\nname: b\n",
        b_yaml="services:\n  c: {image: x, ttl: x}\n  d: {image: x}\n",
        c_json='{"name": "e",\n "image": }',
    ) == [
        "a.yaml:6: ports.http.target: must be 1..65535, got 0",
        "a.yaml:7: replcias: unknown field (did you mean 'replicas'?)",
        "a.yaml:9: image: an image (docker runtime) or a command (process runtime) is required",
        "b.yaml:2: services.c.ttl: must be a duration such as 250ms, 15s, 5m or 1h, got 'x'",
        "c.json:2: not JSON: expecting value, column 11",
    ]  # fmt: skip


def test_faults_inside_lists_have_their_line(tmp_path: Path) -> None:
    text = "- name: a\n  image: x\n- name: b\n  image: x\n  mounts:\n    - source: /a\n      path: b\n"
    assert errors(tmp_path, s_yaml=text) == ["s.yaml:7: 1.mounts.0.path: must be a path that begins with /, got 'b'"]


BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "a key twice (YAML)": ("s_yaml", "name: a\nimage: x\nimage: y\n", "s.yaml:3: the key 'image' is there twice"),
    "a key twice (JSON)": ("s_json", '{"name": "a", "name": "b"}', "s.json: the key 'name' is there twice"),
    "a key twice (TOML)": ("s_toml", 'name = "a"\nname = "b"\n', "s.toml: not TOML: Cannot overwrite a value"),
    "not YAML": ("s_yaml", "name: a\n  image: x\n", "s.yaml:2: not YAML: mapping values are not allowed here"),
    "a tab": ("s_yaml", "name: a\nports:\n\thttp: 80\n", "s.yaml:3: not YAML: while scanning for the next token"),
    "a control character": ("s_yaml", "name: \x01", "s.yaml: not YAML: unacceptable character #x0001"),
    "a tag": ("s_yaml", "name: !!python/name:os.system a", "s.yaml:1: the tag 'python/name:os.system' is not"),
    "a complex key": ("s_yaml", "? [a]\n: b\n", "s.yaml:1: a key must be a word"),
    "no UTF-8": ("s_yaml", b"name: a\nimage: \xff\n", "s.yaml:2: is not text in UTF-8"),
    "nothing": ("s_yaml", "# only a remark\n", "s.yaml: holds no service"),
    "no object": ("s_yaml", "just text\n", "s.yaml:1: a service spec must be an object, got 'just text'"),
    "an unknown alias": ("s_yaml", "name: *a\n", "s.yaml:1: not YAML: found undefined alias 'a'"),
    "too large": ("s_yaml", b"#" * (MAX_FILE + 1), "s.yaml: is larger than 4 MiB"),
    "deep YAML": ("s_yaml", "[" * 5000, "s.yaml: is nested too deeply"),
    "deep JSON": ("s_json", "[" * 100_000, "s.json: not JSON that can be used: nested too deeply"),
    "deep TOML": ("s_toml", f"a = {'[' * 5000}", "s.toml: is nested too deeply"),
    "too many digits": ("s_yaml", f"name: {'9' * 5000}", "s.yaml:1: not a number: '9999"),
    "an alias of itself": ("s_yaml", "a: &a [*a]\n", "s.yaml:1: is nested too deeply"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_one_sentence(tmp_path: Path, fault: str) -> None:
    file, content, expected = BROKEN[fault]
    (sentence,) = errors(tmp_path, **{file: content})
    assert sentence.startswith(expected)


def test_only_aliases_make_more_values_than_there_are_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml12, "MAX_VALUES", 10)
    assert yaml12.parse_yaml(f"[{'1, ' * 50}1]")[0][0] == [1] * 51
    with pytest.raises(DocumentError, match="aliases count"):
        yaml12.parse_yaml("[&a [1, 1, 1], &b [*a, *a, *a], &c [*b, *b, *b], *c, *c]")


def test_aliases_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
    (sentence,) = errors(tmp_path, s_yaml=f"l0: &l0 [x]\n{levels}\n")
    assert "holds more than 100000 values" in sentence


def test_a_service_in_two_files_is_a_fault(tmp_path: Path) -> None:
    text = "name: web\nimage: x\n"
    assert errors(tmp_path, a_yaml=text, b_yaml=text) == ["b.yaml: service 'web' is already in a.yaml"]


def test_files_that_are_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SpecError) as raised:
        read_specs([str(tmp_path / "no.yaml"), str(empty)])
    assert raised.value.errors == [
        f"{tmp_path}/no.yaml: cannot read it: No such file or directory",
        f"{empty}: the folder holds no .json, .yaml, .yml or .toml file",
    ]


def test_a_further_check_has_its_line_too(tmp_path: Path) -> None:
    def check(spec: ServiceSpec) -> None:
        raise SpecError(["placement.constraints.0: no such thing"])

    paths = write(tmp_path, s_yaml="name: a\nimage: x\nplacement:\n  constraints:\n    - zone\n")
    with pytest.raises(SpecError, match=r"s\.yaml:5: placement\.constraints\.0: no such thing"):
        read_specs(paths, check)
