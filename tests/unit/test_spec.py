"""A spec reads, prints and fails in sentences."""

import json
import re
import string
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.spec.checks import RESERVED_NAMES
from mesh.spec.errors import MAX_ERRORS
from mesh.spec.fields import Part
from mesh.spec.schema import json_schema
from mesh.spec.service import Probe, ServiceSpec, SpecError, parse_spec, parse_spec_json, trusted_spec


def errors(data: Any, name: str | None = None) -> list[str]:
    with pytest.raises(SpecError) as raised:
        parse_spec(data, name)
    return raised.value.errors


def web(**fields: Any) -> dict[str, Any]:
    return {"name": "web", "image": "web:1", **fields}


# ── sentences ────────────────────────────────────────────────────────────────────────────────

ONE_FAULT: dict[str, dict[str, Any]] = {
    "ports.http.target: must be 1..65535, got 0": {"ports": {"http": {"port": 80, "target": 0}}},
    "ports.http.port: must be a whole number, got true": {"ports": {"http": {"port": True}}},
    "ports.http.port: is required": {"ports": {"http": {}}},
    "ports.http: must be an object, got 80": {"ports": {"http": 80}},
    "ports: must be an object, got nothing": {"ports": None},
    "ports.http.protcol: unknown field (did you mean 'protocol'?)": {"ports": {"http": {"port": 80, "protcol": "x"}}},
    "ports.port.prot: unknown field (did you mean 'port'?)": {"ports": {"port": {"port": 80, "prot": 1}}},
    "ports.http.protocol: must be http, tcp or udp, got 'htp' (did you mean 'http'?)": {
        "ports": {"http": {"port": 80, "protocol": "htp"}}
    },
    "ports.b.port: 80 is already used by port 'a'": {"ports": {"a": {"port": 80}, "b": {"port": 80}}},
    "ports.b.host_port: 8080 is already used by port 'a'": {
        "ports": {"a": {"port": 80, "host_port": 8080}, "b": {"port": 81, "host_port": 8080}}
    },
    "replcias: unknown field (did you mean 'replicas'?)": {"replcias": 3},
    "replicas: must be a whole number, got true": {"replicas": True},
    "replicas: must be a whole number, got '3'": {"replicas": "3"},
    "replicas: must be a whole number, got 3.5": {"replicas": 3.5},
    "replicas: must be 0..100000, got -1": {"replicas": -1},
    "replicas: must be 0..100000, got 1000000": {"replicas": 1_000_000},
    "replicas: a singleton has at most 1, got 2": {"replicas": 2, "singleton": True},
    "kind: must be service, global, job or cron, got 'servce' (did you mean 'service'?)": {"kind": "servce"},
    "env.A: must be text, {secret: NAME} or {config: NAME}, got true": {"env": {"A": True}},
    "env.A: must be text, {secret: NAME} or {config: NAME}, got an object": {"env": {"A": {"secrte": "x"}}},
    "env.A B: must be a variable's name, got 'A B'": {"env": {"A B": "x"}},
    "traffic.balance: must be least-request, round-robin, ewma or {hash: client, header:NAME or cookie:NAME}, "
    "got 'random'": {"traffic": {"balance": "random"}},
    "traffic.retries.on.1: must be connect-failure, reset, timeout or a status 400..599, got true": {
        "traffic": {"retries": {"on": ["reset", True]}}
    },
    "traffic.retires: unknown field (did you mean 'retries'?)": {"traffic": {"retires": {}}},
    "traffic.breaker.success_ratio: must be a number 0..1, got 1.5": {"traffic": {"breaker": {"success_ratio": 1.5}}},
    "placement.affinities.1.wieght: unknown field (did you mean 'weight'?)": {
        "placement": {"affinities": [{"service": "a"}, {"service": "b", "wieght": 1}]}
    },
    "placement.affinities.0: needs exactly one of match or service": {"placement": {"affinities": [{}]}},
    "placement.spread.0.targets: must not add up to more than 100%": {
        "placement": {"spread": [{"label": "rack", "targets": {"a": "70%", "b": 40}}]}
    },
    "placement.max_per.rack: must be 1..1000000000, got 0": {"placement": {"max_per": {"rack": 0}}},
    "resources.cpu: must be CPU in cores or millicores such as 0.5 or 250m, got 'x'": {"resources": {"cpu": "x"}},
    "resources.gpu: must be a whole number, got 'one'": {"resources": {"gpu": "one"}},
    "resources: must be an object, got 1": {"resources": 1},
    "limits.memory: must not be below resources.memory": {"limits": {"memory": "1Mi"}},
    "ttl: must be a duration such as 250ms, 15s, 5m or 1h, got 'soon'": {"ttl": "soon"},
    "ttl: must be at most 100 years, got 1e+300": {"ttl": 1e300},
    "ttl: must be a finite number, got inf": {"ttl": float("inf")},
    "ttl: must be a finite number, got nan": {"ttl": float("nan")},
    "replicas: must be a number that 64 bits hold": {"replicas": 10**5000},
    "stop.signal: must be a signal such as SIGTERM, got 'SIGTEM' (did you mean 'SIGTERM'?)": {
        "stop": {"signal": "SIGTEM"}
    },
    "update: max_surge and max_unavailable must not both be zero": {"update": {"max_surge": 0}},
    "update.max_surge: must be a count 0..100000 or a share such as 25%, got 'all'": {"update": {"max_surge": "all"}},
    "health.ready: needs exactly one of http, tcp or exec, got none": {"health": {"ready": {}}},
    "health.ready.interval: must be 50ms or more": {"health": {"ready": {"exec": ["x"], "interval": "1ms"}}},
    "health.ready.port: is required: the service has no ports": {"health": {"ready": {"http": "/"}}},
    "health.ready.tcp: there is no port 'htp' (did you mean 'http'?)": {
        "ports": {"db": {"port": 1}, "http": {"port": 2}},
        "health": {"ready": {"tcp": "htp"}},
    },
    "health.ready.port: is required: several ports, and none is http": {
        "ports": {"a": {"port": 1}, "b": {"port": 2}},
        "health": {"ready": {"http": "/"}},
    },
    "health.alive.exec: must name a command": {"health": {"alive": {"exec": []}}},
    "image: must be a word, got ''": {"image": ""},
    "network: must be a network's name, got 'a b'": {"network": "a b"},
    "network: 'host' gives a replica no address of its own: name a network that does": {"network": "host"},
    "command: must name a program": {"command": []},
    "command: must be a list, got 'sleep 5'": {"command": "sleep 5"},
    "tags.0: 'ready' is a reserved word": {"tags": ["ready"]},
    "tags.0: must be a DNS label (a-z, 0-9 and -, beginning with a letter), got '3'": {"tags": ["3"]},
    "mounts.0.path: must be a path that begins with /, got 'x'": {"mounts": [{"source": "/a", "path": "x"}]},
    "mounts.0.path: '/data' is already used by volumes.data.path": {
        "volumes": {"data": {"path": "/data"}},
        "mounts": [{"source": "/a", "path": "/data"}],
    },
    "schedule: is required for kind cron": {"kind": "cron"},
    "job: only kinds job and cron have it, this is kind service": {"job": {}},
    "scale.min: must not be above max, got 5 and 2": {"scale": {"min": 5, "max": 2}},
    "scale.metrics.0: needs exactly one of in_flight, requests_per_second, cpu, memory or prometheus": {
        "scale": {"metrics": [{}]}
    },
    "env.A: must be text, got half a character (a lone surrogate)": {"env": {"A": "\ud800"}},
}  # fmt: skip


