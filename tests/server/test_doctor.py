"""The doctor on this machine, and on settings that something is wrong with."""

import socket

import pytest
from click.testing import CliRunner
from graftwork_server.config import load_settings
from graftwork_server.default_model import default_model_path
from graftwork_server.doctor import Verdict, doctor, run_checks


def checks(overrides=None):
    base = {"grpc": {"port": 0}, "metrics": {"port": 0}}
    for section, values in (overrides or {}).items():
        base[section] = {**base.get(section, {}), **values} if isinstance(values, dict) else values
    return {check.name: check for check in run_checks(load_settings(None, base, {}))}


def test_every_fault_comes_with_a_fix():
    found = checks()
    assert found["Python"].verdict is Verdict.OK
    assert found["torch"].verdict is Verdict.OK
    assert found["gRPC port"].verdict is Verdict.OK
    for check in found.values():
        assert check.found
        assert bool(check.fix) == (check.verdict is not Verdict.OK)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = checks({"grpc": {"port": port}})["gRPC port"]
    assert check.verdict is Verdict.WARNING
    assert str(port) in check.found
    assert "--port" in check.fix


def test_a_model_is_looked_for_where_the_settings_say(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE_DIR", str(tmp_path))
    assert checks()["Base model"].verdict is Verdict.WARNING
    default_model_path().mkdir(parents=True)
    assert checks()["Base model"].verdict is Verdict.OK

    assert checks({"model": {"path": str(tmp_path)}})["Base model"].verdict is Verdict.FAILURE
    (tmp_path / "config.json").write_text("{}")
    assert checks({"model": {"path": str(tmp_path)}})["Base model"].verdict is Verdict.OK


@pytest.mark.parametrize(
    ("overrides", "name", "verdict"),
    [
        ({"engine": {"threads": 4096}}, "Cores", Verdict.WARNING),
        ({"engine": {"kv_cache_bytes": "100TiB"}}, "Memory", Verdict.WARNING),
        ({"data_dir": "/proc/1/graftwork"}, "Data folder", Verdict.FAILURE),
        ({"grpc": {"tls_cert": "/no.pem", "tls_key": "/no.key"}}, "TLS", Verdict.FAILURE),
        ({"grpc": {"host": "0.0.0.0"}}, "TLS", Verdict.WARNING),
    ],
)
def test_settings_that_do_not_fit_the_machine(overrides, name, verdict):
    assert checks(overrides)[name].verdict is verdict


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "/nowhere")
    check = checks()["C++ compiler"]
    assert check.verdict is Verdict.WARNING
    assert "no-such-compiler" in check.found


def test_the_command_prints_a_table_and_fails_where_the_server_would(tmp_path):
    result = CliRunner().invoke(doctor, ["--model", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "Instruction set" in result.output
    assert "is no folder with a config.json" in result.output
