"""How an engine's host is read, and what is said when the way to it is barred."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from mesh.runtime import RuntimeUnavailable
from mesh.runtime.docker_ssh import SOCKET, SshTarget, SshTunnel, why_no_ssh
from mesh.runtime.docker_way import barred_by_tls, remote_host


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("ssh://h1", SshTarget("h1", None, None, SOCKET)),
        ("ssh://h1/", SshTarget("h1", None, None, SOCKET)),
        ("ssh://bob@10.0.0.1:2222", SshTarget("10.0.0.1", "bob", 2222, SOCKET)),
        ("ssh://bob@[fd00::1]/run/x/docker.sock", SshTarget("fd00::1", "bob", None, "/run/x/docker.sock")),
    ],
)  # fmt: skip
def test_an_ssh_url_is_read_as_docker_reads_it(url: str, target: SshTarget) -> None:
    assert SshTarget.parse(url) == target


@pytest.mark.parametrize("url", ["ssh://", "ssh://h1:port", "ssh://h1/a b", "ssh://h1/$(reboot)", "ssh://h1/'"])
def test_what_is_no_ssh_url_is_refused(url: str) -> None:
    with pytest.raises(RuntimeUnavailable, match="must be ssh://"):
        SshTarget.parse(url)


def test_a_password_is_refused_and_never_shown() -> None:
    with pytest.raises(RuntimeUnavailable, match="a password in ssh") as refused:
        SshTarget.parse("ssh://bob:hush@h1")
    assert "hush" not in str(refused.value)


def test_a_host_is_never_taken_for_an_option_of_ssh(tmp_path: Path) -> None:
    command = SshTarget("-oProxyCommand=x", None, None, SOCKET).command(tmp_path / "socket")
    assert command.index("--") < command.index("-oProxyCommand=x")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("Host key verification failed.", "is not known to user"),
        ("@@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@@\nHost key verification failed.", "ssh-keygen -R h1"),
        ("bob@h1: Permission denied (publickey).", "it does not let us in"),
        ("ssh: Could not resolve hostname h1: Name or service not known", "through ssh: ssh: Could not resolve"),
        ("", "no answer within 20 s"),
    ],
)
def test_what_ssh_says_becomes_a_sentence(said: str, sentence: str) -> None:
    assert sentence in why_no_ssh("bob@h1", said)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [("denied", "usermod -aG docker"), ("absent", "no Docker engine runs there"), ("", "through ssh: broken")],
)
def test_what_is_found_there_becomes_a_sentence(
    word: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "ssh"
    script.write_text(f"#!/bin/sh\necho Welcome\necho {word}\necho broken >&2\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    tunnel = SshTunnel("ssh://bob@h1")
    for _ in range(2):  # the second time it is told what happened without asking again
        with pytest.raises(RuntimeUnavailable, match=sentence):
            tunnel.open()
    tunnel.close()


def test_killed_agents_leave_one_folder_however_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ssh"
    script.write_text("#!/bin/sh\necho ready\nexec cat\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    lives = [SshTunnel("ssh://bob@h1", tmp_path / "ssh-of-agent") for _ in range(3)]
    assert {str(tunnel.open()["base_url"]) for tunnel in lives} == {f"unix://{tmp_path}/ssh-of-agent/docker.sock"}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["ssh-of-agent"]
    assert (tmp_path / "ssh-of-agent").stat().st_mode & 0o777 == 0o700  # who may use the socket, is root there
    for tunnel in lives:
        tunnel.close()


def test_without_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tunnel = SshTunnel("ssh://h1")
    with pytest.raises(RuntimeUnavailable, match="apt-get install openssh-client"):
        tunnel.open()
    tunnel.close()


@pytest.mark.parametrize(
    ("host", "machine"),
    [
        ("unix:///var/run/docker.sock", None),
        ("tcp://127.0.0.1:2375", None),
        ("ssh://bob@localhost", None),
        ("tcp://10.0.0.7:2376", "10.0.0.7"),
        ("ssh://bob@engines.example:2222/run/docker.sock", "engines.example"),
    ],
)
def test_where_an_engine_runs(host: str, machine: str | None) -> None:
    assert remote_host(host) == machine


def certificate_fault(why: str) -> ssl.SSLCertVerificationError:
    fault = ssl.SSLCertVerificationError(1, "certificate verify failed")
    fault.verify_message = why
    return fault


@pytest.mark.parametrize(
    ("cause", "sentence"),
    [
        (certificate_fault("certificate has expired"), "renew it"),
        (certificate_fault("IP address mismatch, certificate is not valid for '10.0.0.7'"), "subjectAltName"),
        (certificate_fault("unable to get local issuer certificate"), "must be the CA that has signed it"),
    ],
)
def test_why_a_certificate_is_not_believed(cause: ssl.SSLError, sentence: str) -> None:
    assert sentence in str(barred_by_tls("tcp://10.0.0.7:2376", str(cause), cause))


def test_what_is_no_fault_of_tls_is_left_alone() -> None:
    assert barred_by_tls("tcp://10.0.0.7:2376", "refused", ConnectionRefusedError("refused")) is None
