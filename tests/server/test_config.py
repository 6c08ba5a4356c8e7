"""Where settings come from, which wins, and what a wrong one says."""

import textwrap
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from graftwork_server.config import ConfigError, config_options, load_settings
from graftwork_server.settings import Settings, keys


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "graftwork.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def load(path=None, overrides=None, **environment):
    return load_settings(path, overrides, environment)


def refusal(path=None, overrides=None, **environment):
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, **environment)
    return str(caught.value)


def test_defaults_need_nothing():
    settings = load()
    assert settings.grpc.port == 50051
    assert settings.engine.kv_cache_bytes == 1 << 30
    assert settings.adapter_store_dir == settings.data_dir / "adapters"
    assert settings.data_dir == Path("~/.local/share/graftwork").expanduser()


def test_flags_beat_environment_beats_file(config_file):
    path = config_file(
        """
        engine: {block_size: 8, max_num_sequences: 3, threads: 1}
        metrics:
          # port: 1
        """
    )
    settings = load(
        path,
        {"engine": {"block_size": 32}},
        GRAFTWORK_ENGINE__BLOCK_SIZE="4",
        GRAFTWORK_ENGINE__MAX_NUM_SEQUENCES="5",
    )
    assert settings.engine.block_size == 32
    assert settings.engine.max_num_sequences == 5
    assert settings.engine.threads == 1
    assert settings.metrics.port == 9095


def test_values_take_their_natural_spelling(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    settings = load(
        GRAFTWORK_ENGINE__KV_CACHE_BYTES="512 MiB",
        GRAFTWORK_ADAPTERS__REQUIRE_VERIFIED_BASE="true",
        GRAFTWORK_ADAPTERS__ROOTS="/srv/a:~/b",
        GRAFTWORK_DATA_DIR="~/data",
        GRAFTWORK_GRPC__TLS_CERT="",
    )
    assert settings.engine.kv_cache_bytes == 512 << 20
    assert settings.adapters.require_verified_base is True
    assert settings.adapters.roots == (Path("/srv/a"), Path("/home/someone/b"))
    assert settings.data_dir == Path("/home/someone/data")
    assert settings.grpc.tls_cert is None


def test_the_tree_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load().engine.block_size = 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("engin: {block_size: 8}", ["unknown setting engin", "did you mean engine?"]),
        ("engine: {blocksize: 8}", ["engine.blocksize", "did you mean engine.block_size?"]),
        ("engine: {block_size: many}", ["engine.block_size = 'many'", "integer", "graftwork.yaml"]),
        ("engine: {block_size: 0}", ["engine.block_size = 0", "greater than or equal to 1"]),
        ("model: {quantization: int4}", ["model.quantization = 'int4'", "'nf4'"]),
        ("engine: [1]", ["engine = [1]"]),
        ("- 1", ["must hold settings by name"]),
        ("a: [", ["no valid YAML", "line 2"]),
        ("grpc: {tls_cert: /c.pem}", ["grpc: tls_cert and tls_key go together"]),
        ("grpc: {tls_client_ca: /c.pem}", ["tls_client_ca needs tls_cert"]),
        ("limits: {max_new_tokens: 8}", ["default_max_tokens is 256, above max_new_tokens"]),
        ("engine: {max_tokens_per_step: 8}", ["max_num_sequences, which is 64"]),
    ],
)
def test_a_wrong_file_names_key_value_and_fix(config_file, text, parts):
    message = refusal(config_file(text + "\n"))
    for part in parts:
        assert part in message


def test_every_fault_is_named_at_once(config_file):
    message = refusal(config_file("engine: {block_size: 0}\ngrpc: {port: 70000}\n"))
    assert "engine.block_size = 0" in message
    assert "grpc.port = 70000" in message


def test_a_missing_file_is_named(tmp_path):
    assert "nothing.yaml" in refusal(tmp_path / "nothing.yaml")


def test_wrong_variables_are_refused_and_those_of_others_are_not():
    message = refusal(GRAFTWORK_ENGINE__BLOCKSIZE="8")
    assert "did you mean GRAFTWORK_ENGINE__BLOCK_SIZE?" in message
    assert "write GRAFTWORK_GRPC__PORT" in refusal(GRAFTWORK_GRPC_PORT="1")
    assert "from the environment" in refusal(GRAFTWORK_GRPC__PORT="many")
    others = {"GRAFTWORK_GRPC_PORT": "tcp://10.0.0.1:50051", "GRAFTWORK_SERVICE_HOST": "10.0.0.1"}
    assert load(**others) == load()


def run(*arguments):
    received = []

    @click.command
    @click.option("--extra", default="x")
    @config_options
    def command(settings: Settings, extra: str) -> None:
        received.append((settings, extra))

    result = CliRunner().invoke(command, arguments, env={"GRAFTWORK_LOG__LEVEL": "debug"})
    return result, received


def test_flags_build_the_settings_of_a_command(config_file):
    path = config_file("limits: {max_n: 2}\n")
    result, received = run(
        *("--config", str(path), "--port", "1", "--adapters-require-verified-base"),
        *("--adapter-root", "/a"),
        *("--adapter-root", "/b", "--engine-kv-cache-bytes", "2GiB", "--data-dir", "/d"),
    )
    assert result.exit_code == 0, result.output
    [(settings, extra)] = received
    assert extra == "x"
    assert settings.limits.max_n == 2
    assert settings.log.level == "debug"
    assert settings.grpc.port == 1
    assert settings.adapters.require_verified_base is True
    assert settings.engine.kv_cache_bytes == 2 << 30
    assert settings.adapters.roots == (Path("/a"), Path("/b"))
    assert settings.data_dir == Path("/d")


def test_a_wrong_flag_is_an_error_without_a_traceback():
    result, received = run("--grpc-drain-grace-s", "-1")
    assert (result.exit_code, received) == (1, [])
    assert "grpc.drain_grace_s = -1.0 on the command line" in result.output


def test_every_key_has_a_description_a_variable_and_a_flag_of_its_own():
    found = list(keys())
    assert all(key.field.description for key in found)
    assert len({key.flag for key in found}) == len({key.variable for key in found}) == len(found)
    result, _ = run("--help")
    assert all(key.flag in result.output for key in found)
