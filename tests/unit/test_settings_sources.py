"""Settings come from flags, MESH_…, Consul's variables, a config file, a running `mesh dev`; in this order."""

import json
import os
from pathlib import Path

import pytest

from mesh.model import Capacity
from mesh.settings import RESERVED, AgentSettings
from mesh.settings.sources import SettingsError, Sources, host_name, running_dev


def sources(tmp_path: Path, config: str | None = None, **environ: str) -> Sources:
    """Sources that see nothing of this machine but what is given."""
    path = None
    if config is not None:
        path = tmp_path / "config.toml"
        path.write_text(config)
    home = {"XDG_CONFIG_HOME": str(tmp_path / "no-config"), "XDG_STATE_HOME": str(tmp_path / "state")}
    return Sources.read(path, {**home, **environ})


def agent_of(found: Sources) -> AgentSettings:
    return found.agent(found.store())


def run_dev(tmp_path: Path, pid: int, store: str = "http://127.0.0.1:18500") -> None:
    folder = tmp_path / "state/mesh/dev"
    folder.mkdir(parents=True)
    info = {"pid": pid, "store": store, "dns": "127.0.0.1:5353", "admin": "http://127.0.0.1:7070", "newer": 1}
    (folder / "dev.json").write_text(json.dumps(info))


CONFIG = '[store]\naddress = "file:8500"\nroot = "team"\n'


def test_each_layer_yields_to_the_one_above(tmp_path: Path) -> None:
    run_dev(tmp_path, os.getpid())
    consul, ours = {"CONSUL_HTTP_ADDR": "consul:1"}, {"MESH_STORE": "mesh:2"}
    assert sources(tmp_path, CONFIG, **consul, **ours).store(address="flag:3").address == "http://flag:3"
    assert sources(tmp_path, CONFIG, **consul, **ours).store().address == "http://mesh:2"
    assert sources(tmp_path, CONFIG, **consul).store().address == "http://consul:1"
    assert sources(tmp_path, CONFIG).store().address == "http://file:8500"
    assert sources(tmp_path).store().address == "http://127.0.0.1:18500"


def test_without_anything_the_store_is_the_local_one(tmp_path: Path) -> None:
    assert sources(tmp_path).store().address == "http://127.0.0.1:8500"
    assert sources(tmp_path, MESH_STORE="").store().root == "mesh"


@pytest.mark.parametrize("pid", [2**22 + 1, -1, 10**30])
def test_a_mesh_dev_that_has_ended_is_not_found(tmp_path: Path, pid: int) -> None:
    run_dev(tmp_path, pid)
    assert sources(tmp_path).dev is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": "x"}', "\xff"])
def test_a_broken_dev_json_is_no_mesh_dev(tmp_path: Path, content: str) -> None:
    (tmp_path / "dev.json").write_text(content, encoding="latin-1")
    assert running_dev(tmp_path) is None


def test_tokens_come_from_variables_or_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert sources(tmp_path, CONSUL_HTTP_TOKEN="t").store().token == "t"
    assert sources(tmp_path, CONSUL_HTTP_TOKEN="t", MESH_TOKEN_FILE=str(file)).store().token == "from-file"
    assert sources(tmp_path, MESH_TOKEN="t").store(token_file=file).token == "from-file"
    assert sources(tmp_path, f'[store]\ntoken_file = "{file}"\n').store().token == "from-file"
    assert "from-file" not in repr(sources(tmp_path).store(token_file=file))
    with pytest.raises(SettingsError, match=r"^CONSUL_HTTP_TOKEN_FILE: cannot read the token: "):
        sources(tmp_path, CONSUL_HTTP_TOKEN_FILE="/nowhere").store()


