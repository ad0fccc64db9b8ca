"""What Prometheus reads, asked for and parsed as Prometheus does."""

import gzip
import http.client
import os
import re
import signal
import socket
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.cli.clips import BEACH, FUTURE, s16le
from tests.cli.process import live, run, wait_until
from tests.service.processes import script
from tests.service.test_daemon import Served
from tests.service.test_settings import written
from voxpipe.errors import EX_CANTCREAT, EX_OK, ConfigError, OutputError
from voxpipe.service.loop import StreamLoop
from voxpipe.service.metrics import WARNINGS, LoopCollector, Metrics
from voxpipe.service.settings import read_settings

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
TYPES = {"counter", "gauge", "histogram"}
UNITS = ("_seconds", "_bytes", "_info", "_total")
# what is left of the network under the units' RestrictAddressFamilies=AF_UNIX
NO_NETWORK = """
import errno, os, socket, sys
def forbid(event, arguments):
    if event == "socket.__new__" and arguments[1] != socket.AF_UNIX:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
sys.addaudithook(forbid)
from voxpipe.cli import main
main.main(sys.argv[1:])
"""
COUNTED = {"streams", "limit", "subscribers", "factor", "fds"}  # gauges of things, or of no unit


def port_of(daemon: Served) -> int:
    return int(re.findall(r"metrics = .*:(\d+)", daemon.config.read_text())[0])


def get(port: int, path: str = "/metrics", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def figures(families: Iterable[Metric]) -> dict[str, float]:
    """Sample -> value, the sample written as Prometheus shows it."""
    values = {}
    for family in families:
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert key not in values
            values[key] = sample.value
    return values


def scrape(daemon: Served) -> dict[str, float]:
    status, headers, body = get(port_of(daemon))
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    return figures(parse_text(body.decode()))


def test_the_format_is_as_promtool_wants_it(seen: Served) -> None:
    lines = get(port_of(seen))[2].decode().splitlines()
    helped = [line.split()[2] for line in lines if line.startswith("# HELP")]
    typed = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}
    assert helped == list(typed)
    assert len(helped) == len(set(helped))
    assert set(typed.values()) <= TYPES
    for name, kind in typed.items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert name.endswith(UNITS) or COUNTED & set(name.split("_")), name
    samples = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(samples) == len(set(samples))
    for sample in samples:
        name = sample.partition("{")[0]
        assert name in typed or re.sub("_(bucket|sum|count)$", "", name) in typed


def test_every_metric_is_in_the_readme(seen: Served) -> None:
    table = README.partition("| of | metrics |")[2].partition("\n\n")[0]
    documented = set(re.findall(r"voxpipe_\w+", table))
    given = {line.split()[2] for line in get(port_of(seen))[2].decode().splitlines() if line.startswith("# TYPE")}
    assert documented == {name for name in given if name.startswith("voxpipe_")}


def test_a_stream_moves_the_figures(seen: Served) -> None:
    seen.idle()
    before = scrape(seen)
    assert run("--daemon", "require", stdin=BEACH.read_bytes(), env=seen.env).status == EX_OK
    after = scrape(seen)

    def gain(name: str) -> float:
        return after[name] - before[name]

    assert gain("voxpipe_streams_started_total") == 1
    assert gain('voxpipe_streams_ended_total{reason="eof"}') == 1
    assert gain("voxpipe_audio_seconds_total") == pytest.approx(5.42, abs=0.01)
    assert 5.42 / 0.08 <= gain("voxpipe_tokens_total") <= 5.42 / 0.08 + 20
    assert gain("voxpipe_decoder_calls_total") > 0
    assert gain("voxpipe_guesses_total") >= gain("voxpipe_guesses_right_total") > 0
    turns = gain("voxpipe_turn_seconds_count")
    assert gain('voxpipe_turn_seconds_bucket{le="+Inf"}') == gain('voxpipe_lag_seconds_bucket{le="+Inf"}') == turns > 0
    assert gain("voxpipe_turn_seconds_sum") > 0
    assert after["voxpipe_real_time_factor"] > 0
    assert after["voxpipe_streams"] == after["voxpipe_lag_max_seconds"] == 0
    assert after["voxpipe_streams_limit"] == 3
    assert after["process_resident_memory_bytes"] > after["voxpipe_mlx_active_bytes"] > 16e6
    assert after["voxpipe_mlx_peak_bytes"] >= after["voxpipe_mlx_active_bytes"]
    assert after["voxpipe_uptime_seconds"] > before["voxpipe_uptime_seconds"]
    for name in ("turn", "lag"):
        counts = [value for key, value in after.items() if key.startswith(f"voxpipe_{name}_seconds_bucket")]
        assert counts == sorted(counts)


