"""numpygpt/model/scheme.py: what --parallel says is read, and what cannot be is refused in one line."""

from dataclasses import replace

import pytest

from numpygpt.errors import InputError
from numpygpt.model.config import PRESETS
from numpygpt.model.scheme import Scheme


@pytest.mark.parametrize(
    ("text", "n_processes", "scheme"),
    [
        ("fsdp=4,tp=2", 8, Scheme(fsdp=4, tp=2)),
        ("tp=2, fsdp", 8, Scheme(fsdp=4, tp=2)),
        ("ddp", 3, Scheme(ddp=3)),
        ("ddp=2,fsdp=2,tp=2,pp=2", 16, Scheme(2, 2, 2, 2)),
        ("pp=4,tp", 4, Scheme(pp=4)),
        (None, 1, Scheme()),
        (None, 2, Scheme(ddp=2)),
        ("fsdp=8", None, Scheme(fsdp=8)),
    ],
)
def test_a_scheme_is_read(text, n_processes, scheme):
    assert Scheme.of(text, n_processes) == scheme
    assert Scheme.of(str(scheme), scheme.size) == scheme


def test_sequences_are_shared_along_two_axes():
    scheme = Scheme(2, 3, 5, 7)
    assert (scheme.data, scheme.size) == (6, 210)


@pytest.mark.parametrize(
    ("text", "n_processes", "message"),
    [
        ("zero=2", 2, "there is no scheme 'zero'; expected some of ddp, fsdp, tp, pp, for example fsdp=4,tp=2"),
        ("", 1, "there is no scheme ''"),
        ("ddp,", 1, "there is no scheme ''"),
        ("tp=2,tp=2", 4, "tp is named twice"),
        *((f"tp={number}", 4, f"tp={number}; expected a number of processes") for number in ("", 0, -1, 1.5, "x", "²")),
        ("tp=" + "9" * 5000, 4, "expected a number of processes"),
        ("ddp,tp", 4, "ddp and tp lack their numbers"),
        ("fsdp,tp=4", 6, "6 processes cannot be shared by 4"),
        ("fsdp=4,tp=2", 6, "is for 8 processes, and there are 6"),
        ("fsdp=1", 2, "is for 1 process, and there are 2"),
        ("fsdp=2", 1, "is for 2 processes, and there is 1"),
        ("fsdp", None, "expected how many processes fsdp has, as in fsdp=8"),
    ],
)
def test_what_is_no_scheme_gets_one_line(text, n_processes, message):
    with pytest.raises(InputError) as caught:
        Scheme.of(text, n_processes)
    assert str(caught.value).startswith(f"--parallel {text}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_shared_so_is_refused():
    gpt2 = PRESETS["gpt2"]
    Scheme(tp=12, pp=12).check(gpt2)
    with pytest.raises(InputError, match=r"^tp=8 does not divide n_heads 12: "):
        Scheme(tp=8).check(gpt2)
    with pytest.raises(InputError, match=r"^pp=12 is more than n_layers 11: "):
        Scheme(pp=12).check(replace(gpt2, n_layers=11))
