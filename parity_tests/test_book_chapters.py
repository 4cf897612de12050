"""The book's chapters 6 and 7 and appendices D and E: its listings, written here in PyTorch, against both packages.

The three runs of a listing start from the same weights in float64 and from the same seed, with dropout and shuffling.
"""

import contextlib
import csv
import inspect
import io
import json
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import numpygpt
import torchgpt
from numpygpt import InputError, TorchGenerator, get_tokenizer
from parity_tests.tolerances import FLOAT64_CURVE, FLOAT64_NORMWISE

BYTES = get_tokenizer("bytes")
CONFIG = {
    "vocab_size": 256, "context_length": 24, "emb_dim": 12, "n_heads": 3, "n_layers": 2, "drop_rate": 0.1,
    "qkv_bias": True,
}  # fmt: skip
PAD = 7
DEVICE = "cpu"

# What the book and its repository have: {function: its parameters, with the defaults}
SIGNATURES = {
    "create_balanced_dataset": "df",
    "random_split": "df, train_frac, validation_frac",
    "SpamDataset": "csv_file, tokenizer, max_length=None, pad_token_id=50256",
    "calc_accuracy_loader": "data_loader, model, device, num_batches=None",
    "calc_loss_batch": "input_batch, target_batch, model, device",
    "calc_loss_loader": "data_loader, model, device, num_batches=None",
    "evaluate_model": "model, train_loader, val_loader, device, eval_iter",
    "train_classifier_simple": (
        "model, train_loader, val_loader, optimizer, device, num_epochs, eval_freq, eval_iter"
    ),
    "plot_values": "epochs_seen, examples_seen, train_values, val_values, label='loss'",
    "classify_review": "text, model, tokenizer, device, max_length=None, pad_token_id=50256",
    "format_input": "entry",
    "InstructionDataset": "data, tokenizer",
    "custom_collate_fn": "batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device='cpu'",
    "train_model": (
        "model, train_loader, val_loader, optimizer, device, n_epochs, eval_freq, eval_iter, start_context, "
        "tokenizer, warmup_steps, initial_lr=3e-05, min_lr=1e-06"
    ),
    "replace_linear_with_lora": "model, rank, alpha",
}
#: What ours have beyond the book's, at the end.
MORE = {"plot_values": ["path=None"], "replace_linear_with_lora": ["scaling='lora'"]}
OF_MODULES = {"LoRALayer": "in_dim, out_dim, rank, alpha", "LinearWithLoRA": "linear, rank, alpha"}


def parameters_of(function):
    found = inspect.signature(function).parameters.values()
    return [
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
        for parameter in found
        if parameter.kind is not parameter.KEYWORD_ONLY
    ]


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_functions_have_the_parameters_of_the_book_and_numpys_have_no_device(name):
    expected = SIGNATURES[name].split(", ") + MORE.get(name, [])
    assert parameters_of(getattr(torchgpt, name)) == expected
    assert parameters_of(getattr(numpygpt, name)) == [each for each in expected if not each.startswith("device")]


@pytest.mark.parametrize("name", OF_MODULES)
def test_the_modules_have_the_parameters_of_the_book(name):
    assert parameters_of(getattr(torchgpt, name)) == [*OF_MODULES[name].split(", "), "scaling='lora'"]


# Models and data


@pytest.fixture
def short_samples(monkeypatch):
    """Print the start of a sample alone; a whole one takes longer than the training."""
    for package in ("numpygpt.training.book", "torchgpt.training"):
        monkeypatch.setattr(f"{package}.generate_and_print_sample", lambda *arguments: print(arguments[-1]))


def torch_model(seed=5, **changes):
    torch.manual_seed(seed)
    return torchgpt.GPTModel({**CONFIG, **changes}).double()


def differences(ours, theirs):
    assert np.shape(ours) == np.shape(theirs)
    return np.abs(np.subtract(ours, theirs)).max()


def assert_same_weights(numpy_model, model, name_of=lambda name: name):
    for name, tensor in model.named_parameters():
        ours = dict(numpy_model.state_dict())[name_of(name)]
        theirs = tensor.detach().numpy()
        theirs = theirs.T if ".lora." in name else theirs
        assert np.linalg.norm(ours - theirs) <= FLOAT64_CURVE * np.linalg.norm(theirs), name