def test_live_streams_and_what_goes_wrong_is_counted(seen: Served) -> None:
    seen.idle()
    before = scrape(seen)
    with seen.connect() as client:
        client.sendall(s16le(FUTURE)[:64_000])
        wait_until(lambda: scrape(seen)["voxpipe_streams"] == 1)
    seen.idle()
    seen.ask(b"VOXPIPE/1 {nonsense}\n")
    seen.ask(bytes(3))
    good = seen.config.read_text()
    for text, result in ((good + "nonsense = 1\n", "failed"), (good, "succeeded")):
        seen.config.write_text(text)
        seen.process.signal(signal.SIGHUP)
        name = f'voxpipe_reloads_total{{result="{result}"}}'
        wait_until(lambda name=name: scrape(seen)[name] == before[name] + 1)  # type: ignore[misc]
    after = scrape(seen)
    for name in ('voxpipe_streams_refused_total{code="usage"}', 'voxpipe_warnings_total{code="odd-bytes"}'):
        assert after[name] == before[name] + 1


def test_warnings_are_there_before_they_come() -> None:
    (when,) = re.findall(r"^\| `warning` \|.*?\| (.*)", README, re.M)
    documented = set(re.findall(r"`([a-z-]+)`", when))
    assert "odd-bytes" in documented
    assert documented <= set(WARNINGS)


def test_what_prometheus_asks_for_it_gets(seen: Served) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    status, headers, body = get(port_of(seen), Accept=accept, **{"Accept-Encoding": "gzip"})
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert "voxpipe_streams" in figures(parse_openmetrics(gzip.decompress(body).decode()))


def test_websites_and_strangers_get_nothing(seen: Served) -> None:
    port = port_of(seen)
    assert get(port, Host=f"evil.example:{port}")[0] == 403  # a name of theirs that points to us
    assert get(port, Host="localhost")[0] == get(port, Host="[::1]:1")[0] == 200
    assert get(port, "/")[0] == 404
    assert "access-control-allow-origin" not in get(port, Origin="https://evil.example")[1]


def test_the_file_is_what_is_asked_for(seen: Served) -> None:
    path = seen.config.with_name("voxpipe.prom")
    before = path.stat().st_ino
    wait_until(lambda: path.stat().st_ino != before)  # replaced, not written over
    in_file = figures(parse_text(path.read_text()))
    assert {key.partition("{")[0] for key in in_file} == {key.partition("{")[0] for key in scrape(seen)}
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in path.parent.iterdir() if one.suffix != ".prom" and "prom" in one.name] in (
        [],
        [path.name],
    )


def collector() -> LoopCollector:
    return LoopCollector(StreamLoop(), max_streams=1)


