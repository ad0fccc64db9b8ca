"""The estimate behind the progress bar."""

from voxpipe.cli.progress import Estimate, status


def test_lengths_are_guessed_from_the_files_that_were_opened() -> None:
    estimate = Estimate([100, 300, 600])
    assert estimate.share == 0.0
    assert status(estimate, 3, wall_s=1.0) == "0 of 3 files"
    estimate.open(0, 10.0)
    assert estimate.whole_s == 100.0
    estimate.read(0, 5.0)
    assert status(estimate, 3, wall_s=1.0) == "0 of 3 files, rtf 0.20, 0:19 left"
    estimate.read(0, 10.0)
    estimate.end(0)
    estimate.open(1, 90.0)
    assert estimate.whole_s == 10.0 + 90.0 + 600 * 100.0 / 400
    estimate.read(1, 90.0)
    estimate.end(1)
    estimate.open(2, 10_000.0)
    assert status(estimate, 3, wall_s=100.0) == "2 of 3 files, rtf 1.00, 2:46:40 left"


def test_a_file_ends_where_it_ends_whatever_its_header_said() -> None:
    estimate = Estimate([100, 100])
    estimate.open(0, 1000.0)
    estimate.read(0, 10.0)
    estimate.end(0)
    estimate.end(1)  # it could not be opened
    assert estimate.whole_s == 10.0
    assert estimate.share == 1.0


def test_without_any_length_the_files_are_counted() -> None:
    estimate = Estimate([0, 0])
    estimate.open(0, None)
    estimate.read(0, 5.0)
    assert estimate.share == 0.0
    estimate.end(0)
    assert 0.0 < estimate.share <= 1.0