SPAM = ["free cash now", "WIN a prize, call", "claim your free gift", "urgent: cash", "free entry, win", "call now"]
HAM = ["see you at noon", "are you home?", "ok, later", "thanks a lot", "on my way", "lunch?", "good night", "call mum"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The three CSV files of the book's chapter 6, made by pandas as the book makes them."""
    folder = tmp_path_factory.mktemp("spam")
    rows = [("spam", text + "!" * count) for count in range(3) for text in SPAM]
    rows += [("ham", text + "." * count) for count in range(4) for text in HAM]
    frame = pandas.DataFrame(rows, columns=["Label", "Text"])
    balanced = torchgpt.create_balanced_dataset(frame)
    balanced["Label"] = balanced["Label"].map({"ham": 0, "spam": 1})
    for name, part in zip(("train", "val", "test"), torchgpt.random_split(balanced, 0.7, 0.1), strict=True):
        part.to_csv(folder / f"{name}.csv", index=None)
    return folder


def of_the_book(frame):
    """The book's two functions: rows that pandas draws."""
    spam, ham = frame[frame["Label"] == "spam"], frame[frame["Label"] == "ham"]
    balanced = pandas.concat([ham.sample(len(spam), random_state=123), spam])
    shuffled = balanced.sample(frac=1, random_state=123).reset_index(drop=True)
    train_end = int(len(shuffled) * 0.7)
    validation_end = train_end + int(len(shuffled) * 0.1)
    return balanced, (shuffled[:train_end], shuffled[train_end:validation_end], shuffled[validation_end:])


@pytest.mark.parametrize("package", [numpygpt, torchgpt])
def test_rows_are_those_that_pandas_draws_of_a_frame_and_of_a_list(package):
    rows = [{"Label": "spam" if number % 3 else "ham", "Text": str(number)} for number in range(30)]
    rows = [{**row, "Label": {"ham": "spam", "spam": "ham"}[row["Label"]]} for row in rows]
    frame = pandas.DataFrame(rows, index=range(100, 130))
    balanced, parts = of_the_book(frame)
    ours = package.create_balanced_dataset(frame)
    pandas.testing.assert_frame_equal(ours, balanced)
    for our_part, part in zip(package.random_split(ours, 0.7, 0.1), parts, strict=True):
        pandas.testing.assert_frame_equal(our_part, part)
    listed = package.create_balanced_dataset(rows)
    assert listed == balanced.to_dict("records")
    assert list(package.random_split(listed, 0.7, 0.1)) == [part.to_dict("records") for part in parts]


# Chapter 6


class BookSpamDataset(torch.utils.data.Dataset):
    """The book's dataset: what pandas reads, as tensors."""

    def __init__(self, csv_file, tokenizer, max_length=None, pad_token_id=50256):
        self.data = pandas.read_csv(csv_file)
        encoded = [tokenizer.encode(text) for text in self.data["Text"]]
        self.max_length = max_length or max(map(len, encoded))
        self.encoded = [(ids + [pad_token_id] * self.max_length)[: self.max_length] for ids in encoded]

    def __getitem__(self, index):
        return torch.tensor(self.encoded[index]), torch.tensor(self.data.iloc[index]["Label"])

    def __len__(self):
        return len(self.data)


def book_loss(inputs, labels, model):
    return F.cross_entropy(model(inputs)[:, -1, :], labels)


@torch.no_grad()
def book_losses(loaders, model, eval_iter):
    model.eval()
    means = []
    for loader in loaders:
        batches = min(eval_iter, len(loader))
        losses = [book_loss(*batch, model).item() for number, batch in enumerate(loader) if number < batches]
        means.append(sum(losses) / batches)
    model.train()
    return means


@torch.no_grad()
def book_accuracy(loader, model, batches):
    model.eval()
    right, texts = 0, 0
    for number, (inputs, labels) in enumerate(loader):
        if number < batches:
            right += (torch.argmax(model(inputs)[:, -1, :], dim=-1) == labels).sum().item()
            texts += len(labels)
    return right / texts


def book_classifier(model, train_loader, val_loader, optimizer, num_epochs, eval_freq, eval_iter):
    losses, accuracies, seen, step = [], [], 0, -1
    for _ in range(num_epochs):
        model.train()
        for inputs, labels in train_loader:
            optimizer.zero_grad()
            book_loss(inputs, labels, model).backward()
            optimizer.step()
            seen += inputs.shape[0]
            step += 1
            if step % eval_freq == 0:
                losses.append(book_losses((train_loader, val_loader), model, eval_iter))
        accuracies.append([book_accuracy(loader, model, eval_iter) for loader in (train_loader, val_loader)])
    return (*map(list, zip(*losses, strict=True)), *map(list, zip(*accuracies, strict=True)), seen)


def torch_classifier(lora=None):
    """The book's classifier: all is frozen but the head, the last block and the last norm; or LoRA trains alone."""
    model = torch_model()
    for parameter in model.parameters():
        parameter.requires_grad = False
    torch.manual_seed(123)
    model.out_head = nn.Linear(12, 2).double()
    for parameter in (*model.trf_blocks[-1].parameters(), *model.final_norm.parameters()):
        parameter.requires_grad = True
    if lora is not None:
        for parameter in model.parameters():
            parameter.requires_grad = False
        torch.manual_seed(123)
        lora(model)
    return model


def numpy_classifier(lora=None):
    """The same in numpygpt's words."""
    model = numpygpt.class_head(numpygpt.freeze(torchgpt.to_numpy(torch_model(), copy=True), "*"), 2, seed=123)
    model = numpygpt.unfreeze(model, ["trf_blocks.1.*", "final_norm.*"])
    return model if lora is None else lora(model)


def torch_run(train_it, model, folder, dataset=torchgpt.SpamDataset):
    """The book's loaders, and a training with them from seed 123."""
    train = dataset(folder / "train.csv", BYTES, None, PAD)
    torch.manual_seed(123)
    train_loader = DataLoader(train, batch_size=8, shuffle=True, drop_last=True)
    val_loader = DataLoader(dataset(folder / "val.csv", BYTES, train.max_length, PAD), batch_size=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    return train_it(model, train_loader, val_loader, optimizer)


def numpy_run(model, folder):
    train = numpygpt.SpamDataset(folder / "train.csv", BYTES, None, PAD)
    val = numpygpt.SpamDataset(folder / "val.csv", BYTES, train.max_length, PAD)
    rng = TorchGenerator(123)
    train_loader = numpygpt.DataLoader(train, 8, shuffle=True, drop_last=True, rng=rng)
    val_loader = numpygpt.DataLoader(val, 8, rng=rng)
    optimizer = numpygpt.AdamW(model, lr=5e-3, weight_decay=0.1)
    return numpygpt.train_classifier_simple(
        model, train_loader, val_loader, optimizer, num_epochs=2, eval_freq=3, eval_iter=3, rng=rng
    )


PLAN = {"num_epochs": 2, "eval_freq": 3, "eval_iter": 3}


def theirs_and_torchs(model, twin, folder):
    """The results of the book's training of a model, and of torchgpt's of its twin."""
    theirs = torch_run(partial(book_classifier, **PLAN), model, folder, BookSpamDataset)
    torchs = torch_run(partial(torchgpt.train_classifier_simple, device=DEVICE, **PLAN), twin, folder)
    return theirs, torchs


@pytest.fixture(scope="module")
def trained(tables):
    """The book's, torchgpt's and numpygpt's classifiers after their training, the results, and what ours printed."""
    models = torch_classifier(), torch_classifier(), numpy_classifier()
    with contextlib.redirect_stdout(io.StringIO()) as torchs:
        results = theirs_and_torchs(*models[:2], tables)
    with contextlib.redirect_stdout(io.StringIO()) as numpys:
        results = (*results, numpy_run(models[2], tables))
    return models, results, (torchs.getvalue(), numpys.getvalue())


@pytest.fixture
def classifiers(trained):
    """The models and the results."""
    return trained[:2]


def test_a_classifier_learns_as_in_the_book(classifiers):
    (book, twin, ours), (theirs, torchs, numpys) = classifiers
    assert list(map(len, theirs[:4])) == [2, 2, 2, 2]
    assert theirs[0][-1] < theirs[0][0]
    for result in torchs, numpys:
        for our_list, their_list in zip(result[:2], theirs[:2], strict=True):
            assert differences(our_list, their_list) <= FLOAT64_CURVE
        assert result[2:] == theirs[2:]
    assert theirs[4] == 48
    for model in twin, book:
        assert_same_weights(ours, model)
    assert not twin.training


def test_the_frozen_part_of_the_classifier_stays(classifiers):
    (_, _, ours), _ = classifiers
    before = numpy_classifier().state_dict()
    moved = {name for name, array in ours.state_dict().items() if not np.array_equal(array, before[name])}
    # the bias of the keys has the gradient 0, so weight decay alone moves it
    expected = {name for name in before if name.startswith(("trf_blocks.1.", "final_norm.", "out_head."))}
    assert moved == expected


def test_the_books_lines_are_printed(trained):
    _, (theirs, *_), (printed, numpys_lines) = trained
    assert printed == numpys_lines
    lines = printed.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "Ep 1 (Step 000000)", "Training accuracy", "Ep 2 (Step 000003)", "Training accuracy"
    ]  # fmt: skip
    assert lines[0].endswith(f": Train loss {theirs[0][0]:.3f}, Val loss {theirs[1][0]:.3f}")
    assert lines[1] == f"Training accuracy: {100 * theirs[2][0]:.2f}% | Validation accuracy: {100 * theirs[3][0]:.2f}%"


def test_a_review_is_classified_as_in_the_book(classifiers):
    (book, twin, ours), _ = classifiers
    texts = ["free cash now", "see you at noon", "", "x", "call me, I am free " * 3]
    for max_length in (10, 24, 99):
        for text in texts:
            ids = BYTES.encode(text)[: min(max_length, 24)]
            ids += [PAD] * (min(max_length, 24) - len(ids))
            with torch.no_grad():
                label = book.eval()(torch.tensor([ids]))[:, -1, :].argmax(dim=-1).item()
            expected = "spam" if label == 1 else "not spam"
            assert torchgpt.classify_review(text, twin, BYTES, DEVICE, max_length, PAD) == expected
            assert numpygpt.classify_review(text, ours, BYTES, max_length, PAD) == expected
    assert numpygpt.classify_review("x" * 50, ours, BYTES) == torchgpt.classify_review("x" * 24, twin, BYTES, DEVICE)


def test_each_verdict_is_that_of_the_higher_score():
    for bias, expected in (([1.0, 0.0], "not spam"), ([0.0, 1.0], "spam")):
        model = numpy_classifier()
        model.parameters.out_head.weight[...] = 0
        model.parameters.out_head.bias[...] = bias
        assert numpygpt.classify_review("a", model, BYTES) == expected


def test_losses_and_accuracies_read_the_last_position_and_the_first_batches(classifiers, tables):
    (book, twin, ours), _ = classifiers
    dataset = numpygpt.SpamDataset(tables / "train.csv", BYTES, None, PAD)
    loader = numpygpt.DataLoader(dataset, 5)
    torch_loader = DataLoader(torchgpt.SpamDataset(tables / "train.csv", BYTES, None, PAD), 5)
    book.eval(), twin.eval()
    for batches in (1, 2, 99):
        expected = book_accuracy(torch_loader, book, batches)
        assert numpygpt.calc_accuracy_loader(loader, ours, batches) == expected
        assert torchgpt.calc_accuracy_loader(torch_loader, twin, DEVICE, batches) == expected
        losses = [book_loss(*batch, book).item() for number, batch in enumerate(torch_loader) if number < batches]
        assert differences(numpygpt.calc_loss_loader(loader, ours, batches), np.mean(losses)) <= FLOAT64_CURVE
        assert differences(torchgpt.calc_loss_loader(torch_loader, twin, DEVICE, batches), np.mean(losses)) <= (
            FLOAT64_CURVE
        )
    assert math.isnan(numpygpt.calc_accuracy_loader(loader, ours, 0))
    assert math.isnan(torchgpt.calc_accuracy_loader(torch_loader, twin, DEVICE, 0))


def test_a_dataset_of_spam_has_the_items_of_the_book(tables):
    ours = torchgpt.SpamDataset(tables / "train.csv", BYTES, 12, PAD)
    theirs = BookSpamDataset(tables / "train.csv", BYTES, 12, PAD)
    assert len(ours) == len(theirs)
    for (our_ids, our_label), (ids, label) in zip(map(ours.__getitem__, range(9)), theirs, strict=False):
        assert torch.equal(our_ids, ids)
        assert torch.equal(our_label, label)


def test_values_are_drawn_over_epochs_and_examples(tmp_path):
    figure = numpygpt.plot_values([0, 1], [0, 8], [0.5, 1.0], [0.5, 0.75], "accuracy", tmp_path / "a.png")
    below, above = figure.axes
    assert [line.get_label() for line in below.lines] == ["Training accuracy", "Validation accuracy"]
    assert (below.get_xlabel(), below.get_ylabel(), above.get_xlabel()) == ("Epochs", "Accuracy", "Examples seen")
    assert list(above.lines[0].get_xdata()) == [0, 8]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"^epochs_seen, examples_seen, train_values and val_values have lengths"):
        numpygpt.plot_values([0], [0, 8], [0.5], [0.5])