def test_readers_of_the_file_never_see_half_of_it(tmp_path: Path) -> None:
    path = tmp_path / "voxpipe.prom"
    metrics = Metrics(collector(), address=None, mode=0o600, file=str(path), every_s=0.001)
    metrics.start()
    whole = path.read_text().count("# TYPE")
    for _ in range(300):
        assert path.read_text().count("# TYPE") == whole
    metrics.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_goes_is_said_once_and_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    path = folder / "voxpipe.prom"
    metrics = Metrics(collector(), address=None, mode=0o600, file=str(path), every_s=0.001)
    metrics.start()
    folder.rename(tmp_path / "away")
    wait_until(lambda: len(caplog.messages) > 0)
    folder.mkdir()
    wait_until(path.exists)
    metrics.close()
    assert caplog.messages == [f"cannot write the metrics to {path}: No such file or directory"]


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    metrics = Metrics(collector(), address=str(path), mode=0o600, file=None, every_s=15)
    metrics.start()
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: anything\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"\nvoxpipe_streams 0.0\n" in answer
    metrics.close()
    assert not path.exists()


def test_a_unix_socket_where_there_is_no_network(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    config = written(tmp_path, f'socket = "{tmp_path}/voxpipe.sock"\nmetrics = "{path}"\n')
    with live("serve", "--config", config, command=script(NO_NETWORK)) as daemon:
        daemon.wait_for("ready")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"\nvoxpipe_streams 0.0\n" in client.makefile("rb").read()
        daemon.signal(signal.SIGTERM)
        assert daemon.end() == EX_OK
    assert not path.exists()


def test_clients_that_stay_are_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    metrics = Metrics(collector(), address=str(path), mode=0o600, file=None, every_s=15)
    metrics.start()
    n_threads = threading.active_count()
    clients = [socket.socket(socket.AF_UNIX) for _ in range(200)]
    for client in clients:
        client.settimeout(30)
        client.connect(str(path))
    refused = clients[-1].recv(1 << 10)
    assert refused.startswith(b"HTTP/1.1 503")
    assert threading.active_count() <= n_threads + 40
    for client in clients:
        client.close()
    metrics.close()


def test_what_cannot_be_had_is_said_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = written(tmp_path, f'socket = ""\nmodel = "/nonexistent"\nmetrics = "127.0.0.1:{port}"\n')
        result = run("serve", "--config", config)
    assert result.status == EX_CANTCREAT
    assert (
        result.stderr
        == f"voxpipe: cannot listen on 127.0.0.1, port {port}: Address already in use; choose another port\n"
    )
    metrics = Metrics(collector(), address=None, mode=0o600, file=f"{tmp_path}/none/voxpipe.prom", every_s=15)
    with pytest.raises(OutputError, match=r"cannot write the metrics to .*/none/voxpipe.prom: No such file"):
        metrics.start()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('metrics = "0.0.0.0:9464"', "'0.0.0.0:9464' can be reached from other machines"),
        ('metrics = "192.168.1.5:9464"', "can be reached from other machines"),
        ('metrics = "[::]:9464"', "can be reached from other machines"),
        ('metrics = ":9464"', "is no address of this machine"),
        ('metrics = "example.org:9464"', "is no address of this machine"),
        ('metrics = "127.0.0.1"', "is no address with a port; write for example"),
        ('metrics = "127.0.0.1:70000"', "is no address with a port"),
        ('metrics = "127.0.0.1:0"', "port 0 is found by nobody"),
        ("metrics = 9464", "is 9464; it must be a text"),
        ('metrics_file = "voxpipe.prom"', "it must be an absolute path that ends in .prom"),
        ('metrics_file = "/var/voxpipe.txt"', "it must be an absolute path that ends in .prom"),
        ("metrics_file_every_s = 0", "is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, f"max_streams = 3\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert str(caught.value).startswith(f"{path}, line 2: {line.partition(' ')[0]} ")
    assert message in str(caught.value)


def test_addresses_of_this_machine(tmp_path: Path) -> None:
    for address in ("127.0.0.1:9464", "[::1]:9464", "localhost:9464", "127.3.2.1:9464", "/run/voxpipe/metrics.sock"):
        assert read_settings(written(tmp_path, f'metrics = "{address}"\n')).metrics == address
    assert os.path.isabs(read_settings(written(tmp_path, 'metrics_file = "/a/b.prom"')).metrics_file or "")
