"""An agent here, its engine on another host: what it runs there is reached there, by everybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.harness import Split
from tests.parts.consul import ConsulServer
from tests.parts.images import tiny_image
from tests.parts.remote import RemoteHost
from tests.patience import eventually

pytestmark = [
    pytest.mark.slow, pytest.mark.docker, pytest.mark.consul, pytest.mark.root, pytest.mark.dig,
    pytest.mark.openssl, pytest.mark.sshd,
]  # fmt: skip


def test_an_agent_for_an_engine_on_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "remote").mkdir()
    with RemoteHost(tmp_path / "remote") as host, ConsulServer(tmp_path / "consul") as consul:
        monkeypatch.setenv("PATH", host.path)
        engine = host.client()
        spec = {
            "name": "web",
            "image": tiny_image(engine),
            "command": ["sh", "-c", "mkdir /www; echo $MESH_REPLICA > /www/index.html; exec httpd -f -p 8080 -h /www"],
            "resources": {"cpu": "10m", "memory": "16Mi"},
            "ports": {"http": {"port": 80, "target": 8080, "protocol": "http"}},
            "health": {"ready": {"http": "/", "interval": "200ms"}},
        }
        with Split(tmp_path, consul.address, "--runtime", "docker", "--docker-host", host.ssh) as split:
            split.start_scheduler("a")
            agent = split.start_agent()
            split.cluster.apply(spec)
            [before] = split.cluster.wait_ready("web", 1)
            assert split.cluster.dig("ready.web.svc.cluster") == [host.address]
            assert split.cluster.get("web") == (200, f"{before}\n")
            assert "--dns-listen IP:53" in str(split.cluster.json("nodes"))

            engine.remove_container(f"mesh-{before}", force=True)
            after = eventually(lambda: [id for id in split.cluster.ready("web") if id != before], "a replacement")
            agent.kill()
            split.start_agent()
            eventually(lambda: split.cluster.get("web") == (200, f"{after[0]}\n"), "the same one, adopted")
            eventually(lambda: len(host.ssh_clients()) == 1, "the end of the ssh of the agent that was killed")
        engine.close()