# Chapter 7


ENTRIES = [
    {"instruction": instruction, "input": more, "output": output}
    for instruction, more, output in [
        ("Add.", "1, 2", "3"), ("Say hello.", "", "Hello!"), ("Spell it.", "cat", "c a t"), ("Opposite?", "up", "down"),
        ("Count to 3.", "", "1 2 3"), ("Color?", "sky", "blue"), ("Rhyme.", "hat", "cat"), ("Double it.", "4", "8"),
    ]
]  # fmt: skip


def book_collate(batch, pad, allowed):
    """The book's function, row by row."""
    longest = max(len(item) + 1 for item in batch)
    rows = []
    for item in batch:
        padded = torch.tensor([*item, pad] + [pad] * (longest - len(item) - 1))
        inputs, targets = padded[:-1], padded[1:].clone()
        ends = torch.nonzero(targets == pad).flatten()
        targets[ends[1:]] = -100
        rows.append((inputs[:allowed], targets[:allowed]))
    return tuple(torch.stack(part) for part in zip(*rows, strict=True))


def book_language(model, train_loader, val_loader, optimizer, epochs, freq, eval_iter, *, rates=None, clip_from=None):
    """The loop of chapter 5 and of appendix D: losses, tokens and rates."""

    def loss_of(inputs, targets):
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def mean(loader):
        batches = min(eval_iter, len(loader))
        return sum(loss_of(*batch).item() for number, batch in enumerate(loader) if number < batches) / batches

    train_losses, val_losses, seen, lrs, tokens, step = [], [], [], [], 0, -1
    for _ in range(epochs):
        model.train()
        for inputs, targets in train_loader:
            optimizer.zero_grad()
            step += 1
            if rates is not None:
                lrs.append(rates(step))
                for group in optimizer.param_groups:
                    group["lr"] = lrs[-1]
            loss_of(inputs, targets).backward()
            if clip_from is not None and step >= clip_from:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            tokens += inputs.numel()
            if step % freq == 0:
                model.eval()
                train_losses.append(mean(train_loader))
                val_losses.append(mean(val_loader))
                seen.append(tokens)
                model.train()
    return train_losses, val_losses, seen, lrs


