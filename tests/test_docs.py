"""The documents stay true: every command is in the README, every link leads somewhere, the example config is the default."""

from __future__ import annotations

import re
from pathlib import Path

import click
import yaml

from sbm_jax.cli.main import cli
from sbm_jax.config import load_config

ROOT = Path(__file__).parents[1]


def commands(group: click.Group, prefix: str = "sbm-jax") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= (
            commands(command, f"{prefix} {name}") if isinstance(command, click.Group) else {f"{prefix} {name}": command}
        )
    return found


def test_every_command_has_help_and_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    found = commands(cli)
    assert len(found) > 10
    for name, command in found.items():
        assert command.help, name
        assert f"`{name}`" in readme, name


def test_every_option_has_help():
    for name, command in commands(cli).items():
        for option in (p for p in command.params if isinstance(p, click.Option)):
            assert getattr(option, "help", None), f"{name} {option.name}"


def test_the_example_configuration_is_the_default():
    assert load_config(ROOT / "configs" / "demo.yaml").model_dump(exclude={"report"}) == load_config(None).model_dump(
        exclude={"report"}
    )


def test_the_example_configuration_spells_every_key_out():
    spelled = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    assert _keys(spelled) == _keys(load_config(None).model_dump())


def _keys(node: dict, prefix: str = "") -> set[str]:
    return {
        name
        for key, value in node.items()
        for name in (_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key})
    }


def test_local_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_has_no_placeholder_left():
    assert not re.findall(r"@[A-Z]+@", (ROOT / "README.md").read_text())


def test_every_configuration_loads_and_says_how_it_is_run():
    found = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(found) >= 8
    for path in found:
        config = load_config(path)
        assert config.data.root
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        command = f"sbm-jax run --config configs/{path.name} --out runs/{path.stem}"
        assert any(command in line for line in head), path.name
        assert any(line.startswith("# Expected: ") for line in head), path.name