@pytest.mark.parametrize("sentence", ONE_FAULT)
def test_a_fault_is_one_sentence_with_its_path(sentence: str) -> None:
    assert errors(web(**ONE_FAULT[sentence])) == [sentence]


def test_every_fault_is_told_at_once_also_across_fields() -> None:
    assert errors({
        "name": "Web",
        "replicas": -1,
        "ports": {"a": {"port": 80}, "b": {"port": 80}},
        "ttl": "x",
        "colour": "red",
        "health": {"ready": {"tcp": "c"}},
    }) == [
        "replicas: must be 0..100000, got -1",
        "ttl: must be a duration such as 250ms, 15s, 5m or 1h, got 'x'",
        "colour: unknown field",
        "name: must be a DNS label (a-z, 0-9 and -, beginning with a letter), got 'Web'",
        "image: an image (docker runtime) or a command (process runtime) is required",
        "ports.b.port: 80 is already used by port 'a'",
        "health.ready.tcp: there is no port 'c'",
    ]  # fmt: skip


def test_a_broken_field_raises_no_fault_elsewhere() -> None:
    """`health` names a port that is there, though broken."""
    spec = web(ports={"http": {"port": 0}}, health={"ready": {"http": "/", "port": "http"}})
    assert errors(spec) == ["ports.http.port: must be 1..65535, got 0"]