def instruction_loaders(make, dataset, collate, **options):
    train = make(dataset(ENTRIES[:6], BYTES), 2, collate_fn=collate, shuffle=True, drop_last=True, **options)
    return train, make(dataset(ENTRIES[6:], BYTES), 2, collate_fn=collate, **options)


@pytest.mark.usefixtures("short_samples")
def test_instructions_are_learned_and_answered_as_in_the_book(capsys):
    start = torchgpt.format_input(ENTRIES[1])
    config = {"context_length": 160, "n_layers": 1}
    plan = {"start_context": start, "tokenizer": BYTES}
    models = torch_model(**config), torch_model(**config)
    ours = torchgpt.to_numpy(models[0], copy=True)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1) for model in models]

    torch.manual_seed(123)
    loaders = instruction_loaders(
        DataLoader, torchgpt.InstructionDataset, partial(book_collate, pad=PAD, allowed=150)
    )
    theirs = book_language(models[0], *loaders, optimizers[0], 1, 2, 2)

    collate = partial(torchgpt.custom_collate_fn, pad_token_id=PAD, device=DEVICE, allowed_max_length=150)
    torch.manual_seed(123)
    loaders = instruction_loaders(DataLoader, torchgpt.InstructionDataset, collate)
    torchs = torchgpt.train_model_simple(models[1], *loaders, optimizers[1], DEVICE, 1, 2, 2, **plan)
    log = capsys.readouterr().out

    rng = TorchGenerator(123)
    collate = partial(numpygpt.custom_collate_fn, pad_token_id=PAD, allowed_max_length=150)
    loaders = instruction_loaders(numpygpt.DataLoader, numpygpt.InstructionDataset, collate, rng=rng)
    optimizer = numpygpt.AdamW(ours, lr=5e-3, weight_decay=0.1)
    numpys = numpygpt.train_model_simple(ours, *loaders, optimizer, 1, 2, 2, **plan, rng=rng)
    assert capsys.readouterr().out == log

    assert len(theirs[0]) == 2
    for result in torchs, numpys:
        assert differences(result[:2], theirs[:2]) <= FLOAT64_CURVE
        assert result[2] == theirs[2]
    for model in models:
        assert_same_weights(ours, model)

    model = models[1].eval()
    ids = torchgpt.generate(model, torchgpt.text_to_token_ids(start, BYTES), 9, 160, eos_id=PAD)
    text = torchgpt.token_ids_to_text(ids, BYTES)
    numpy_ids = numpygpt.generate(ours, numpygpt.text_to_token_ids(start, BYTES), 9, 160, eos_id=PAD)
    assert numpygpt.extract_response(numpygpt.token_ids_to_text(numpy_ids, BYTES), start) == (
        text[len(start) :].replace("### Response:", "").strip()
    )


