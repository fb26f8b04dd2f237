"""The libraries that Baton computes and talks with, and their versions."""

import re

from runtime.cli.doctor.node import Finding, Level, Node

AREA = "libraries"
_NEEDED = ("torch", "transformers", "grpcio", "ray")
# One wheel for each CUDA, and one that chooses.
_NIXL = ("nixl", "nixl-cu12", "nixl-cu13")
_PLUGINS = ("UCX", "LIBFABRIC")


def check_libraries(node: Node) -> list[Finding]:
    return [*(_needed(node, package) for package in _NEEDED), *_nixl(node)]


def _needed(node: Node, package: str) -> Finding:
    version = node.around.version(package)
    if version is None:
        return Finding(AREA, package, Level.MISSING, "not installed", f"pip install {package}")
    return Finding(AREA, package, Level.GOOD, version)


def _nixl(node: Node) -> list[Finding]:
    installed = {package: version for package in _NIXL if (version := node.around.version(package)) is not None}
    if not installed:
        return [Finding(AREA, "nixl", Level.MISSING, "not installed", "only transport nixl needs it: pip install nixl")]
    files = [file for package in installed for file in node.files(package)]
    brought = {found[1] for file in files if (found := re.search(r"libplugin_(\w+)\.so", file))}
    what = ", ".join(f"{package} {version}" for package, version in installed.items())
    return [Finding(AREA, "nixl", Level.GOOD, what), *(_plugin(name, name in brought) for name in _PLUGINS)]


def _plugin(name: str, brought: bool) -> Finding:
    if brought:
        return Finding(AREA, f"nixl plugin {name}", Level.GOOD, "there")
    return Finding(AREA, f"nixl plugin {name}", Level.MISSING, "not in the wheel", "install another wheel of nixl")