@pytest.mark.parametrize("name", ["", "Web", "1web", "web-", "-web", "w_b", "web.eu", "x" * 41, "wéb", *RESERVED_NAMES])
def test_bad_names_are_refused(name: str) -> None:
    (sentence,) = errors(web(name=name))
    assert sentence.startswith("name: ")


def test_the_name_is_the_keys_last_part() -> None:
    assert parse_spec({"image": "x"}, "web").name == "web"
    assert errors(web(), "shop") == ["name: 'web' must equal the key's last part, 'shop'"]
    assert errors({"image": "x", "name": 3}, "shop") == ["name: must be text, got 3"]


@pytest.mark.parametrize("data", [None, [], "x", 3, True])
def test_what_is_no_object_is_no_spec(data: object) -> None:
    (sentence,) = errors(data)
    assert sentence.startswith("a service spec must be an object, got ")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"{", "not JSON: expecting property name enclosed in double quotes, column 2 (line 1)"),
        (b'{"image": "a", "image": "b"}', "the key 'image' is there twice"),
        (b'{"ttl": NaN}', "not JSON: NaN is no number"),
        (b"\xff", "not JSON: not text in UTF-8"),
        (b"[" * 100_000, "not JSON that can be used: nested too deeply"),
        (b'{"replicas": ' + b"9" * 5000 + b"}", "not JSON that can be used: a number has too many digits"),
        (b"null", "a service spec must be an object, got nothing"),
    ],
)
def test_a_key_that_holds_no_spec_is_a_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(SpecError) as raised:
        parse_spec_json(data, "web")
    assert raised.value.errors == [sentence]


def test_what_is_nested_too_deeply_is_refused() -> None:
    nested: Any = {}
    for _ in range(5000):
        nested = {"a": nested}
    (sentence,) = errors(web(scale={"behavior": nested}))
    assert sentence.endswith("is nested too deeply (at most 20 levels)")


def test_so_many_errors_are_counted() -> None:
    found = errors(web(**{f"field{number}": 1 for number in range(10_000)}))
    assert len(found) == MAX_ERRORS + 1
    assert found[-1] == f"and {10_000 - MAX_ERRORS} more errors"


def test_errors_stay_short() -> None:
    found = errors(web(env={"A" * 5000: "x" * 200_000}, image=" " * 5000, **{"y" * 5000: 1}))
    assert all(len(sentence) < 300 for sentence in found)


# ── reading ──────────────────────────────────────────────────────────────────────────────────


def test_numbers_in_env_and_command_are_text() -> None:
    spec = parse_spec(web(env={"PORT": 8080, "RATIO": 0.5}, command=["sleep", 100]))
    assert spec.env == {"PORT": "8080", "RATIO": "0.5"}
    assert spec.command == ["sleep", "100"]


def test_counts_stand_beside_cpu_and_memory() -> None:
    spec = parse_spec(web(resources={"cpu": "250m", "gpu": 2}))
    assert (spec.resources.cpu, spec.resources.counts) == (250, {"gpu": 2})
    assert spec.canonical()["resources"] == {"cpu": "250m", "gpu": 2}


@pytest.mark.parametrize(
    ("probe", "ports", "expected"),
    [
        (Probe(http="/"), {"a": {"port": 1}}, "a"),
        (Probe(http="/"), {"a": {"port": 1}, "b": {"port": 2, "protocol": "http"}}, "b"),
        (Probe(http="/", port="a"), {"a": {"port": 1}, "b": {"port": 2, "protocol": "http"}}, "a"),
        (Probe(tcp="b"), {"a": {"port": 1}, "b": {"port": 2}}, "b"),
        (Probe(exec=["x"]), {"a": {"port": 1}}, None),
    ],
)
def test_a_probe_knows_its_port(probe: Probe, ports: dict[str, Any], expected: str | None) -> None:
    assert parse_spec(web(ports=ports)).probe_port(probe) == expected


def test_a_trusted_spec_ignores_what_a_newer_version_added() -> None:
    assert trusted_spec(web(newer=1, ports={"http": {"port": 80, "newer": 2}})).ports["http"].port == 80