@pytest.mark.parametrize("package", [numpygpt, torchgpt])
def test_an_answer_is_the_text_after_the_prompt_without_its_header(package):
    prompt = package.format_input(ENTRIES[0])
    assert package.extract_response(f"{prompt}\n\n### Response:\n3\n", prompt) == "3"


def test_the_books_records_make_the_books_batches():
    """The sizes of the parts and the shapes of the first batches are printed in chapter 7."""
    folder = os.environ.get("NUMPYGPT_DATA")
    if folder is None:
        pytest.skip("NUMPYGPT_DATA does not name the folder with the records of the book's chapter 7")
    data = json.loads((Path(folder) / "instruction-data.json").read_text(encoding="utf-8"))
    train_portion, test_portion = int(len(data) * 0.85), int(len(data) * 0.1)
    parts = data[:train_portion], data[train_portion : train_portion + test_portion]
    assert [*map(len, parts), len(data) - train_portion - test_portion] == [935, 110, 55]
    dataset = numpygpt.InstructionDataset(parts[0], get_tokenizer("gpt2"))

    collate = partial(numpygpt.custom_collate_fn, allowed_max_length=1024)
    loader = numpygpt.DataLoader(dataset, 8, shuffle=True, drop_last=True, rng=123, collate_fn=collate)
    torch.manual_seed(123)
    collate = partial(torchgpt.custom_collate_fn, allowed_max_length=1024, device=DEVICE)
    torch_loader = DataLoader(dataset, 8, collate_fn=collate, shuffle=True, drop_last=True, num_workers=0)
    batches = list(loader)
    for ours, theirs in zip(batches, torch_loader, strict=True):
        assert [part.tolist() for part in ours] == [part.tolist() for part in theirs]
    shapes = [inputs.shape for inputs, _ in batches]
    assert (len(shapes), shapes[:3], shapes[-2:]) == (116, [(8, 61), (8, 76), (8, 73)], [(8, 74), (8, 69)])


