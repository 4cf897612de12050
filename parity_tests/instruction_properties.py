"""The properties that must hold for the data of instructions and preferences, in the manner of `properties`."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from numpygpt.adapt.vocabulary import resize_embeddings
from numpygpt.data.batching import Examples, LabeledTexts, Pairs
from numpygpt.data.examples import Example, Kept, Limit
from numpygpt.data.instructions import conversation_of
from numpygpt.data.labels import LabeledText
from numpygpt.data.packing import PackedExamples, best_fit, packed
from numpygpt.data.preferences import Pair, pair_of, read_preferences
from numpygpt.data.templates import ASSISTANT, TEMPLATES, USER, Message
from numpygpt.data.tokenizer import Encoding, get_tokenizer
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.shapes import IGNORE_INDEX, Array
from parity_tests.properties import agree

CONFIG = GPTConfig(vocab_size=12, context_length=12, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=True)
TIED = GPTConfig(**{**CONFIG.to_dict(), "tie_weights": True})
END, PAD = 11, 0
ALL = np.arange(3)

#: A prompt of tokens below 7, an answer, the token that ends it; the last has two answers.
EXAMPLES = [
    Example(np.array([1, 2, 8, END]), np.array([False, False, True, True])),
    Example(np.array([3, 9, END]), np.array([False, True, True])),
    Example(np.array([4, 7, END, 5, 10, 8, END]), np.array([False, True, True, False, True, True, True])),
]
PAIRS = [Pair(EXAMPLES[0], Example(np.array([1, 2, 7, 9, END]), np.array([False, False, True, True, True])))]
#: The last token of the second text is that of padding.
TEXTS = [LabeledText(np.array([5, 3, 1]), 1), LabeledText(np.array([6, PAD]), 0), LabeledText(np.array([2] * 5), 1)]

CONVERSATION = [Message(USER, "a?"), Message(ASSISTANT, "b"), Message(USER, "c<|im_end|>"), Message(ASSISTANT, "de")]
RECORD = {
    "prompt": [message._asdict() for message in CONVERSATION[:3]],
    "chosen": [CONVERSATION[3]._asdict()],
    "rejected": "f",
}


#: In each example of that pair.
SPECIAL_TOKENS = {"alpaca": 2, "chatml": 8, "plain": 2}


@cache
def tokenizer() -> Encoding:
    return get_tokenizer("bytes+<|endoftext|>+<|im_start|>+<|im_end|>")


@cache
def model_of(config: GPTConfig = CONFIG) -> GPTModel:
    rng = np.random.default_rng(14)
    names = GPTModel(config, dtype=np.float64).named_parameters()
    return GPTModel.from_state_dict(config, {name: rng.standard_normal(a.shape) / 2 for name, a in names.items()})


def learned(example: Example) -> str:
    """What a model learns to write: the targets that count, each of which has to be the next token."""
    targets = example.targets
    at = np.flatnonzero(targets != IGNORE_INDEX)
    assert np.array_equal(targets[at], example.token_ids[at + 1])
    return tokenizer().decode(targets[at].tolist())


def sums(batch: Any) -> tuple[Array, dict[str, Array]]:
    """The sum of the losses of a batch, and its gradients: the means, times the number of targets."""
    count = np.count_nonzero(batch.targets != IGNORE_INDEX)
    loss, grads = model_of().loss_and_grads(batch.inputs, batch.targets, **batch.options)
    return loss * count, {name: gradient * count for name, gradient in grads.items()}


def by_itself(example: Example) -> tuple[Array, dict[str, Array]]:
    """The same of an example alone, straight from its tokens."""
    inputs, following = example.token_ids[np.newaxis, :-1], example.token_ids[np.newaxis, 1:]
    targets = np.where(example.answer[np.newaxis, 1:], following, IGNORE_INDEX)
    loss, grads = model_of().loss_and_grads(inputs, targets)
    count = np.count_nonzero(example.answer[1:])
    return loss * count, {name: gradient * count for name, gradient in grads.items()}


def as_each_alone(batch: Any, examples: list[Example]) -> None:
    """The loss and the gradients of the batch are the sums of those of its examples."""
    loss, grads = sums(batch)
    alone = [by_itself(example) for example in examples]
    agree(np.array(loss), np.array(sum(one for one, _ in alone)), "the loss")
    for name, gradient in grads.items():
        if not name.endswith("W_key.bias"):  # zero, except for rounding
            agree(gradient, sum(one[name] for _, one in alone), name)


# Templates and masks


def answers_learned() -> None:
    """Of a conversation, the answers and what ends each are learned, and nothing else, under every template."""
    for name, end in (("alpaca", "<|endoftext|>"), ("chatml", "<|im_end|>"), ("plain", "<|endoftext|>")):
        assert learned(TEMPLATES[name].encode(CONVERSATION, tokenizer())) == f"b{end}de{end}", name
    one = TEMPLATES["plain"].encode([Message(USER, "a"), Message(ASSISTANT, "b")], tokenizer())
    assert learned(one) == "b<|endoftext|>"


def targets_by_hand() -> None:
    """The targets of small examples can be written down."""
    none = IGNORE_INDEX
    assert [example.targets.tolist() for example in EXAMPLES] == [
        [none, 8, END, none],
        [9, END, none],
        [7, END, none, 10, 8, END, none],
    ]


def texts_by_hand() -> None:
    """So can the text of a conversation. A special token in a message is text."""
    chat = TEMPLATES["chatml"].encode(CONVERSATION, tokenizer())
    text = (
        "<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|><|im_end|>\n<|im_start|>assistant\nde<|im_end|>"
    )
    assert tokenizer().decode(chat.token_ids.tolist()) == text
    assert np.count_nonzero(chat.token_ids == tokenizer().encode_single_token("<|im_end|>")) == 4
    assert np.count_nonzero(chat.token_ids == tokenizer().encode_single_token("<|im_start|>")) == 4
    record = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    messages = conversation_of(record, "", TEMPLATES["alpaca"])
    alpaca = tokenizer().decode(TEMPLATES["alpaca"].encode(messages, tokenizer()).token_ids.tolist())
    assert alpaca.startswith("Below is an instruction that describes a task. Write a response that appropriately")
    assert alpaca.endswith("\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n3<|endoftext|>")


def prompts_begin_examples() -> None:
    """The tokens of a prompt are those with which its example begins, and the first of them are not learned."""
    for template in TEMPLATES.values():
        first = template.prompt(CONVERSATION[:1], tokenizer())
        assert not template.encode(CONVERSATION, tokenizer()).answer[: len(first)].any()
        whole = template.encode(CONVERSATION, tokenizer())
        prompt = template.prompt(CONVERSATION[:-1], tokenizer())
        assert np.array_equal(whole.token_ids[: len(prompt)], prompt)
        assert tokenizer().decode(whole.token_ids[len(prompt) :].tolist()) == f"de{template.end}"


# Padding


def padding_by_hand() -> None:
    none = IGNORE_INDEX
    batch = Examples(EXAMPLES, PAD).batch(ALL[:2])
    assert batch.inputs.tolist() == [[1, 2, 8, END], [3, 9, END, PAD]]
    assert batch.targets.tolist() == [[none, 8, END, none], [9, END, none, none]]
    assert batch.lengths.tolist() == [4, 3]
    of_ends = Examples(EXAMPLES, END).batch(ALL[:2])
    assert LabeledTexts(TEXTS, END).batch(ALL).inputs.tolist() == [[5, 3, 1, END, END], [6, PAD, *[END] * 3], [2] * 5]
    assert of_ends.inputs.tolist() == [[1, 2, 8, END], [3, 9, END, END]]
    assert of_ends.targets.tolist() == batch.targets.tolist()
    assert of_ends.lengths.tolist() == [4, 3]


def padded_as_alone() -> None:
    """A padded batch gives what its examples give alone, whichever token is the padding: that of an end, too."""
    for pad_id in (PAD, 5, END):
        as_each_alone(Examples(EXAMPLES, pad_id).batch(ALL), EXAMPLES)


def classified_by_last_token() -> None:
    """The last real token of a padded text has the logits that it has alone."""
    batch = LabeledTexts(TEXTS, PAD).batch(ALL)
    assert batch.labels.tolist() == [text.label for text in TEXTS]
    logits = model_of()(batch.inputs)[ALL, batch.lengths - 1]
    for number, text in enumerate(TEXTS):
        agree(logits[number], model_of()(text.token_ids[np.newaxis])[0, -1], f"text {number}")


# Packing


def packing_by_hand() -> None:
    none = IGNORE_INDEX
    row = packed([EXAMPLES[:2]], PAD)
    assert PackedExamples(EXAMPLES, 7, pad_id=5).batch(ALL[:2]).inputs.tolist() == [
        [4, 7, END, 5, 10, 8, END],
        [1, 2, 8, END, 3, 9, END],
    ]
    assert PackedExamples(EXAMPLES[:2], 4, pad_id=5).batch(ALL[:2]).inputs.tolist() == [[1, 2, 8, END], [3, 9, END, 5]]
    assert row.inputs.tolist() == [[1, 2, 8, END, 3, 9, END]]
    assert row.targets.tolist() == [[none, 8, END, none, 9, END, none]]
    assert row.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    visible = np.zeros((7, 7), bool)
    visible[:4, :4], visible[4:, 4:] = np.tri(4), np.tri(3)
    assert np.array_equal(row.visible, visible[np.newaxis, np.newaxis])
    padding = packed([EXAMPLES[:1], EXAMPLES[2:]], PAD).visible[0, 0]
    assert np.array_equal(padding[:4, :4], np.tri(4, dtype=bool))
    assert not padding[4:].any(), "padding sees nothing"
    assert not padding[:, 4:].any(), "nothing sees padding"


def packed_as_alone() -> None:
    """Packed examples give what they give alone, in one row or in several with padding, by either attention."""
    batches = [
        (packed([EXAMPLES[:2]]), EXAMPLES[:2]),
        (packed([EXAMPLES[1:]]), EXAMPLES[1:]),
        (PackedExamples(EXAMPLES, 11, pad_id=5).batch(ALL[:2]), EXAMPLES),
    ]
    for attention in ("math", "flash"):
        model_of().attention = attention
        for batch, examples in batches:
            as_each_alone(batch, examples)
    model_of().attention = "math"


def rows_fit() -> None:
    """Each item is in one row, no row is too full, and small rows are those that can be written down."""
    assert best_fit([3, 7, 4, 2], 8) == [[1], [2, 0], [3]]
    assert best_fit([5, 3, 4, 4], 8) == [[0, 1], [2, 3]]
    lengths = np.random.default_rng(3).integers(1, 9, 40).tolist()
    rows = best_fit(lengths, 8)
    assert sorted(item for row in rows for item in row) == list(range(40))
    assert all(sum(lengths[item] for item in row) <= 8 for row in rows)


# Preferences


def pairs_by_hand() -> None:
    """Both answers of a pair follow one prompt, of which nothing is learned: earlier answers are a part of it."""
    for template in TEMPLATES.values():
        pair = pair_of(RECORD, "", template, tokenizer())
        assert (learned(pair.chosen), learned(pair.rejected)) == (f"de{template.end}", f"f{template.end}")
        prompt = template.prompt(CONVERSATION[:3], tokenizer())
        for example in pair:
            assert np.array_equal(example.token_ids[: len(prompt)], prompt)
            assert np.count_nonzero(example.token_ids >= 256) == SPECIAL_TOKENS[template.name]


def pairs_in_batches() -> None:
    """The chosen answers come first, and both have one width."""
    batch = Pairs(PAIRS, PAD).batch(ALL[:1])
    assert batch.chosen.inputs.tolist() == [[1, 2, 8, END, PAD]]
    assert batch.rejected.inputs.tolist() == [[1, 2, 7, 9, END]]
    assert batch.both.inputs.tolist() == [[1, 2, 8, END, PAD], [1, 2, 7, 9, END]]
    assert batch.both.lengths.tolist() == [4, 5]


def kept_pairs() -> Kept:
    """What is kept of a file with that record, and with one whose answers are alike."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.json"
        path.write_text(json.dumps([RECORD, {**RECORD, "rejected": "de"}]), encoding="utf-8")
        return read_preferences(path, TEMPLATES["chatml"], tokenizer(), Limit(200))


