"""Where settings come from: flags, `MESH_…`, Consul's own variables, a config file, a running `mesh dev`.

Each of these is a layer, and a setting is taken from the first layer, in this order, that has it. What is wrong with a
setting is said together with the place it came from.
"""

import ipaddress
import json
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Self, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from mesh import units
from mesh.model import Capacity
from mesh.settings import (
    AgentSettings,
    DevInfo,
    DevSettings,
    EmbeddedStoreSettings,
    SchedulerSettings,
    Share,
    StoreSettings,
)
from mesh.suggestion import suggestion

_CONSUL_VARIABLES = {
    "address": "CONSUL_HTTP_ADDR",
    "token": "CONSUL_HTTP_TOKEN",
    "token_file": "CONSUL_HTTP_TOKEN_FILE",
    "ca_file": "CONSUL_CACERT",
    "cert_file": "CONSUL_CLIENT_CERT",
    "key_file": "CONSUL_CLIENT_KEY",
    "verify": "CONSUL_HTTP_SSL_VERIFY",
}
_SECTIONS: dict[str, type] = {
    "store": StoreSettings,
    "agent": AgentSettings,
    "scheduler": SchedulerSettings,
    "dev": DevSettings,
    "embedded": EmbeddedStoreSettings,
}
_FLAGS = {"address": "store", "labels": "label", "upstreams": "upstream", "proxy_trust": "trust"}
"""Settings whose flag has another name."""
_CHOICES = {
    "runtime": ("auto", "docker", "process"),
    "publish": ("auto", "published", "direct"),
    "vips": ("auto", "route", "loopback"),
}
_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class SettingsError(ValueError):
    """A setting that cannot be used: which, where it came from, and what is wrong."""


@dataclass(frozen=True)
class _Layer:
    values: Mapping[str, Any]
    origin: Callable[[str], str]  # of a setting's name: `--store`, `MESH_STORE`, `/etc/mesh/config.toml: store.address`


@dataclass(frozen=True)
class Sources:
    """Everything settings are taken from, read once per process."""

    environ: Mapping[str, str]
    file: Mapping[str, Any]
    file_path: Path | None
    dev: DevInfo | None

    @classmethod
    def read(cls, config: Path | None = None, environ: Mapping[str, str] | None = None) -> Self:
        """Reads the config file (`config`, MESH_CONFIG, or the first that exists) and looks for a `mesh dev`.

        Raises:
            SettingsError: if the config file that was asked for is not there, or any is not readable.
        """
        environ = os.environ if environ is None else environ
        path = _config_path(config, environ)
        return cls(environ, _read_config(path) if path else {}, path, running_dev(_dev_folder(environ)))

    def admin_token(self, admin: str) -> str | None:
        """Of the agent at the URL `admin`: MESH_ADMIN_TOKEN, or the file of the `mesh dev` or agent on this machine."""
        if token := self.environ.get("MESH_ADMIN_TOKEN"):
            return token
        is_dev = self.dev is not None and self.dev.admin == admin
        folder = _dev_folder(self.environ) if is_dev else state_folder("agent", self.environ)
        try:
            return (folder / "admin.token").read_text().strip()
        except OSError:
            return None

    def _layers(self, section: str, flags: Mapping[str, Any]) -> list[_Layer]:
        prefix = "MESH_" if section in ("store", "agent") else f"MESH_{section.upper()}_"
        names = [field.name for field in fields(_SECTIONS[section])] + ["token_file"]
        variables = {name: prefix + name.upper() for name in names}
        if section == "store":
            variables["address"] = "MESH_STORE"
        return [
            _Layer({name: value for name, value in flags.items() if value not in (None, (), [])}, _flag),
            self._variables(variables),
            self._variables(_CONSUL_VARIABLES if section == "store" else {"docker_host": "DOCKER_HOST"}),
            _Layer(self.file.get(section, {}), lambda name: f"{self.file_path}: {section}.{name}"),
            _Layer({"address": self.dev.store, "root": self.dev.root} if self.dev and section == "store" else {},
                   lambda _: "dev.json"),
        ]  # fmt: skip

    def _variables(self, names: Mapping[str, str]) -> _Layer:
        found = {name: self.environ[variable] for name, variable in names.items() if self.environ.get(variable)}
        return _Layer(found, lambda name: names[name])

    def store(self, **flags: Any) -> StoreSettings:
        layers = self._layers("store", flags)
        settings = _filled(StoreSettings, layers, address=self._address(layers), token=_token(layers))
        for which, path in (("CA", settings.ca_file), ("certificate", settings.cert_file), ("key", settings.key_file)):
            if path and not path.is_file():
                raise SettingsError(f"the store's {which} file {path} does not exist")
        if not re.fullmatch(r"[-\w.]+(/[-\w.]+)*", settings.root):
            raise SettingsError(f"the root of all keys must be words separated by /, got {settings.root!r}")
        return settings

    def _address(self, layers: Sequence[_Layer]) -> str:
        for layer in layers:
            if "address" in layer.values:
                secure = self.environ.get("CONSUL_HTTP_SSL", "").lower() in ("1", "true")
                return _store_url(layer.values["address"], layer.origin("address"), secure=secure)
        return StoreSettings().address

    def agent(self, store: StoreSettings, **flags: Any) -> AgentSettings:
        defaults = {"node": host_name(), "state": state_folder("agent", self.environ)}
        settings = _filled(AgentSettings, self._layers("agent", flags), defaults, store=store)
        if not _NODE_NAME.fullmatch(settings.node):
            raise SettingsError(
                f"the node's name must be a DNS label (a-z, 0-9 and -), got {settings.node!r}; set --node"
            )
        return settings

    def scheduler(self, store: StoreSettings, **flags: Any) -> SchedulerSettings:
        return _filled(SchedulerSettings, self._layers("scheduler", flags), {"name": host_name()}, store=store)

    def embedded(self, **flags: Any) -> EmbeddedStoreSettings:
        defaults = {"data": state_folder("store", self.environ)}
        return _filled(EmbeddedStoreSettings, self._layers("embedded", flags), defaults)

    def dev_settings(self, store: StoreSettings | None, **flags: Any) -> DevSettings:
        defaults = {"state": dev_state(self.environ)}
        return _filled(DevSettings, self._layers("dev", flags), defaults, store=store)