# Appendix D


TEXT = "No one had ever lingered in the hall quite as long as the cat, who owned it. " * 2


def steep_model():
    """One block, and gradients whose norm is above 1."""
    model = torch_model(n_layers=1)
    with torch.no_grad():
        model.out_head.weight *= 30
    return model


def text_loaders(package, **options):
    arguments = {"batch_size": 4, "max_length": 8, "stride": 8, "tokenizer": BYTES, **options}
    return (
        package.create_dataloader_v1(TEXT, shuffle=True, drop_last=True, **arguments),
        package.create_dataloader_v1(TEXT, shuffle=False, drop_last=False, **arguments),
    )


def book_rates(peak_lr, total, warmup, initial_lr=3e-5, min_lr=1e-6):
    def rate(step):
        if step < warmup:
            return initial_lr + step * ((peak_lr - initial_lr) / warmup)
        progress = (step - warmup) / (total - warmup)
        return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    return rate


@pytest.mark.usefixtures("short_samples")
@pytest.mark.parametrize("warmup", [2, 0, 8])
def test_warm_up_cosine_and_clipping_are_the_books(warmup, capsys):
    """With 8 steps, a warm-up of 8 is a run without cosine and clipping."""
    models = steep_model(), steep_model()
    ours = torchgpt.to_numpy(models[0], copy=True)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1) for model in models]
    torch.manual_seed(123)
    loaders = text_loaders(torchgpt)
    assert len(loaders[0]) == 4
    rates = book_rates(0.05, 8, warmup)
    theirs = book_language(models[0], *loaders, optimizers[0], 2, 3, 1, rates=rates, clip_from=warmup)

    torch.manual_seed(123)
    plan = {"start_context": "the cat", "tokenizer": BYTES, "warmup_steps": warmup}
    torchs = torchgpt.train_model(models[1], *text_loaders(torchgpt), optimizers[1], DEVICE, 2, 3, 1, **plan)
    log = capsys.readouterr().out
    rng = TorchGenerator(123)
    optimizer = numpygpt.AdamW(ours, lr=0.05, weight_decay=0.1)
    numpys = numpygpt.train_model(ours, *text_loaders(numpygpt, rng=rng), optimizer, 2, 3, 1, **plan, rng=rng)
    assert capsys.readouterr().out == log
    assert [line.split(":")[0] for line in log.splitlines()] == [
        "Ep 1 (Iter 000000)", "Ep 1 (Iter 000003)", "the cat", "Ep 2 (Iter 000006)", "the cat"
    ]  # fmt: skip

    for result in torchs, numpys:
        assert differences(result[:2], theirs[:2]) <= FLOAT64_CURVE
        assert result[2:] == theirs[2:]
    for model in models:
        assert_same_weights(ours, model)
    assert optimizer.lr == theirs[3][-1]


