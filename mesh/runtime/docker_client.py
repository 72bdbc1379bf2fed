"""The SDK's client as we need it. To be imported with the first call: the SDK costs 10 MB."""

from __future__ import annotations

from typing import Any

from docker import APIClient


class Client(APIClient):  # type: ignore[misc]  # the SDK has no types
    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """The engine's CA stands: REQUESTS_CA_BUNDLE, which requests would prefer, names those of the web."""
        return super().merge_environment_settings(url, proxies, stream, verify or self.verify, cert)