def test_tls_comes_from_consuls_variables(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("")
    variables = {
        "CONSUL_HTTP_ADDR": "c:8501",
        "CONSUL_HTTP_SSL": "true",
        "CONSUL_HTTP_SSL_VERIFY": "false",
        "CONSUL_CACERT": f"{file}",
        "CONSUL_CLIENT_CERT": f"{file}",
        "CONSUL_CLIENT_KEY": f"{file}",
    }
    store = sources(tmp_path, **variables).store()
    assert (store.address, store.verify) == ("https://c:8501", False)
    assert (store.ca_file, store.cert_file, store.key_file) == (file, file, file)
    with pytest.raises(SettingsError, match="CA file /nowhere does not exist"):
        sources(tmp_path, CONSUL_CACERT="/nowhere").store()


@pytest.mark.parametrize("address", ["ftp://x", "http://", "http://x:port", "unix:///x", "http://x:99999"])
def test_bad_addresses_are_refused_with_their_origin(tmp_path: Path, address: str) -> None:
    with pytest.raises(SettingsError, match=r"^CONSUL_HTTP_ADDR: must be host:port, http://host:port or https://"):
        sources(tmp_path, CONSUL_HTTP_ADDR=address).store()


def test_an_agents_settings_are_converted(tmp_path: Path) -> None:
    config = '[agent]\nlabels = {zone = "a"}\nproxy_workers = 2\nupstreams = ["9.9.9.9"]\nsession_ttl = "15s"\n'
    found = sources(
        tmp_path, config, MESH_NODE="n1", MESH_DNS_LISTEN="127.0.0.1:5353,[::1]:5353", DOCKER_HOST="unix:///d"
    )
    agent = found.agent(found.store(), labels=["disk=ssd,rack=r1"], proxy_trust=["10.0.0.0/8,::1", "192.0.2.7"])
    assert (agent.node, agent.proxy_workers, agent.session_ttl, agent.docker_host) == ("n1", 2, 15.0, "unix:///d")
    assert (agent.dns_listen, agent.upstreams) == (("127.0.0.1:5353", "[::1]:5353"), ("9.9.9.9",))
    assert agent.labels == {"disk": "ssd", "rack": "r1"}
    assert agent.reserved == RESERVED
    kept = found.agent(found.store(), reserved=["cpu=200m,memory=1Gi", "gpu=1"]).reserved
    assert kept == Capacity(cpu=200, memory=2**30, resources={"gpu": 1})
    assert agent.proxy_trust == ("10.0.0.0/8", "::1/128", "192.0.2.7/32")
    assert found.scheduler(found.store()).name == host_name()
    assert found.embedded(listen="127.0.0.1:1").listen == "127.0.0.1:1"
    assert found.dev_settings(None, state=tmp_path).state == tmp_path


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"MESH_RUNTIME": "podman"}, "MESH_RUNTIME: must be auto, docker or process, got 'podman'"),
        ({"MESH_DNS_WORKERS": "0"}, "MESH_DNS_WORKERS: must be a count from 1 to 9999, got '0'"),
        ({"MESH_SESSION_TTL": "soon"}, "MESH_SESSION_TTL: must be a duration such as 250ms"),
        ({"MESH_ADMIN_LISTEN": "7070"}, "MESH_ADMIN_LISTEN: must be address:port such as 127.0.0.1:8500, got '7070'"),
        ({"MESH_DNS_LISTEN": "x:99999"}, "MESH_DNS_LISTEN: must be address:port"),
        ({"MESH_RESERVED": "cpu=much"}, "MESH_RESERVED: must be CPU in cores or millicores"),
        ({"MESH_LABELS": "zone"}, "MESH_LABELS: must be name=value, got 'zone'"),
        (
            {"MESH_PROXY_TRUST": "10.0.0.1/8"},
            "MESH_PROXY_TRUST: must be a network such as 10.0.0.0/8: 10.0.0.1/8 has host",
        ),
        ({"MESH_NODE": "Not_A_Label"}, "the node's name must be a DNS label"),
    ],
)
def test_a_bad_setting_says_where_it_came_from(tmp_path: Path, variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as raised:
        agent_of(sources(tmp_path, **variables))
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("[store\n", "not TOML: "),
        ("[stor]\n", "unknown section [stor] (did you mean 'store'?)"),
        ("store = 1\n", "store: must be a section, [store]"),
        ("[agent]\nlabel = 1\n", "agent.label: unknown setting (did you mean 'labels'?)"),
        ("[store]\nroot = 5\n", "store.root: must be text, got 5"),
        ("[agent]\ndns_workers = true\n", "agent.dns_workers: must be a count from 1 to 9999, got True"),
    ],
)
def test_a_bad_config_file_says_where(tmp_path: Path, config: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as raised:
        agent_of(sources(tmp_path, config))
    assert str(raised.value).startswith(f"{tmp_path}/config.toml: {sentence}")


def test_a_config_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read the config file .*/no\.toml: No such file"):
        Sources.read(tmp_path / "no.toml", {})
    with pytest.raises(SettingsError, match=r"cannot read the config file /nowhere"):
        Sources.read(None, {"MESH_CONFIG": "/nowhere"})


def test_the_usual_config_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "mesh").mkdir()
    (tmp_path / "mesh/config.toml").write_text(CONFIG)
    found = Sources.read(None, {"XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)})
    assert (found.store().address, found.store().root) == ("http://file:8500", "team")


def test_the_admin_token_is_that_of_the_agent_asked(tmp_path: Path) -> None:
    run_dev(tmp_path, os.getpid())
    (tmp_path / "state/mesh/dev/admin.token").write_text("secret\n")
    found = sources(tmp_path)
    assert found.admin_token("http://127.0.0.1:7070") == "secret"
    assert found.admin_token("http://10.0.0.1:7070") != "secret"
    assert sources(tmp_path, MESH_ADMIN_TOKEN="mine").admin_token("http://10.0.0.1:7070") == "mine"