@pytest.mark.usefixtures("short_samples")
def test_the_first_step_after_the_warm_up_is_clipped():
    """The printed book clips from the next one on, which gives other losses: the gradients are large enough."""
    ends = []
    for clip_from in (2, 3):
        model = steep_model()
        torch.manual_seed(123)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        loaders = text_loaders(torchgpt)
        found = book_language(model, *loaders, optimizer, 1, 1, 2, rates=book_rates(0.05, 4, 2), clip_from=clip_from)
        ends.append(found[0])
    model = steep_model()
    torch.manual_seed(123)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torchs = torchgpt.train_model(model, *text_loaders(torchgpt), optimizer, DEVICE, 1, 1, 2, "a", BYTES, 2)
    assert differences(torchs[0], ends[0]) <= FLOAT64_CURVE
    assert differences(torchs[0], ends[1]) > FLOAT64_CURVE


@pytest.mark.parametrize("package", [numpygpt, torchgpt])
def test_a_negative_warm_up_is_refused(package):
    model = torch_model()
    if package is torchgpt:
        optimizer, device = torch.optim.SGD(model.parameters(), lr=0.1), [DEVICE]
    else:
        model, device = torchgpt.to_numpy(model), []
        optimizer = numpygpt.SGD(model, lr=0.1)
    with pytest.raises(InputError, match=r"^warmup_steps is -1; expected 0 or more$"):
        package.train_model(model, *text_loaders(package), optimizer, *device, 1, 1, 1, "a", BYTES, -1)


