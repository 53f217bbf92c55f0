"""Settings: one name in flags, environment and TOML; refusals name the cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.config import Backend, Config, ConfigError
from dataplane.settings import SETTINGS, build_parser, default_run_dir, load_config

KEY = "k" * 32


def load(argv: list[str] | None = None, environ: dict[str, str] | None = None) -> Config:
    namespace = build_parser("earshot up", "").parse_args(argv or [])
    return load_config(namespace, environ or {})


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No earshot.toml of the developer's own."""
    monkeypatch.chdir(tmp_path)


def test_every_setting_is_a_field_and_every_field_a_setting() -> None:
    fields = set(Config.__dataclass_fields__)
    names = {setting.name for setting in SETTINGS}
    assert names - {"backend", "backend_command"} == fields - {"backends"}


def test_defaults() -> None:
    config = load()
    assert config.http == ("127.0.0.1", 8080)
    assert config.udp_port == 3478
    assert config.run_dir == default_run_dir(3478, {}, 0) or "earshot-" in config.run_dir
    assert config.backends == ()


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    (tmp_path / "earshot.toml").write_text(
        "udp_port = 1001\nrelays = 3\ntransceivers = 4\nmax_wait_ms = 80\n"
    )
    environ = {"EARSHOT_UDP_PORT": "1002", "EARSHOT_RELAYS": "5"}
    config = load(["--udp-port", "1003"], environ)
    assert config.udp_port == 1003
    assert config.relays == 5
    assert config.transceivers == 4
    assert config.max_wait_ms == 80
    assert config.playout_lead_ms == Config().playout_lead_ms


def test_config_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("relays = 7\n")
    assert load(["--config", "other.toml"]).relays == 7
    assert load(environ={"EARSHOT_CONFIG": "other.toml"}).relays == 7
    with pytest.raises(ConfigError, match=r"--config absent\.toml: there is no such file"):
        load(["--config", "absent.toml"])


def test_backends_from_flags() -> None:
    config = load(
        [
            *("--run-dir", "/run/e", "--backend", "parrot=/srv/p.sock"),
            *("--backend-command", "echo=python3 'my echo.py' -v", "--backend", "more=rel.sock"),
        ]
    )
    assert config.backends == (
        Backend("parrot", "/srv/p.sock"),
        Backend("more", str(Path.cwd() / "rel.sock")),
        Backend("echo", "/run/e/echo.sock", ("python3", "my echo.py", "-v")),
    )


def test_backend_path_and_command_of_one_name_are_one_backend() -> None:
    config = load(["--backend", "echo=/srv/e.sock", "--backend-command", "echo=./echo"])
    assert config.backends == (Backend("echo", "/srv/e.sock", ("./echo",)),)


def test_backends_from_toml(tmp_path: Path) -> None:
    (tmp_path / "earshot.toml").write_text(
        'run_dir = "/run/e"\n'
        '[[backend]]\nname = "echo"\ncommand = "python3 echo.py"\n'
        '[[backend]]\nname = "bot"\npath = "/srv/bot.sock"\n'
        '[[backend]]\nname = "both"\npath = "/srv/b.sock"\ncommand = ["a b", "c"]\n'
    )
    assert load().backends == (
        Backend("echo", "/run/e/echo.sock", ("python3", "echo.py")),
        Backend("bot", "/srv/bot.sock"),
        Backend("both", "/srv/b.sock", ("a b", "c")),
    )


def test_backends_from_environment() -> None:
    environ = {
        "EARSHOT_BACKEND": "a=/a.sock,b=/b.sock",
        "EARSHOT_BACKEND_COMMAND": "c=run x,y\nd=run z",
    }
    assert [(b.name, b.command) for b in load(environ=environ).backends] == [
        ("a", ()),
        ("b", ()),
        ("c", ("run", "x,y")),
        ("d", ("run", "z")),
    ]


def test_a_source_that_names_backends_names_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "earshot.toml").write_text('[[backend]]\nname = "a"\ncommand = "x"\n')
    assert [b.name for b in load(["--backend", "b=/b.sock"]).backends] == ["b"]


