import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from graftwork.cli import main


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package that adds three commands: one works, two cannot be imported."""
    info = tmp_path / "fake_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: fake-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[graftwork.commands]\n"
        "greet = fake_plugin_greet:greet\n"
        "heavy = fake_plugin_heavy:heavy\n"
        "odd = fake_plugin_greet:name\n"
        "model = fake_plugin_greet:greet\n"
    )
    (tmp_path / "fake_plugin_greet.py").write_text(
        "import click\nname = 'plugin'\n@click.command()\ndef greet():\n    click.echo('hello')\n"
    )
    (tmp_path / "fake_plugin_heavy.py").write_text("import a_heavy_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("fake_plugin_greet", None)


@pytest.mark.usefixtures("package")
def test_help_lists_commands_without_importing_them() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "greet" in result.stdout
    assert "heavy" in result.stdout
    assert not [name for name in sys.modules if name.startswith("fake_plugin")]


@pytest.mark.usefixtures("package")
def test_a_command_is_loaded_when_called() -> None:
    result = CliRunner().invoke(main, ["greet"])
    assert (result.stdout, result.exit_code) == ("hello\n", 0)


@pytest.mark.usefixtures("package")
def test_missing_dependencies_say_how_to_install_them() -> None:
    result = CliRunner().invoke(main, ["heavy"])
    assert result.exit_code == 1
    assert result.stderr == (
        "error: `graftwork heavy` needs a_heavy_library, which is not installed:"
        " pip install 'graftwork[server]'\n"
    )


@pytest.mark.usefixtures("package")
def test_what_is_no_command_is_said() -> None:
    result = CliRunner().invoke(main, ["odd"])
    assert result.exit_code == 1
    assert "is not a command" in result.stderr


@pytest.mark.usefixtures("package")
def test_our_own_commands_come_first() -> None:
    result = CliRunner().invoke(main, ["model", "--help"])
    assert "limits of the server" in result.stdout


def test_the_client_imports_nothing_heavy() -> None:
    script = (
        "import sys, graftwork, graftwork.cli\n"
        "heavy = ('torch', 'pydantic', 'transformers', 'numpy', 'graftwork_server',\n"
        "         'graftwork_adapters', 'graftwork_trainer')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