def test_the_digest_sees_what_needs_a_release() -> None:
    digest = parse_spec(web(ttl="5s", env={"A": "1", "B": "2"})).digest()
    assert parse_spec(web(env={"B": "2", "A": "1"}, ttl=5, replicas=9, scale={"max": 20})).digest() == digest
    assert parse_spec(web(env={"A": "1", "B": "3"})).digest() != digest


# ── properties ───────────────────────────────────────────────────────────────────────────────

labels = st.from_regex(r"[a-z]([-a-z0-9]{0,12}[a-z0-9])?", fullmatch=True).filter(
    lambda name: name not in RESERVED_NAMES
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
durations = st.integers(50, 10**8).map(lambda millis: millis / 1000)
port_numbers = st.integers(1, 65535)
shares = st.integers(0, 10**6).map(lambda millionths: millionths / 10**6)
counts_or_shares = st.integers(1, 1000) | st.integers(1, 100).map("{}%".format)
paths = st.from_regex(r"/[a-z]{1,8}", fullmatch=True)


def part(required: dict[str, Any] | None = None, **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required or {}, optional=optional)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """Valid specs, as an operator may write them."""
    ports = draw(st.dictionaries(labels, part({"port": port_numbers}, target=port_numbers,
                 protocol=st.sampled_from(["http", "tcp", "udp"]), host_port=port_numbers),
                 max_size=3))  # fmt: skip
    for index, port in enumerate(ports.values()):
        port |= {"port": 1000 + index}
        if "host_port" in port:
            port["host_port"] = 2000 + index
    probes = [part({"exec": st.lists(texts, min_size=1, max_size=3)}, interval=durations, rise=st.integers(1, 9))]
    if sound := [name for name, port in ports.items() if port.get("protocol") != "udp"]:
        probes += [part({"tcp": st.sampled_from(sound)}, timeout=durations),
                   part({"http": paths, "port": st.sampled_from(sound)}, start=durations)]  # fmt: skip
    memory = draw(st.integers(1, 2**40))
    return draw(part(
        {"name": labels, "image": labels, "ports": st.just(ports)},
        command=st.lists(texts, max_size=3).map(lambda words: ["run", *words]),
        env=st.dictionaries(st.text(string.ascii_letters, min_size=1), texts | st.fixed_dictionaries({"secret": labels})
                            | st.fixed_dictionaries({"config": labels}), max_size=3),
        replicas=st.integers(0, 100_000),
        tags=st.lists(labels, max_size=3, unique=True),
        resources=part({"memory": st.just(memory)}, cpu=st.integers(0, 1000).map("{}m".format), gpu=st.integers(0, 8)),
        limits=st.just({}) if memory < 2**26 else part(memory=st.just(memory * 2)),
        health=part(ready=st.one_of(probes), alive=st.one_of(probes)),
        placement=part(strategy=st.sampled_from(["spread", "binpack"]), constraints=st.lists(texts, max_size=2),
                       affinities=st.lists(part({"service": labels}, weight=st.integers(-100, 100)), max_size=2),
                       spread=st.lists(part({"label": labels}, targets=st.dictionaries(labels, shares.map(
                           lambda share: f"{share * 25:.4f}%"), max_size=3)), max_size=2),
                       max_per_node=st.integers(1, 9), max_per=st.dictionaries(labels, st.integers(1, 9), max_size=2)),
        update=part(max_surge=counts_or_shares, max_unavailable=counts_or_shares, min_healthy=durations),
        restart=part(delay=st.just("2s"), reset_after=durations),
        stop=part(signal=st.sampled_from(["SIGINT", "SIGQUIT"]), drain=durations),
        volumes=st.dictionaries(labels, part({"path": st.just("/data")}), max_size=1),
        discovery=st.sampled_from(["vip", "direct"]),
        ttl=durations,
        traffic=part(balance=st.sampled_from(["ewma", {"hash": "client"}, {"hash": "header:x-user"}]),
                     retries=part(budget=shares, on=st.lists(st.sampled_from(["reset", 502]), max_size=3)),
                     breaker=part(success_ratio=st.floats(0, 1), max_ejected=shares),
                     limits=part(rate=st.floats(0, 1e6))),
        scale=part(min=st.integers(0, 1), max=st.integers(1, 9),
                   metrics=st.lists(part({"in_flight": st.integers(1, 9)}), max_size=2)),
    ))  # fmt: skip


@given(specs())
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_what_is_printed_reads_back_as_the_same_spec(written: dict[str, Any]) -> None:
    spec = parse_spec(written)
    canonical = spec.canonical()
    again = parse_spec(json.loads(json.dumps(canonical)))
    assert again == spec
    assert again.canonical() == canonical
    assert again.digest() == spec.digest()
    assert parse_spec(dict(reversed(written.items()))).digest() == spec.digest()
    assert msgspec.json.decode(msgspec.json.encode(canonical)) == canonical


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["5s", "1Gi", "250m", "10%", "tcp", "http"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(sorted({*ServiceSpec.model_fields, *Probe.model_fields, "http", "secret", "hash", "retries"}))
        | st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(ServiceSpec.model_fields)), values))