def host_name() -> str:
    """This host's name as a DNS label."""
    label = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-")
    return label[:63] or "node"


def state_folder(what: str, environ: Mapping[str, str]) -> Path:
    """/var/lib/mesh/<what> for root, else below $XDG_STATE_HOME."""
    return Path("/var/lib/mesh", what) if os.geteuid() == 0 else _user_state(environ) / what


def dev_state(environ: Mapping[str, str]) -> Path:
    """The folder of `mesh dev`: the same for root, so that one CLI call finds it."""
    return _user_state(environ) / "dev"


def _dev_folder(environ: Mapping[str, str]) -> Path:
    """Where to look for a `mesh dev`: MESH_DEV_STATE names that of one that was started with --state."""
    return Path(environ["MESH_DEV_STATE"]) if environ.get("MESH_DEV_STATE") else dev_state(environ)


def _user_state(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_STATE_HOME")
    return Path(base, "mesh") if base else Path.home() / ".local/state/mesh"


def running_dev(state: Path) -> DevInfo | None:
    """The `mesh dev` that runs with this state folder, if one does."""
    try:
        written = json.loads((state / "dev.json").read_bytes())
        info = DevInfo(**{field.name: written[field.name] for field in fields(DevInfo) if field.name in written})
    except (OSError, ValueError, TypeError):
        return None
    return info if isinstance(info.pid, int) and info.pid > 0 and _runs(info.pid) else None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:  # it runs, as another user
        return True
    except (OSError, OverflowError):
        return False
    return True


def _config_path(config: Path | None, environ: Mapping[str, str]) -> Path | None:
    asked = config or (Path(environ["MESH_CONFIG"]) if environ.get("MESH_CONFIG") else None)
    if asked:
        return asked
    home = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    usual = (home / "mesh/config.toml", Path("/etc/mesh/config.toml"))
    return next((path for path in usual if path.is_file()), None)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read the config file {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None
    for section, values in data.items():
        if section not in _SECTIONS:
            raise SettingsError(f"{path}: unknown section [{section}]{suggestion(section, _SECTIONS)}")
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: {section}: must be a section, [{section}]")
        known = {field.name for field in fields(_SECTIONS[section])} - {"store"}
        known |= {"token_file"} if section == "store" else set()
        for name in values.keys() - known:
            raise SettingsError(f"{path}: {section}.{name}: unknown setting{suggestion(name, known)}")
    return data


def _flag(name: str) -> str:
    return f"--{_FLAGS.get(name, name).replace('_', '-')}"


def _token(layers: Sequence[_Layer]) -> str | None:
    for layer in layers:
        if token := layer.values.get("token"):
            return str(token)
        if file := layer.values.get("token_file"):
            try:
                return Path(file).expanduser().read_text().strip()
            except (OSError, ValueError) as error:
                raise SettingsError(f"{layer.origin('token_file')}: cannot read the token: {error}") from None
    return None


def _store_url(value: object, origin: str, *, secure: bool) -> str:
    """`host:port` or a URL, as a URL without a slash at its end."""
    text = str(value).strip()
    if "://" not in text:
        text = f"{'https' if secure else 'http'}://{text}"
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise SettingsError(f"{origin}: must be host:port, http://host:port or https://host:port, got {value!r}")
    return text.rstrip("/")


_Kind = TypeVar("_Kind")


def _filled(
    kind: type[_Kind], layers: Sequence[_Layer], defaults: Mapping[str, Any] | None = None, **given: Any
) -> _Kind:
    """`kind` with each field as given, from the first layer that has it, from `defaults`, or its own default."""
    hints = get_type_hints(kind)
    values = {**(defaults or {}), **given}
    for field in fields(kind):  # type: ignore[arg-type]
        layer = next((layer for layer in layers if field.name in layer.values), None)
        if layer is None or field.name in given:
            continue
        try:
            values[field.name] = _converted(field.name, hints[field.name], layer.values[field.name])
        except ValueError as error:
            raise SettingsError(f"{layer.origin(field.name)}: {error}") from None
    return kind(**values)


def _converted(name: str, hint: Any, value: Any) -> Any:
    kind = get_args(hint)[0] if isinstance(hint, UnionType) else get_origin(hint) or hint
    if kind is not str:
        converted = _CONVERTERS[kind](value)
        check = check_listen if name.endswith("listen") else check_network if name.endswith("trust") else None
        return tuple(map(check, converted)) if check else converted
    if not isinstance(value, str):
        raise ValueError(f"must be text, got {value!r}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"must be {', '.join(_CHOICES[name][:-1])} or {_CHOICES[name][-1]}, got {value!r}")
    if name == "engine_address":
        return check_address(value)
    if name == "docker_host":
        return check_engine(value)
    return check_listen(value) if name.endswith("listen") else value


def check_address(value: str) -> str:
    """An IP address: an engine publishes ports on no name.

    Raises:
        ValueError: with a sentence.
    """
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"must be an IP address such as 10.77.0.11, got {value!r}") from None


def check_engine(value: str) -> str:
    """Where a Docker engine is, as its own client has it. What follows `ssh://` is told by who goes there.

    Raises:
        ValueError: with a sentence.
    """
    if not re.match(r"(unix|ssh)://|(tcp|https?)://[^/]+:\d+", value):
        raise ValueError(f"must be unix:///socket, tcp://host:port or ssh://[user@]host, got {value!r}")
    return value


def check_listen(value: str) -> str:
    """`address:port`, `[v6]:port` or `:port`.

    Raises:
        ValueError: with a sentence.
    """
    _, colon, port = value.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"must be address:port such as 127.0.0.1:8500, got {value!r}")
    return value


def check_network(value: str) -> str:
    """A network such as 10.0.0.0/8, or an address.

    Raises:
        ValueError: with a sentence.
    """
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise ValueError(f"must be a network such as 10.0.0.0/8: {error}") from None


def _count(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[1-9]\d{0,3}", str(value)):
        raise ValueError(f"must be a count from 1 to 9999, got {value!r}")
    return int(value)


def _path(value: Any) -> Path:
    return Path(value).expanduser()


def _words(value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"must be a list of texts, got {value!r}")
    return tuple(word for item in items for part in item.split(",") if (word := part.strip()))


def _pairs(value: Any) -> dict[str, str]:
    """`zone=eu-1,disk=ssd`, a list of such, or a table."""
    if isinstance(value, Mapping):
        return {str(name): str(item) for name, item in value.items()}
    pairs = [word.partition("=") for word in _words(value)]
    for name, equals, _ in pairs:
        if not equals or not name:
            raise ValueError(f"must be name=value, got {name!r}")
    return {name: item for name, _, item in pairs}


def _capacity(value: Any) -> Capacity:
    """`cpu=200m,memory=512Mi,gpu=1`, a list of such, or a table."""
    amounts = _pairs(value)
    counts = {name: _count(count) for name, count in amounts.items() if name not in ("cpu", "memory")}
    cpu, memory = units.parse_cpu(amounts.get("cpu", "0")), units.parse_memory(amounts.get("memory", "0"))
    return Capacity(cpu=cpu, memory=memory, resources=counts)


def _truth(value: Any) -> bool:
    word = str(value).lower()
    if word not in ("true", "false", "1", "0"):
        raise ValueError(f"must be true or false, got {value!r}")
    return word in ("true", "1")


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    int: _count,
    bool: _truth,
    float: units.parse_duration,
    Share: units.parse_share,
    Path: _path,
    tuple: _words,
    Mapping: _pairs,
    Capacity: _capacity,
}
