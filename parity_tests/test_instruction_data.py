"""Files of instructions, preferences and labels: what is read, what is refused, and their batches in a loader."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numpygpt.data import tokenizing
from numpygpt.data.batching import Examples, LabeledTexts, Pairs
from numpygpt.data.examples import Limit
from numpygpt.data.instructions import read_instructions, read_prompts
from numpygpt.data.labels import read_labeled_texts
from numpygpt.data.loader import DataLoader
from numpygpt.data.packing import PackedExamples, best_fit
from numpygpt.data.preferences import read_preferences
from numpygpt.data.records import read_records
from numpygpt.data.templates import TEMPLATES, template_of
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.shapes import IGNORE_INDEX
from numpygpt.tuning.options import FinetuneOptions

TOKENIZER = get_tokenizer("bytes+<|endoftext|>+<|im_start|>+<|im_end|>")
PLAIN, CHAT = TEMPLATES["plain"], TEMPLATES["chatml"]
ASKED, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def write(folder, *records, name="data.json"):
    path = folder / name
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def limited(tokens=100, too_long="refuse"):
    return Limit(tokens, too_long)


# Records

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(['"', "\\", "é\n", "]},{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), min_size=1, max_size=5), st.booleans())
def test_records_of_every_form_are_those_of_json(tmp_path_factory, records, indent):
    """Files are read a few bytes at a time, so that every value is cut somewhere."""
    path = tmp_path_factory.mktemp("records") / "data.json.gz"
    array = json.dumps(records, indent=2 if indent else None, ensure_ascii=indent)
    lines = "\n\n".join(json.dumps(record, ensure_ascii=not indent) for record in records)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "READ_AT_ONCE", 5)
        for text in (array, f" \n{array}\n", lines, f"\n{lines}\n"):
            path.write_bytes(gzip.compress(text.encode("utf-8", "surrogatepass")))
            assert [record.fields for record in read_records(path)] == records


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    for name, text in (("data.json", '[{"text": "a", "label": 1}]'), ("data.jsonl", '{"text": "a", "label": 1}'),
                       ("data.csv", "Text,Label\r\na,1\r\n"), ("data.tsv", "1\ta\n")):  # fmt: skip
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8-sig"))
        (found,) = read_labeled_texts(path, 2, TOKENIZER, limited()).items
        assert (found.token_ids.tolist(), found.label) == ([97], 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" \n", "has no record; expected a JSON array of objects, or a JSON object in each line"),
        ("[ ]", "has no record; expected at least one in its array"),
        ('[{"a": 1}, 3]', "record 2 of .* holds a int; expected a JSON object"),
        ('[{"a": 1} {}]', "after record 1 of .* comes '{'; expected a comma, or ] where the array ends"),
        ('[{"a": 1}', "after record 1 of .* comes the end of the file; expected a comma"),
        ('[{"a": 1},', "record 2 of .* is no JSON: Expecting value"),
        ('[{"a": "b]', "record 1 of .* is no JSON: Unterminated string"),
        ('[{"a": 1}] {', "after the array in .* comes '{'; expected the end of the file"),
        ('{"a": 1}\n\n{"a": fals}', "line 3 of .* is no JSON: Expecting value"),
        ("[" * 100_000, "record 1 of .* is no JSON: maximum recursion"),
        (f"[{'9' * 5000}]", "record 1 of .* is no JSON: Exceeds the limit"),
    ],
)
def test_files_that_hold_no_records_get_one_line(text, said, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said) as error:
        list(read_records(path))
    assert "\n" not in str(error.value)


# Instructions


def test_each_form_of_an_instruction_gives_the_same_example(tmp_path):
    records = (
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a", "output": "b"},
        {"prompt": "a", "completion": "b"},
        {"prompt": [ASKED], "completion": "b"},
        {"messages": [ASKED, ANSWER]},
    )
    for template in TEMPLATES.values():
        kept = read_instructions(write(tmp_path, *records), template, TOKENIZER, limited(300))
        assert len({example.token_ids.tobytes() for example in kept.items}) == 1
        assert kept.notes == []
    prompts = read_prompts(write(tmp_path, *records, {"prompt": "a", "schema": 7}), CHAT, TOKENIZER, limited())
    assert {TOKENIZER.decode(prompt.token_ids.tolist()) for prompt in prompts.items} == {
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    }
    assert prompts.items[-1].record["schema"] == 7


def test_with_prompts_unmasked_every_token_is_learned(tmp_path):
    path = write(tmp_path, {"prompt": "a", "completion": "b"})
    (example,) = read_instructions(path, PLAIN, TOKENIZER, limited(), mask_prompts=False).items
    assert example.targets.tolist() == [*example.token_ids[1:].tolist(), IGNORE_INDEX]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"instruction": "a", "input": "", "output": " "}, "record 2 of .*: the field output is ' '; expected a text"),
        ({"instruction": "a"}, "record 2 of .*: the field output is missing; expected a text"),
        ({"instruction": "a", "input": 3, "output": "b"}, "the field input is 3; expected a text"),
        ({"prompt": "a", "output": "b"}, "the field completion is missing"),
        ({"text": "a"}, "record 2 of .* has the fields text; expected instruction, prompt or messages among them"),
        ({"messages": []}, r"the field messages is \[\]; expected a list of messages"),
        ({"messages": ["a"]}, "message 1 of messages is 'a'; expected an object with role and content"),
        ({"messages": [{"role": "judge", "content": "a"}]}, "the field role is 'judge'; expected one of: system, user"),
        ({"messages": [ASKED, {"role": "assistant"}]}, "message 2 of messages: the field content is missing"),
        ({"messages": [ANSWER, ASKED]}, "the last of its messages is of the role 'user'; expected 'assistant'"),
        ({"messages": [ASKED, {"role": "system", "content": "a"}, ANSWER]}, "message 2 is of the role 'system'"),
    ],
)
def test_a_bad_instruction_gets_one_line(record, said, tmp_path):
    path = write(tmp_path, {"messages": [ASKED, ANSWER]}, record)
    with pytest.raises(InputError, match=said):
        read_instructions(path, PLAIN, TOKENIZER, limited())


def test_a_template_needs_its_tokens():
    with pytest.raises(InputError, match=r"'bytes' does not have; expected the tokenizer 'bytes\+<\|im_start"):
        CHAT.prompt([], get_tokenizer("bytes"))
    with pytest.raises(InputError, match="template 'x' is unknown; expected one of: alpaca, chatml, plain"):
        template_of("x")
    assert CHAT.end_id(TOKENIZER) == TOKENIZER.encode_single_token("<|im_end|>")


# What is too long


def test_what_is_too_long_is_refused_left_out_or_cut(tmp_path):
    path = write(tmp_path, {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "bcd"})  # 4 and 6 tokens
    with pytest.raises(InputError, match=r"record 2 of .* has 6 tokens; expected at most 5: shorten it"):
        read_instructions(path, PLAIN, TOKENIZER, limited(5))
    dropped = read_instructions(path, PLAIN, TOKENIZER, limited(5, "drop"))
    assert dropped.notes == ["left out 1 of 2 records, which are too long"]
    cut = read_instructions(path, PLAIN, TOKENIZER, limited(5, "truncate"))
    assert cut.notes == ["cut the end of 1 of 2 records, which are too long"]
    assert [TOKENIZER.decode(example.token_ids.tolist()) for example in cut.items] == ["a\nb<|endoftext|>", "a\nbcd"]
    with pytest.raises(InputError, match="no record is left: left out 2 of 2 records"):
        read_instructions(path, PLAIN, TOKENIZER, limited(3, "drop"))


@pytest.mark.parametrize("too_long", ["refuse", "truncate"])
def test_a_prompt_that_fills_the_context_gets_one_line(too_long, tmp_path):
    path = write(tmp_path, {"prompt": "abcd", "completion": "b"})
    said = "record 1 of .* has a prompt of 5 tokens, which fills the context of 5; expected room for an answer"
    with pytest.raises(InputError, match=said):
        read_instructions(path, PLAIN, TOKENIZER, limited(5, too_long))
    with pytest.raises(InputError, match=said):
        read_preferences(
            write(tmp_path, {"prompt": "abcd", "chosen": "b", "rejected": "c"}), PLAIN, TOKENIZER, limited(5, too_long)
        )


def test_limits_that_cannot_be():
    with pytest.raises(InputError, match="too_long is 'cut'; expected one of: refuse, drop, truncate"):
        Limit(5, "cut")
    with pytest.raises(InputError, match="an example may have 1 tokens; expected at least 2"):
        Limit(1)


# Preferences


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "a", "chosen": "b"}, "record 1 of .*: the field rejected is missing; expected a text"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "the field chosen is ''; expected a text"),
        ({"chosen": "b", "rejected": "c"}, "has the fields chosen, rejected; expected instruction, prompt or messages"),
        ({"chosen": [ASKED, ANSWER], "rejected": [ANSWER]}, "the messages before the answers differ in chosen and"),
        ({"prompt": "a", "chosen": [ASKED, ANSWER], "rejected": [ASKED, ANSWER]}, "before its answers, and prompt"),
        ({"prompt": "a", "chosen": [ASKED], "rejected": "c"}, "the last message of chosen is of the role 'user'"),
    ],
)
def test_a_bad_pair_gets_one_line(record, said, tmp_path):
    with pytest.raises(InputError, match=said):
        read_preferences(write(tmp_path, record), PLAIN, TOKENIZER, limited())


def test_pairs_that_are_alike_after_a_cut_are_left_out(tmp_path):
    path = write(
        tmp_path,
        {"instruction": "a", "chosen": "bcx", "rejected": "bcy"},
        {"chosen": [ASKED, ANSWER], "rejected": [ASKED, {**ANSWER, "content": "c"}]},
    )
    kept = read_preferences(path, PLAIN, TOKENIZER, limited(4, "truncate"))
    assert (len(kept.items), kept.truncated, kept.alike) == (1, 1, 1)
    assert "left out 1 of 2 pairs, whose two answers are the same" in kept.notes


# Labels


def test_a_run_tells_what_was_left_out_of_all_its_files(tmp_path):
    """Pairs that are too long and pairs whose answers are alike, of two files and of that to validate with."""
    fine, alike, long = ({"prompt": "a", "chosen": chosen, "rejected": "c"} for chosen in ("b", "c", "b" * 99))
    first = write(tmp_path, fine, alike, name="first.json")
    second = write(tmp_path, fine, fine, long, alike, name="second.json")
    options = FinetuneOptions(
        objective="dpo", template="plain", too_long="drop", text=(str(first), str(second)), val_data=(str(first),)
    )
    config = GPTConfig(257, 64, 8, 2, 1, 0.0, qkv_bias=False)
    assert options.read_corpus(get_tokenizer("bytes+<|endoftext|>"), config).notes == [
        "left out 1 of 6 records, which are too long",
        "left out 2 of 6 pairs, whose two answers are the same",
        "validation: left out 1 of 2 pairs, whose two answers are the same",
    ]


def test_labels_are_numbers_or_names_in_each_form(tmp_path):
    names = ("ham", "spam")
    paths = [write(tmp_path, {"text": "a", "label": 1}, {"text": "b, c", "label": "ham"})]
    for name, text in (("data.csv", 'Label,Text\nspam,a\n\n0,"b, c"\n'), ("data.tsv", "spam\ta\nham\tb, c\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        paths.append(tmp_path / name)
    for path in paths:
        found = read_labeled_texts(path, names, TOKENIZER, limited()).items
        assert [(bytes(text.token_ids.tolist()), text.label) for text in found] == [(b"a", 1), (b"b, c", 0)]


@pytest.mark.parametrize(
    ("name", "contents", "said"),
    [
        ("a.json", '[{"text": "a", "label": 2}]', "record 1 of .*: the field label is 2; expected a number from 0"),
        ("a.json", '[{"text": "a", "label": true}]', "the field label is True; expected a number from 0 to 1"),
        ("a.json", '[{"text": "a", "label": "eggs"}]', "the field label is 'eggs'; expected .* one of: ham, spam"),
        ("a.json", '[{"text": "a"}]', "the field label is missing"),
        ("a.tsv", "ham a", "line 1 of .* is 'ham a'; expected a label, a tab and a text"),
        ("a.tsv", "\n", "has no record; expected a label, a tab and a text in each line"),
    ],
)
def test_a_bad_label_gets_one_line(name, contents, said, tmp_path):
    (tmp_path / name).write_text(contents, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_labeled_texts(tmp_path / name, ("ham", "spam"), TOKENIZER, limited())


def test_classes_are_at_least_two(tmp_path):
    path = write(tmp_path, {"text": "a", "label": 0})
    for classes in (1, ("a", "a")):
        with pytest.raises(InputError, match="expected at least two, each with its own name"):
            read_labeled_texts(path, classes, TOKENIZER, limited())


# Batches


def datasets(folder):
    texts = [chr(97 + number) * (1 + number % 4) for number in range(7)]
    instructions = write(folder, *({"prompt": text, "completion": text} for text in texts))
    examples = read_instructions(instructions, PLAIN, TOKENIZER, limited()).items
    preferences = write(folder, *({"prompt": text, "chosen": text, "rejected": "z"} for text in texts))
    pairs = read_preferences(preferences, PLAIN, TOKENIZER, limited()).items
    labels = write(folder, *({"text": text, "label": len(text) - 1} for text in texts))
    labeled = read_labeled_texts(labels, 4, TOKENIZER, limited()).items
    return Examples(examples), PackedExamples(examples, 16), Pairs(pairs), LabeledTexts(labeled)


def as_lists(value):
    return value.tolist() if isinstance(value, np.ndarray) else [as_lists(part) for part in value]


def test_a_loader_gives_each_item_once_and_resumes(tmp_path):
    for dataset in datasets(tmp_path):
        epoch = iter(DataLoader(dataset, 2, shuffle=True, rng=3))
        first = as_lists(next(epoch))
        position = epoch.position
        rest = [as_lists(batch) for batch in epoch]
        resumed = DataLoader(dataset, 2, shuffle=True, rng=99).resume(position)
        assert [as_lists(batch) for batch in resumed] == rest
        assert len([first, *rest]) == -(-len(dataset) // 2)
        again = [as_lists(batch) for batch in DataLoader(dataset, 2, shuffle=True, rng=3)]
        assert again == [first, *rest]
        with pytest.raises(InputError, match=f"{len(dataset)} {dataset.unit} make no batch of 9"):
            DataLoader(dataset, 9, drop_last=True)


def test_packed_rows_hold_each_example_once_and_tell_how_full_they_are(tmp_path):
    examples, packed, _, _ = datasets(tmp_path)
    counted = np.sort(np.concatenate([batch.inputs[batch.inputs != 0] for batch in DataLoader(packed, 3)]))
    expected = np.sort(np.concatenate([example.token_ids for example in examples.examples]))
    assert np.array_equal(counted, expected)
    assert packed.note == f"packed 7 examples into 3 rows of 16 tokens, {46 / 48:.1%} full"
    with pytest.raises(InputError, match="example 1 has 9 tokens; a packed row has room for 8"):
        best_fit([3, 9], 8)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=40))
def test_best_fit_is_close_to_the_best(lengths):
    """There are fewer than twice the rows that the items need, by their tokens and by those that share no row."""
    rows = best_fit(lengths, 12)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= 12 for row in rows)
    needed = max(-(-sum(lengths) // 12), sum(length > 6 for length in lengths))
    assert len(rows) <= 2 * needed