@settings(max_examples=200)
def test_anything_is_a_spec_or_sentences_without_our_libraries_words(data: dict[str, Any]) -> None:
    try:
        spec = parse_spec(data)
    except SpecError as error:
        for sentence in error.errors:
            assert re.match(r"\S.*: [a-z'0-9]", sentence), sentence
            assert not re.search(r"Input should|should be|Value error|Assertion failed|\[type=", sentence), sentence
            assert "\n" not in sentence
    else:
        msgspec.json.encode(spec.canonical())


# ── schema ───────────────────────────────────────────────────────────────────────────────────


def test_the_schema_describes_every_field() -> None:
    schema = json_schema()
    parts = {"ServiceSpec": schema, **schema["$defs"]}
    for name, body in parts.items():
        for field, value in body["properties"].items():
            part = parts.get(value.get("$ref", "").removeprefix("#/$defs/"), {})
            assert value.get("description") or part.get("description"), f"{name}.{field} needs a docstring"


def test_the_schema_allows_other_resources_and_refuses_other_fields() -> None:
    parts = json_schema()["$defs"]
    assert parts["Resources"]["additionalProperties"] == {"type": "integer", "minimum": 0, "maximum": 10**9}
    assert "counts" not in parts["Resources"]["properties"]
    assert parts["PortSpec"]["additionalProperties"] is False


def test_the_schema_knows_the_notations() -> None:
    schema = json_schema()
    pattern = schema["properties"]["ttl"]["anyOf"][0]["pattern"]
    assert re.fullmatch(pattern, "1h30m")
    assert not re.fullmatch(pattern, "soon")
    assert schema["$defs"]["PortSpec"]["properties"]["port"]["maximum"] == 65535
    assert json.loads(json.dumps(schema)) == schema


def test_every_part_forbids_what_it_does_not_know() -> None:
    assert all(part.model_config["extra"] == "forbid" and part.model_config["frozen"] for part in Part.__subclasses__())


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ({"min_healthy_time": "3s"}, {"min_healthy": "3s"}),
        ({"auto_rollback": False}, {"on_failure": "pause"}),
        ({"auto_rollback": True}, {}),
        ({"auto_rollback": False, "failure_action": "continue"}, {"on_failure": "continue"}),
        ({"auto_rollback": False, "failure_action": "rollback"}, {"on_failure": "pause"}),
        ({"auto_rollback": True, "failure_action": "pause"}, {}),
    ],
)
def test_other_systems_words_for_an_update_mean_the_same(words: dict[str, Any], same: dict[str, Any]) -> None:
    def update(body: dict[str, Any]) -> ServiceSpec:
        return parse_spec({"name": "web", "image": "web:1", "update": body})

    assert update(words) == update(same)


@pytest.mark.parametrize(
    ("update", "fault"),
    [
        ({"auto_rollback": "yes"}, "update.auto_rollback: must be true or false, got 'yes'"),
        ({"failure_action": "pause", "on_failure": "pause"},
         "update.failure_action: is another word for on_failure: leave one of them out"),
        ({"auto_rollback": True, "failure_action": "pase"},
         "update.on_failure: must be rollback, pause or continue, got 'pase' (did you mean 'pause'?)"),
    ],
)  # fmt: skip
def test_other_systems_words_are_no_unknown_fields(update: dict[str, Any], fault: str) -> None:
    with pytest.raises(SpecError) as raised:
        parse_spec({"name": "web", "image": "web:1", "update": update})
    assert raised.value.errors == [fault]
