"""`numpygpt chat`: the conversation, what streams of it, what is forgotten, and how it is stopped."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpygpt import GPTConfig, GPTModel, InputError, TorchGenerator, generate, get_tokenizer
from numpygpt.adapt.head import class_head
from numpygpt.data.templates import ASSISTANT, SYSTEM, TEMPLATES, USER, Message
from numpygpt.decoding.conversation import Answering, Conversation, Memory
from numpygpt.decoding.streaming import before_stops, whole_characters
from parity_tests.chatting import END, TOKENIZER, chain, model_that_says, saved
from parity_tests.command import run
from parity_tests.small_models import assert_agrees, model_of

pytestmark = pytest.mark.usefixtures("without_checks_of_annotations")  # tokens are decoded one by one

ALPACA, PLAIN = TEMPLATES["alpaca"], TEMPLATES["plain"]
#: An answer that begins after the line end of the template `plain`: "hé!" and its end.
SAYS = chain("\n", "h", *"é".encode(), "!", END)


def config_of(context_length, vocab_size=TOKENIZER.n_vocab):
    return GPTConfig(vocab_size, context_length, emb_dim=8, n_heads=2, n_layers=2, drop_rate=0.0, qkv_bias=True)


def conversation_of(model, template=PLAIN, longest=20, stops=(), **options):
    return Conversation(model, TOKENIZER, template, Answering(longest, stops=stops), **options)


def asked(conversation, question):
    conversation.ask(question)
    return "".join(conversation.answer())


# Text as it comes


@given(data=st.data(), text=st.text(alphabet="aé漢🙂\n", max_size=12))
def test_bytes_make_the_same_text_wherever_they_are_cut(data, text):
    whole = text.encode()[data.draw(st.integers(0, 3)) :]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    chunks = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    pieces = list(whole_characters(chunks))
    assert "".join(pieces) == whole.decode(errors="replace")
    if not data.draw(st.booleans()):
        assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in whole_characters([text.encode()]))


@given(data=st.data(), text=st.text(alphabet="abc", max_size=12))
def test_a_text_ends_before_the_stop_string_that_is_complete_first(data, text):
    stops = data.draw(st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ended = [(end, len(stop)) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    end, longest = max([each for each in ended if each[0] == ended[0][0]], default=(len(text), 0))
    assert "".join(before_stops(iter(pieces), stops)) == text[: end - longest]


def test_only_what_may_begin_a_stop_string_is_held_back():
    assert list(before_stops(["ab", "#", "#c", "##", "#d"], ["###"])) == ["ab", "", "##c", "", ""]


# The conversation


@given(data=st.data())
def test_what_is_remembered_changes_no_logits(data):
    model = model_of(config_of(12, vocab_size=7), seed=3)
    memory = Memory(model)
    for _ in range(4):
        ids = np.array(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=12)))
        assert_agrees(memory.logits_after(ids), model.decode(ids[np.newaxis])[0])


def test_only_what_is_new_is_read(monkeypatch):
    """The template begins the second prompt with the first, its answer and the end that the model has written."""
    read, decode = [], GPTModel.decode
    monkeypatch.setattr(
        GPTModel, "decode", lambda model, ids, past=None: read.append(ids.shape[1]) or decode(model, ids, past)
    )
    conversation = conversation_of(model_that_says(SAYS))
    assert asked(conversation, "one") == "hé!"
    assert read == [4, 1, 1, 1, 1]
    assert asked(conversation, "three") == "hé!"
    assert read[5:] == [len(f"{'<'}\nthree\n"), 1, 1, 1, 1]  # "<" stands for the token that ended the answer


@pytest.mark.parametrize("template", [ALPACA, PLAIN], ids=["alpaca", "plain"])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_each_answer_is_what_generate_writes_after_the_whole_conversation(template, system):
    model = model_of(config_of(600), seed=5)
    conversation = conversation_of(model, template, longest=12, system=system)
    messages = [] if system is None else [Message(SYSTEM, system)]
    for question in ("Add 1 and 2.", "And 3?", "Why?"):
        messages.append(Message(USER, question))
        ids = template.prompt(messages, TOKENIZER)
        expected = generate(model, ids[np.newaxis], 12, 600, eos_id=END)[0, len(ids) :]
        answer = asked(conversation, question)
        assert answer == bytes(expected.tolist()).decode(errors="replace")
        messages.append(Message(ASSISTANT, answer))
    assert conversation.messages == [message for message in messages if message.role != SYSTEM]


def test_answers_are_drawn_as_generate_draws_them():
    model, how = model_of(config_of(80), seed=5), {"temperature": 1.5, "top_k": 40, "top_p": 0.9}
    ids = PLAIN.prompt([Message(USER, "so")], TOKENIZER)
    expected = generate(model, ids[np.newaxis], 30, 80, eos_id=END, rng=TorchGenerator(7), **how)[0, len(ids) :]
    conversation = Conversation(model, TOKENIZER, PLAIN, Answering(30, **how), rng=TorchGenerator(7))
    assert asked(conversation, "so") == bytes(expected.tolist()).decode(errors="replace")


def test_stop_strings_end_an_answer_and_are_no_part_of_it():
    says = model_that_says(chain("\n", "a", "b", "c", "d", END), context_length=200)
    conversation = conversation_of(says, stops=("cd", "x"))
    assert asked(conversation, "?") == "ab"
    assert conversation.messages[-1] == Message(ASSISTANT, "ab")
    again = model_that_says(chain("\n", "o", "k", "#"))
    monkeyed = PLAIN._replace(stops=("k#",))
    assert asked(conversation_of(again, monkeyed), "?") == "o"


def test_any_special_token_ends_an_answer():
    tokenizer = get_tokenizer("bytes+<|im_start|>+<|im_end|>+<|pad|>")
    for end in range(256, 259):
        model = model_that_says(chain("\n", "a", "b", end), tokenizer=tokenizer)
        conversation = Conversation(model, tokenizer, TEMPLATES["chatml"], Answering(20))
        assert asked(conversation, "?") == "ab"


def test_a_stopped_answer_stays_as_far_as_it_came():
    conversation = conversation_of(model_that_says(chain("\n", "a")))
    conversation.ask("?")
    answers = iter([False, False, False, True])
    assert "".join(conversation.answer(lambda: next(answers))) == "aaa"
    assert conversation.messages[-1] == Message(ASSISTANT, "aaa")


def test_the_oldest_turns_are_forgotten_and_the_system_is_not():
    """A turn takes 10 tokens, of which 4 are the question's. The answer may take 5, and the system takes 2."""
    conversation = conversation_of(model_that_says(SAYS, context_length=30), longest=5, system="S")
    forgotten = []
    for question in ("one", "two", "six", "ten"):
        forgotten.append(conversation.ask(question))
        "".join(conversation.answer())
    assert forgotten == [0, 0, 1, 1]
    assert [message.content for message in conversation.messages[::2]] == ["six", "ten"]
    conversation.reset()
    assert conversation.messages == []


