"""The configuration file: what is wrong is named, with its line, before anything is loaded."""

from pathlib import Path

import pytest

from tests.cli.process import run
from voxpipe.errors import EX_CONFIG, ConfigError
from voxpipe.service import settings as settings_module
from voxpipe.service.settings import Settings, read_settings

GOOD = """\
model = "tiny"
max_streams = 3
delay_ms = 240

[[fifo]]
path = "/run/one.pcm"
heartbeat_s = 2

[[fifo]]
path = "/run/two.pcm"
rate = 48000
delay_ms = 80
segment_pause_ms = 800

[[watch]]
path = "/srv/talks"
formats = ["srt"]
poll = true
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "voxpipe.toml"
    path.write_text(text)
    return path


def test_keys_are_obeyed(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path, GOOD))
    assert (settings.model, settings.max_streams) == ("tiny", 3)
    one, two = settings.fifo
    assert (one.path, two.path, two.audio_options().rate) == ("/run/one.pcm", "/run/two.pcm", 48_000)
    assert settings.stream_options().delay_ms == 240
    assert settings.stream_options(one).delay_ms == 240
    assert settings.stream_options(one).heartbeat_s == 2
    assert settings.stream_options(two).delay_ms == 80
    (folder,) = settings.folders()
    assert (folder.path, folder.formats, folder.poll, folder.delay_ms) == ("/srv/talks", ("srt",), True, 240)
    assert settings.stream_options(two).segment_pause_s == 0.8


def test_a_pipe_may_be_live_where_the_rest_is_not_and_the_other_way_round(tmp_path: Path) -> None:
    one, two = '[[fifo]]\npath = "/run/one.pcm"\n', '[[fifo]]\npath = "/run/two.pcm"\n'
    settings = read_settings(written(tmp_path, f"realtime = true\n{one}realtime = false\n{two}max_lag_s = 5\n"))
    of_one, of_two = map(settings.stream_options, settings.fifo)
    assert (of_one.is_live, of_one.max_lag_s) == (False, None)
    assert (of_two.is_live, of_two.max_lag_s, of_two.buffer_s) == (True, 5, 5)
    assert settings.stream_options().is_live


def test_the_documented_example_is_right(tmp_path: Path) -> None:
    assert settings_module.__doc__ is not None
    example = settings_module.__doc__.partition("\n\n")[2]
    settings = read_settings(written(tmp_path, "\n".join(line.strip() for line in example.splitlines())))
    documented = {name for name in Settings.__dataclass_fields__ if f"{name} = " in example or f"[[{name}]]" in example}
    assert documented == set(Settings.__dataclass_fields__)
    assert settings.fifo[0].mode == "0600"


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert read_settings(written(tmp_path, "")) == Settings()


@pytest.mark.parametrize(
    ("line", "replacement", "number", "message"),
    [
        ('model = "tiny"', "model = 4", 1, "model is 4; it must be a text"),
        ('model = "tiny"', 'modle = "tiny"', 1, "modle is not a key of this table; known are model, "),
        ("max_streams = 3", "max_streams = 0", 2, "max_streams is 0; it must be at least 1"),
        ("max_streams = 3", "max_streams = true", 2, "max_streams is True; it must be a whole number"),
        ("delay_ms = 240", "delay_ms = 250", 3, "delay_ms cannot be 250: a transcription delay of 250 ms"),
        ("delay_ms = 240", 'socket_mode = "rw"', 3, "socket_mode is 'rw'; it must be an octal mode"),
        ("delay_ms = 240", 'dtype = "f64"', 3, "dtype is 'f64'; it can be bf16, fp16 or f32"),
        ("heartbeat_s = 2", "realtime = 1", 7, "realtime is 1; it must be true or false"),
        ("heartbeat_s = 2", "max_lag_s = 0.5", 7, "max_lag_s is 0.5; it can be 1 to 3600"),
        ("heartbeat_s = 2", "heartbeat_s = 0", 7, "heartbeat_s is 0; it must be at least 0.01"),
        ("heartbeat_s = 2", "heartbeat_s = 1e9", 7, "heartbeat_s is 1000000000.0; it must be at most 10000000"),
        ('path = "/run/two.pcm"', 'path = "two.pcm"', 10, "path is 'two.pcm'; it must be an absolute path"),
        ('path = "/run/two.pcm"', 'path = "/run/one.pcm"', 10, "path names /run/one.pcm a second time"),
        ('path = "/run/two.pcm"', "", 9, "path is missing"),
        ("rate = 48000", 'rate = "fast"', 11, "rate is 'fast'; it must be a whole number"),
        ("rate = 48000", 'format = "s7le"', 11, "format does not go with the rest: "),
        ("segment_pause_ms = 800", "segment_pause_ms = 20", 13, "segment_pause_ms is 20; it must be at least 80"),
        ('path = "/srv/talks"', 'path = "talks"', 16, "path is 'talks'; it must be an absolute path"),
        ('formats = ["srt"]', 'formats = ["doc"]', 17, "formats has 'doc'; choose from txt, srt, vtt, json, jsonl"),
        ('formats = ["srt"]', 'formats = "srt"', 17, "formats is 'srt'; it must be a list of texts"),
        ('formats = ["srt"]', "pattern = [4]", 17, "pattern is [4]; it must be a list of texts"),
        ('formats = ["srt"]', 'on_done = "delete"', 17, "on_done is 'delete'; it can be keep or move:DIR"),
        ('formats = ["srt"]', 'on_done = "move:x"', 17, "on_done is 'x'; it must be an absolute path"),
        ('formats = ["srt"]', 'channels = "one"', 17, "channels is 'one'; it can be mix or split"),
        ('formats = ["srt"]', "settle_s = -1", 17, "settle_s is -1; it must be at least 0"),
        ('formats = ["srt"]', "recursive = 1", 17, "recursive is 1; it must be true or false"),
        ('formats = ["srt"]', "delay_ms = 90", 17, "delay_ms cannot be 90: a transcription delay of 90 ms"),
        ("poll = true", '[[watch]]\npath = "/srv/talks"', 19, "path names /srv/talks a second time"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    tmp_path: Path, line: str, replacement: str, number: int, message: str
) -> None:
    path = written(
        tmp_path, GOOD.replace(line, replacement, 1) if line != "delay_ms = 240" else GOOD.replace(line, replacement)
    )
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert str(caught.value).startswith(f"{path}, line {number}: {message}")


def test_what_is_no_toml(tmp_path: Path) -> None:
    path = written(tmp_path, "model = \n")
    with pytest.raises(ConfigError, match=r"voxpipe\.toml: Invalid value \(at line 1"):
        read_settings(path)


def test_the_command_ends_with_the_status_for_configurations(tmp_path: Path) -> None:
    path = written(tmp_path, "max_streams = 0\n")
    result = run("serve", "--config", path)
    assert (result.status, result.stdout) == (EX_CONFIG, b"")
    assert result.stderr == f"voxpipe: {path}, line 1: max_streams is 0; it must be at least 1\n"
    # what can be seen only when the pipes are made is seen before anybody hears that the daemon is ready
    path = written(tmp_path, f"[[fifo]]\npath = {str(path)!r}\n")
    result = run("serve", "--config", path)
    assert (result.status, result.stdout) == (EX_CONFIG, b"")
    assert result.stderr.endswith(f"voxpipe: {path} is no named pipe; name another path or remove it\n")
    missing = tmp_path / "missing.toml"
    result = run("serve", "--config", missing)
    assert (result.status, result.stderr) == (EX_CONFIG, f"voxpipe: cannot read {missing}: No such file or directory\n")
