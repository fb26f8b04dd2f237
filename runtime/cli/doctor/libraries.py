"""The libraries that Baton computes and talks with, and their versions."""

import re
import sys

from runtime.cli.doctor.node import Finding, Level, Node

AREA = "libraries"
_NEEDED = ("torch", "transformers", "grpcio", "ray")
# One wheel for each CUDA, and one that chooses.
_NIXL = ("nixl", "nixl-cu12", "nixl-cu13")
NIXL_REMEDIES = {
    "UCX": "NIXL_LOG_LEVEL=DEBUG tells why; UCX_TLS, if it is set, may leave it nothing",
    "LIBFABRIC": "it needs libfabric 2 or newer, which comes with the EFA installer",
}
_PLUGINS = tuple(NIXL_REMEDIES)
_TRYING = "runtime.kv.transport.nixl.trying"


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
        return [
            Finding(
                AREA,
                "nixl",
                Level.MISSING,
                "not installed",
                "only transport nixl needs it: pip install 'batonmesh[nixl]'",
            )
        ]
    files = [file for package in installed for file in node.files(package)]
    brought = {found[1] for file in files if (found := re.search(r"libplugin_(\w+)\.so", file))}
    what = ", ".join(f"{package} {version}" for package, version in installed.items())
    return [Finding(AREA, "nixl", Level.GOOD, what), *(_plugin(node, name, name in brought) for name in _PLUGINS)]


def _plugin(node: Node, name: str, brought: bool) -> Finding:
    """That a plugin is there does not say that it starts: it brings libraries of its own, and looks for others."""
    title = f"nixl plugin {name}"
    if not brought:
        return Finding(AREA, title, Level.MISSING, "not in the wheel", "install another wheel of nixl")
    memory = nixl_memory(node, name)
    if memory is None:
        return Finding(AREA, title, Level.MISSING, "there, and does not start", NIXL_REMEDIES[name])
    return Finding(AREA, title, Level.GOOD, f"starts; writes from and into {memory}")


def nixl_memory(node: Node, backend: str) -> str | None:
    """The kinds of memory that a backend of NIXL writes from and into; None when it does not start."""
    told = node.run([sys.executable, "-m", _TRYING, backend])
    return None if told is None else told.strip()