def test_a_message_that_fills_the_context_changes_nothing():
    conversation = conversation_of(model_that_says(SAYS, context_length=30), longest=5)
    asked(conversation, "one")
    before = list(conversation.messages)
    with pytest.raises(InputError, match=r"the message has 26 tokens .* may have 5; together they may have 30"):
        conversation.ask("x" * 25)
    assert conversation.messages == before
    assert conversation.ask("x" * 24) == 1
    with pytest.raises(InputError, match="what the template writes has 27 tokens"):
        conversation_of(model_that_says(SAYS, context_length=30), longest=5, system="s" * 24)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected 1 or more"),
        ({"stops": ("a", "")}, "a text that ends an answer is empty"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_answers_that_cannot_be(how, said):
    with pytest.raises(InputError, match=said):
        Answering(**{"max_new_tokens": 3, **how})


# The command


class Terminal(io.StringIO):
    """Typed lines, or what is shown."""

    def isatty(self):
        return True


def talk(monkeypatch, capsys, folder, typed, *options, status=0):
    """What the command prints if these lines come through a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    capsys.readouterr()
    assert run("chat", "--checkpoint", folder, "--template", "plain", "--temperature", 0, *options) == status
    return capsys.readouterr()


def test_each_line_of_a_pipe_gets_an_answer_and_nothing_else_is_printed(monkeypatch, capsys, tmp_path):
    folder = saved(tmp_path, model_that_says(SAYS))
    assert talk(monkeypatch, capsys, folder, "one\ntwo") == ("hé!\nhé!\n", "")
    told = talk(monkeypatch, capsys, folder, "one\n/reset\n\n/help\n/exit\ntwo\n")
    assert told.out == "hé!\n"
    assert told.err.splitlines()[:2] == [
        "the conversation is forgotten", "the message is empty; expected a line of text"
    ]
    assert [line.split()[0] for line in told.err.splitlines()[2:]] == ["/reset", "/exit", "/help"]
    assert talk(monkeypatch, capsys, folder, "one\n", "--stop", "!", "x").out == "hé\n"
    assert talk(monkeypatch, capsys, folder, "one\n", "--max-new-tokens", 2).out == "h\N{REPLACEMENT CHARACTER}\n"


def test_a_full_context_is_told(monkeypatch, capsys, tmp_path):
    folder = saved(tmp_path, model_that_says(SAYS, context_length=30))
    told = talk(monkeypatch, capsys, folder, "one\ntwo\nsix\n", "--max-new-tokens", 8)
    assert told.out == "hé!\n" * 3
    assert told.err == "the context is full; forgotten of the oldest turns: 1\n"


def test_a_message_that_is_too_long_ends_a_pipe_and_is_asked_again_of_a_person(monkeypatch, capsys, tmp_path):
    folder, typed = saved(tmp_path, model_that_says(SAYS, context_length=30)), "x" * 40 + "\none\n"
    told = talk(monkeypatch, capsys, folder, typed, status=2)
    assert told.out == ""
    assert told.err == (
        "numpygpt: error: the message has 41 tokens with the template around it, and an answer may have 15; together "
        "they may have 30, the model's context: shorten the text, or the longest answer\n"
    )
    shown = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setattr(sys, "stdout", shown)
    assert run("chat", "--checkpoint", folder, "--template", "plain", "--temperature", 0) == 0
    assert "hé!\n" in shown.getvalue()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-new-tokens", 200), "--max-new-tokens is 200; expected from 1 to 199, because the model's context of"),
        (("--max-new-tokens", 0), "--max-new-tokens is 0; expected from 1 to 199"),
        (("--system", ""), "--system is empty; expected a text, or leave it out"),
        (("--stop", ""), "a text that ends an answer is empty"),
        (("--top-p", 2), "top_p is 2.0; expected a number in"),
        (("--template", "chatml"), "the template 'chatml' needs the special tokens <|im_start|>, <|im_end|>, which"),
        (("--base", "nowhere"), "has no adapter, so it has no base; leave out --base"),
    ],
)
def test_what_cannot_be_used_gets_one_line(monkeypatch, capsys, tmp_path, options, said):
    told = talk(monkeypatch, capsys, saved(tmp_path, model_that_says(SAYS)), "one\n", *options, status=2)
    assert told.out == ""
    assert told.err.startswith("numpygpt: error: ")
    assert said in told.err
    assert told.err.count("\n") == 1


def test_a_model_that_scores_classes_cannot_write(monkeypatch, capsys, tmp_path):
    folder = saved(tmp_path, class_head(GPTModel(config_of(8)), 3))
    assert "scores 3 classes and no tokens, so it cannot write" in talk(monkeypatch, capsys, folder, "x", status=2).err


def test_a_tokenizer_without_the_templates_tokens(monkeypatch, capsys, tmp_path):
    folder = saved(tmp_path, GPTModel(config_of(40)), get_tokenizer("bytes"))
    told = talk(monkeypatch, capsys, folder, "one\n", status=2)
    assert "which the tokenizer 'bytes' does not have; expected the tokenizer 'bytes+<|endoftext|>'" in told.err


def test_a_message_that_is_not_utf_8(monkeypatch, capsys, tmp_path):
    folder = saved(tmp_path, model_that_says(SAYS))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\xff\n"), encoding="utf-8"))
    assert run("chat", "--checkpoint", folder, "--template", "plain") == 2
    assert "a message is not UTF-8: invalid start byte; expected text in UTF-8" in capsys.readouterr().err


def test_nobody_speaks(monkeypatch, capsys, tmp_path):
    folder = saved(tmp_path, model_that_says(SAYS))
    monkeypatch.setattr(sys, "stdin", None)
    assert run("chat", "--checkpoint", folder, "--template", "plain") == 2
    assert "standard input is closed; expected a terminal, or a pipe" in capsys.readouterr().err


class ClosedPipe(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def test_a_reader_of_the_answers_that_has_gone(monkeypatch, tmp_path):
    folder = saved(tmp_path, model_that_says(SAYS))
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    assert run("chat", "--checkpoint", folder, "--template", "plain") == 141


def test_ctrl_c_in_a_pipe_ends_it(monkeypatch, capsys, tmp_path):
    folder = saved(tmp_path, model_that_says(SAYS))

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Memory, "logits_after", interrupted)
    assert talk(monkeypatch, capsys, folder, "one\ntwo\n", status=130) == ("", "")


def test_ctrl_c_on_a_terminal_stops_the_answer_and_at_the_prompt_ends(tmp_path):
    """The model says "a" for as long as it may. Its first answer is stopped, and the conversation goes on."""
    folder = saved(tmp_path, model_that_says(chain("\n", "a"), context_length=8000))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "numpygpt", "chat", "--checkpoint", str(folder), "--max-new-tokens", "7900"]
    process = subprocess.Popen(
        [*command, "--template", "plain", "--temperature", "0"],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=lambda: _own_terminal(theirs),
    )  # fmt: skip
    os.close(theirs)
    try:
        _shown(ours, "> ")
        os.write(ours, b"one\n")
        _shown(ours, "aaa")
        os.write(ours, b"\x03")
        _shown(ours, "> ")
        os.write(ours, b"two\n")
        _shown(ours, "aaa")
        os.write(ours, b"\x03")
        _shown(ours, "> ")
        assert _status_after_ctrl_c(process, ours) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _own_terminal(terminal):
    """Make the terminal that of the new process, so that Ctrl-C is a signal for it, which a job of a shell ignores."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def _status_after_ctrl_c(process, terminal):
    """The exit status after Ctrl-C at the prompt, as often as it takes a person.

    GNU readline shows the prompt shortly before it waits for a key. A signal between the two stays without effect until
    the next key.
    """
    for _ in range(30):
        os.write(terminal, b"\x03")
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=2)
    return None


def _shown(terminal, text):
    """Wait until the text is shown."""
    seen, end = "", time.monotonic() + 60
    while text not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 1000).decode(errors="replace")
