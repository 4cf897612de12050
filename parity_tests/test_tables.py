"""The tables of the commands are whole and without color in a pipe, and colored and within its width on a terminal."""

import sys

import pytest

from numpygpt.commands.tables import print_table

ROWS = [("[red]attention[/red]", "1,234", "a remark that is longer than eighty characters, as some are: " + "x" * 40),
        (":smile:", "5", "wrong")]  # fmt: skip


@pytest.fixture
def terminal(monkeypatch):
    """Make standard output say that it is a terminal of 40 columns."""
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.parametrize("columns", [None, "20", "500"])
def test_a_pipe_gets_whole_lines_without_color(capsys, monkeypatch, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    print_table("lrl", ROWS, head=("part", "size", "remark"), wrong=[1])
    remark = ROWS[0][2]
    assert capsys.readouterr().out.splitlines() == [
        "part                    size   remark",
        f"[red]attention[/red]   1,234   {remark}",
        ":smile:                    5   wrong",
    ]


def test_without_names_of_columns_no_line_is_printed_for_them(capsys):
    print_table("lr", [("weights", "1.0 MiB"), ("peak", "12.5 MiB")])
    assert capsys.readouterr().out == "weights    1.0 MiB\npeak      12.5 MiB\n"


def test_a_terminal_gets_color_and_no_line_longer_than_itself(capsys, terminal):
    print_table("lrl", ROWS, wrong=[1])
    printed = capsys.readouterr().out
    *first, last = printed.splitlines()
    assert "\x1b[1;31m" in last
    assert "\x1b" not in "".join(first)
    assert max(map(len, first)) <= 40
    assert "".join("".join(first).split()).count("x") == ROWS[0][2].count("x")


@pytest.mark.parametrize("setting", ["NO_COLOR", "TERM"])
def test_a_terminal_that_wants_no_color_gets_none(capsys, terminal, monkeypatch, setting):
    monkeypatch.setenv(setting, "dumb")
    print_table("lrl", ROWS, wrong=[1])
    assert "31m" not in capsys.readouterr().out