def pairs_from_files() -> None:
    """A file gives the same pair as its record, and pairs whose answers are alike are left out."""
    kept = kept_pairs()
    assert (len(kept.items), kept.alike) == (1, 1)
    assert (learned(kept.items[0].chosen), learned(kept.items[0].rejected)) == ("de<|im_end|>", "f<|im_end|>")
    both = Pairs(kept.items).batch(ALL[:1]).both
    assert [np.count_nonzero(row != IGNORE_INDEX) for row in both.targets] == [3, 2]


# Vocabulary


def old_logits_stay() -> None:
    """The logits of old tokens stay, and a tied head stays tied."""
    ids = np.array([[1, 5, 3]])
    for config in (CONFIG, TIED):
        resized = resize_embeddings(model_of(config), 14)
        agree(resized(ids)[..., :12], model_of(config)(ids), "the logits")
        tied = resized.parameters.out_head.weight is resized.parameters.tok_emb.weight
        assert tied == config.tie_weights


def new_rows_are_means() -> None:
    """The new rows are the means of the old ones, in the embedding and in the head."""
    for config in (CONFIG, TIED):
        old, new = model_of(config).state_dict(), resize_embeddings(model_of(config), 14).state_dict()
        for name in ("tok_emb.weight", "out_head.weight"):
            agree(new[name][12:], np.repeat(old[name].mean(axis=0, keepdims=True), 2, axis=0), name)
            assert np.array_equal(new[name][:12], old[name])
        assert (new["tok_emb.weight"] is new["out_head.weight"]) == config.tie_weights