def test_advertise() -> None:
    flags = ["--advertise", "192.0.2.1", "--advertise", "2001:DB8::1"]
    assert load(flags).advertise == ("192.0.2.1", "2001:db8::1")
    assert load(environ={"EARSHOT_ADVERTISE": "192.0.2.1, 192.0.2.2"}).advertise == (
        "192.0.2.1",
        "192.0.2.2",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[::1]:80", ("::1", 80)),
        ("localhost:1", ("127.0.0.1", 1)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_http_address(text: str, expected: tuple[str, int]) -> None:
    assert load(["--http", text]).http == expected


def test_http_beyond_loopback_needs_a_key() -> None:
    with pytest.raises(ConfigError, match=r"--http: 0\.0\.0\.0 .*EARSHOT_API_KEY") as refused:
        load(["--http", "0.0.0.0:8080"])
    assert "export EARSHOT_API_KEY=$(openssl rand -hex 32)" in str(refused.value)
    assert load(["--http", "0.0.0.0:8080"], {"EARSHOT_API_KEY": KEY}).api_key == KEY
    with pytest.raises(ConfigError, match="EARSHOT_HTTP"):
        load(environ={"EARSHOT_HTTP": "[::]:8080"})


def test_secrets_are_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        load(environ={"EARSHOT_API_KEY": "too short"})
    assert "too short" not in str(refused.value)
    environ = {"EARSHOT_API_KEY": KEY, "EARSHOT_CLUSTER_KEYS": "3:" + "ab" * 16}
    assert KEY not in repr(load(environ=environ))
    assert "abab" not in repr(load(environ=environ))


@pytest.mark.parametrize(
    ("argv", "environ", "toml", "message"),
    [
        (["--udp-prot", "1"], {}, "", r"--udp-prot.*did you mean --udp-port\?"),
        (["--udp-port", "65536"], {}, "", r"--udp-port: '65536' .*from 0 to 65535"),
        (["--udp-port"], {}, "", "--udp-port: expected one argument"),
        (["--udp-port", "0"], {}, "", "add --run-dir"),
        (["more"], {}, "", "unrecognized arguments: more"),
        ([], {"EARSHOT_RELAYS": "many"}, "", r"EARSHOT_RELAYS: 'many' .*from 1 to 64"),
        ([], {"EARSHOT_RELAY": "2"}, "", r"EARSHOT_RELAY .*did you mean EARSHOT_RELAYS\?"),
        ([], {"EARSHOT_CLUSTER_KEYS": "16:" + "00" * 16}, "", "EARSHOT_CLUSTER_KEYS: .*ID:HEX"),
        ([], {}, "relays = 0", r"earshot\.toml: relays: 0 .*from 1 to 64"),
        ([], {}, "relays = true", r"earshot\.toml: relays: True"),
        ([], {}, "relays = 2.5", r"earshot\.toml: relays: 2\.5"),
        ([], {}, "relais = 2", r"earshot\.toml: relais .*did you mean relays\?"),
        ([], {}, "[relays]\nn = 2", r"earshot\.toml: relays: \{'n': 2\}"),
        ([], {}, "relays = ", r"earshot\.toml: cannot be read as TOML"),
        ([], {}, "backend_command = 'a=b'", "backend_command is no setting"),
        ([], {}, "backend = 'a=b'", r"\[\[backend\]\] table"),
        ([], {}, "[[backend]]\nname = 'a'", "a: give it a path, or a command"),
        ([], {}, "[[backend]]\nname = 'a b'\npath='/x'", "'a b' is no name"),
        ([], {}, "[[backend]]\nname = 'a'\npth='/x'", "pth is no key of a backend"),
        (["--backend", "echo"], {}, "", "--backend: .*NAME=PATH"),
        (["--backend-command", "e='x"], {}, "", "cannot be read"),
        (["--backend", "a=/x", "--backend", "a=/y"], {}, "", "backend a: named twice"),
        (["--backend", "a=/" + "x" * 107], {}, "", "backend a: .*longer than 107 bytes"),
        (["--advertise", "example.org"], {}, "", "--advertise: .*no IP address"),
        (["--advertise", "0.0.0.0"], {}, "", "--advertise: .*no address that a client"),
        (["--http", "8080"], {}, "", "--http: '8080' .*ADDRESS:PORT"),
        (["--http", "::1:8080"], {}, "", "--http: .*ADDRESS:PORT"),
        (["--flows-per-relay", "1000"], {}, "", "power of two, such as 512 or 1024"),
        (["--log-format", "xml"], {}, "", "give one of auto, json, pretty"),
    ],
)
def test_refusals_name_source_key_and_cure(
    argv: list[str], environ: dict[str, str], toml: str, message: str, tmp_path: Path
) -> None:
    if toml:
        (tmp_path / "earshot.toml").write_text(toml)
    with pytest.raises(ConfigError, match=message):
        load(argv, environ)


def test_variables_of_a_kubernetes_service_called_earshot_are_not_ours() -> None:
    load(
        environ={
            "EARSHOT_SERVICE_HOST": "10.0.0.1",
            "EARSHOT_SERVICE_PORT": "8080",
            "EARSHOT_PORT": "tcp://10.0.0.1:8080",
            "EARSHOT_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        }
    )


def test_default_run_dir() -> None:
    assert default_run_dir(1, {"XDG_RUNTIME_DIR": "/run/user/7"}, 7) == "/run/user/7/earshot-1"
    assert default_run_dir(1, {}, 0) == "/run/earshot-1"
    assert default_run_dir(1, {}, 7) == "/tmp/earshot-7-1"
