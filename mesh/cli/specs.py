"""The specs that a command is given, checked by all who will have a say."""

from collections.abc import Sequence

from mesh.scheduler.blueprint import draw
from mesh.spec import files as specfile
from mesh.spec.route import RouteSpec
from mesh.spec.service import ServiceSpec


def read_specs(paths: Sequence[str]) -> tuple[list[ServiceSpec], list[RouteSpec]]:
    """The services and routes in these files, folders or standard input.

    Raises:
        SpecError: with every fault, also those that only the scheduler finds.
    """
    specs = [source.spec for source in specfile.read_specs(paths, lambda spec: draw(spec, spec.canonical()))]
    services = [spec for spec in specs if isinstance(spec, ServiceSpec)]
    return services, [spec for spec in specs if isinstance(spec, RouteSpec)]