# What a run through everything tells


def tell(watch: Any) -> None:
    """Tell token ids, masks and batches."""
    for name, template in TEMPLATES.items():
        example = template.encode(CONVERSATION, tokenizer())
        watch(f"{name}.token_ids", example.token_ids)
        watch(f"{name}.answer", example.answer.astype(np.int64))
        watch(f"{name}.targets", example.targets)
        pair = pair_of(RECORD, "", template, tokenizer())
        for which, example in zip(pair._fields, pair, strict=True):
            watch(f"{name}.{which}.token_ids", example.token_ids)
            watch(f"{name}.{which}.targets", example.targets)
    batches = {
        "examples": Examples(EXAMPLES, END).batch(ALL),
        "pairs": Pairs(PAIRS, PAD).batch(ALL[:1]).both,
        "texts": LabeledTexts(TEXTS, PAD).batch(ALL),
        "rows": packed([EXAMPLES[:2], EXAMPLES[2:]], PAD),
    }
    for name, batch in batches.items():
        for field, array in batch._asdict().items():
            watch(f"{name}.{field}", array.astype(np.int64))
    watch("pairs_of_a_file.alike", np.array(kept_pairs().alike))


def tell_resized(watch: Any) -> None:
    """Tell models with more tokens."""
    for name, config in (("resized", CONFIG), ("resized_tied", TIED)):
        resized = resize_embeddings(model_of(config), 14)
        for leaf in ("tok_emb.weight", "out_head.weight"):
            watch(f"{name}.{leaf}", resized.state_dict()[leaf])
        watch(f"{name}.tied", np.array(int(resized.parameters.out_head.weight is resized.parameters.tok_emb.weight)))


PROPERTIES = {
    "answers_learned": answers_learned,
    "targets_by_hand": targets_by_hand,
    "texts_by_hand": texts_by_hand,
    "prompts_begin_examples": prompts_begin_examples,
    "padding_by_hand": padding_by_hand,
    "padded_as_alone": padded_as_alone,
    "classified_by_last_token": classified_by_last_token,
    "packing_by_hand": packing_by_hand,
    "packed_as_alone": packed_as_alone,
    "rows_fit": rows_fit,
    "pairs_by_hand": pairs_by_hand,
    "pairs_in_batches": pairs_in_batches,
    "pairs_from_files": pairs_from_files,
    "old_logits_stay": old_logits_stay,
    "new_rows_are_means": new_rows_are_means,
}
