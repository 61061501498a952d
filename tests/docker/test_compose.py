"""What no linter of the compose file and the Dockerfile looks at. (No engine is needed; none runs these images here.)"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

DOCKER = Path(__file__).resolve().parents[2] / "docker"
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_this_machine_only(name: str) -> None:
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_waited_for_says_when_it_is_ready(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "test" in SERVICES[other]["healthcheck"]
        else:
            assert how["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", SERVICES)
def test_every_volume_is_declared(name: str) -> None:
    sources = [each.partition(":")[0] for each in SERVICES[name].get("volumes", [])]
    for source in sources:
        assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_secrets_come_from_the_environment_and_are_required() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|AUTH|ACCESS_KEY", key):
                assert re.fullmatch(r"\$\{\w+:\?.+\}", str(value)), f"{name}.{key}"
    used = set(re.findall(r"\$\{(\w+):\?", (DOCKER / "compose.yaml").read_text(encoding="utf-8")))
    offered = dict(re.findall(r"^(\w+)=(.*)$", (DOCKER / "env.example").read_text(encoding="utf-8"), re.M))
    assert used == set(offered)
    assert set(offered.values()) == {""}


def test_the_image_runs_as_somebody_other_than_root() -> None:
    lines = (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["10001"]
    assert lines.index("USER 10001") > max(at for at, line in enumerate(lines) if line.startswith(("RUN", "COPY")))


def test_only_what_is_named_gets_into_the_image() -> None:
    lines = [
        line
        for line in (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*"
    root = DOCKER.parent
    for line in lines[1:]:
        if line.startswith("!"):
            assert (root / line[1:].removesuffix("/**")).exists(), line
