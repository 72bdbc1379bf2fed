"""Mistakes are one `error:` line and an exit code, never a traceback; help is there for everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from mesh.cli.app import app
from tests.cli.conftest import Kv, Mesh

COMMANDS = {"dev", "agent", "scheduler", "dns", "proxy", "store", "doctor", "apply", "delete", "status", "nodes",
            "scale", "logs", "exec", "events", "resolve", "validate", "schema", "version", "simulate",
            "plan", "explain", "rebalance", "cron", "top", "autoscale", "rollout", "promote", "history",
            "confirm-loss", "drain", "pause", "activate"}  # fmt: skip


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def shell(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mesh.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environ})


def test_every_command_is_there_with_help_and_an_example(mesh: Mesh) -> None:
    assert commands().keys() == COMMANDS
    for name, command in commands().items():
        summary = command.help.splitlines()[0]
        assert summary.endswith((".", "agents.")), f"{name}: {summary}"
        assert command.epilog.startswith(f"Example: mesh {name}")
        assert all(option.help for option in command.params), name
        assert mesh(name, "--help").code == 0


def test_help_groups_the_commands(mesh: Mesh) -> None:
    out = mesh("--help").out
    for panel in ("Run it", "Say what should run", "See what is", "Look inside", "Check and explain"):
        assert panel in out
    assert mesh("-h").out == out
    assert [(mesh(*group).code, mesh(*group).err) for group in ((), ("rollout",))] == [(2, ""), (2, "")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sttus"], "No such command 'sttus'. Did you mean 'status'?"),
        (["status", "--jsn"], "No such option: --jsn (Possible options: --json)"),
        (["apply"], "Missing argument 'FILE…|DIR|-'"),
        (["logs", "web", "--tail", "many"], "Invalid value for '--tail'"),
        (["status", "--store", "ftp://x"], "--store: must be host:port, http://host:port or https://host:port"),
        (["status", "--config", "no.toml"], "cannot read the config file no.toml: No such file or directory"),
        (["agent", "--runtime", "podman"], "--runtime: must be auto, docker or process, got 'podman'"),
        (["agent", "--label", "zone"], "--label: must be name=value, got 'zone'"),
        (["dns", "--table", "no.json"], "--table: no.json is not a file"),
        (["status", "--token-file", "no"], "--token-file: cannot read the token"),
        (["status", "--root", "a//b"], "the root of all keys must be words separated by /"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(mesh: Mesh, arguments: list[str], sentence: str) -> None:
    result = mesh(*arguments)
    assert result.code == 2
    assert result.err.startswith(f"error: {sentence}")
    assert result.err.count("error:") == 1
    assert result.out == ""


def test_a_store_that_does_not_answer_is_a_sentence(surroundings: Path) -> None:
    done = shell("status", "--store", "127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: cannot reach the store at http://127.0.0.1:9")
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(surroundings: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "mesh.cli", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        assert done.stdout is not None
        done.stdout.close()
        assert done.stderr is not None
        assert done.stderr.read() == b""


def test_completion_is_offered(surroundings: Path) -> None:
    done = shell("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "mesh" in done.stdout


def test_settings_reach_the_store(mesh: Mesh, kv: Kv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESH_STORE")
    (tmp_path / "config.toml").write_text(f'[store]\naddress = "{kv.store}"\n')
    assert mesh("status", "--config", "config.toml").code == 0
    monkeypatch.setenv("CONSUL_HTTP_ADDR", kv.store)
    assert mesh("status").code == 0
    assert mesh("status", "--root", "elsewhere").code == 0


@pytest.mark.parametrize("module", ["pydantic", "aiohttp", "docker", "numpy", "consul", "rich", "yaml", "uvloop"])
def test_the_command_line_itself_imports_little(module: str) -> None:
    code = f"import sys, mesh.cli.app; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