def test_the_highest_gradient_is_the_largest_value():
    model = torch_model(drop_rate=0.0)
    assert torchgpt.find_highest_gradient(model) is None
    ids = torch.randint(256, (2, 9))
    torchgpt.calc_loss_batch(ids[:, :-1], ids[:, 1:], model, DEVICE).backward()
    highest = max(parameter.grad.max().item() for parameter in model.parameters())
    assert torchgpt.find_highest_gradient(model).item() == highest
    _, grads = torchgpt.to_numpy(model).loss_and_grads(ids[:, :-1].numpy(), ids[:, 1:].numpy())
    assert math.isclose(numpygpt.find_highest_gradient(grads), highest, rel_tol=FLOAT64_NORMWISE)


# Appendix E


class BookLoRA(nn.Module):
    """The book's two modules in one."""

    def __init__(self, linear, rank, scale):
        super().__init__()
        self.linear, self.lora, self.scale = linear, nn.Module(), scale
        self.lora.A = nn.Parameter(torch.empty(linear.in_features, rank))
        nn.init.kaiming_uniform_(self.lora.A, a=math.sqrt(5))
        self.lora.B = nn.Parameter(torch.zeros(rank, linear.out_features))
        self.lora.double()

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.lora.A @ self.lora.B)


def book_replace(model, rank, scale):
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            setattr(model, name, BookLoRA(module, rank, scale))
        else:
            book_replace(module, rank, scale)


def numpys_name(name):
    """numpygpt's name of a parameter of the book's model with adapters."""
    for theirs, our in ((".lora.A", ".lora_A.default.weight"), (".lora.B", ".lora_B.default.weight")):
        name = name.replace(theirs, our)
    return name.replace(".linear.", ".")


@pytest.mark.parametrize(("scaling", "scale"), [("lora", 6.0 / 4), ("book", 6.0)])
def test_lora_starts_and_learns_as_in_the_book(scaling, scale, tables):
    """The rank, 4, is larger than the two rows of the head."""
    options = {"rank": 4, "alpha": 6.0} | ({} if scaling == "lora" else {"scaling": scaling})
    book = torch_classifier(lambda model: book_replace(model, 4, scale))
    twin = torch_classifier(partial(torchgpt.replace_linear_with_lora, **options))
    ours = numpy_classifier(partial(numpygpt.replace_linear_with_lora, **options))
    for name, parameter in book.named_parameters():
        assert np.array_equal(ours.state_dict()[numpys_name(name)], numpys_layout(name, parameter)), name
    trained = sum(parameter.numel() for parameter in book.parameters() if parameter.requires_grad)
    assert ours.num_parameters(trained_only=True) == trained
    assert trained == sum(parameter.numel() for parameter in twin.parameters() if parameter.requires_grad)

    theirs, torchs = theirs_and_torchs(book, twin, tables)
    numpys = numpy_run(ours, tables)
    for result in torchs, numpys:
        assert differences(result[:2], theirs[:2]) <= FLOAT64_CURVE
        assert result[2:] == theirs[2:]
    for model in book, twin:
        assert_same_weights(ours, model, numpys_name)


def numpys_layout(name, parameter):
    array = parameter.detach().numpy()
    return array.T if ".lora." in name else array


def test_a_path_of_low_rank_has_the_dtype_of_its_layer_and_refuses_bad_values():
    layer = torchgpt.LinearWithLoRA(nn.Linear(3, 5, dtype=torch.float64), 2, 4)
    assert layer.lora.A.dtype == layer.lora.B.dtype == torch.float64
    assert (layer.lora.A.shape, layer.lora.B.shape) == ((3, 2), (2, 5))
    with pytest.raises(InputError, match="rank is 0; expected an integer of 1 or more"):
        torchgpt.LoRALayer(3, 5, 0, 4)
    with pytest.raises(InputError, match="scaling is 'half'; expected one of 'lora', 'rslora', 'book'"):
        torchgpt.LoRALayer(3, 5, 2, 4, "half")
    with pytest.raises(InputError, match="alpha is 0; expected a positive number"):
        numpygpt.replace_linear_with_lora(numpy_classifier(), 4, 0)


def test_a_table_in_a_file_is_read_without_pandas(tables):
    """The lines that docs/book.md has in the place of pandas."""
    with (tables / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert pandas.read_csv(tables / "train.csv").astype(str).to_dict("records") == rows
