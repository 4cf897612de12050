"""The checkpoint's format is what docs/checkpoint-format.md says, and version 1 is still read."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import numpygpt
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import FILE_NAME, read_checkpoint, write_checkpoint
from numpygpt.formats.tensor_file import DTYPES
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of, model_section, saved_config, saved_tokenizer
from numpygpt.random.torch_generator import TorchGenerator
from numpygpt.sections import Section
from numpygpt.training.adamw import AdamW
from numpygpt.training.groups import Group
from numpygpt.training.run import TrainingRun
from parity_tests.chatting import TOKENIZER, saved
from parity_tests.checkpoint_files import safetensors_of, sealed_v1
from parity_tests.command import TRAINING, run, write_text

DOCUMENT = (Path(__file__).parent.parent / "docs" / "checkpoint-format.md").read_text(encoding="utf-8")
CONFIG = GPTConfig(vocab_size=11, context_length=5, emb_dim=6, n_heads=2, n_layers=1, drop_rate=0.2, qkv_bias=True)


def code(language):
    """The blocks of the document in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def the_documents_reader():
    (source,) = code("python")
    names = {}
    exec(compile(source, "docs/checkpoint-format.md", "exec"), names)
    return names["read"]


def trained():
    """A model and its optimizer after a step; the optimizer has groups."""
    model = GPTModel(CONFIG)
    optimizer = AdamW(model, lr=0.01, groups=[Group(lambda name, array: array.ndim < 2, 0.5, weight_decay=0.0)])
    ids = np.arange(10).reshape(2, 5)
    optimizer.step(model.loss_and_grads(ids, ids)[1])
    return model, optimizer


def test_the_documents_reader_reads_a_checkpoint(tmp_path):
    model, optimizer = trained()
    arrays = {name: np.ones((2, 3), name) for name in DTYPES.values()} | {"no axes": np.array(2.5)}
    sections = {
        "model": model_section(model, "bytes"),
        "optimizer": optimizer.section(),
        "more": Section({"text": 'é "\\\n', "number": -0.1, "list": [None, True]}, arrays),
    }
    found = the_documents_reader()(write_checkpoint(tmp_path, sections))
    assert list(found) == list(sections)
    for name, (values, tensors) in found.items():
        assert json.dumps(values) == json.dumps(sections[name].values)
        assert list(tensors) == list(sections[name].arrays)
        for key, (dtype, shape, data) in tensors.items():
            array = sections[name].arrays[key]
            assert (DTYPES[dtype], tuple(shape)) == (array.dtype.name, array.shape)
            assert data == array.tobytes()


def test_the_documents_reader_finds_a_flipped_bit_in_an_array_or_a_value(tmp_path):
    path = write_checkpoint(tmp_path, {"part": Section({"step": 123}, {"array": np.arange(4.0)})})
    contents = path.read_bytes()
    for at in (contents.index(b"123") + 2, len(contents) - 1):
        changed = bytearray(contents)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(AssertionError):
            the_documents_reader()(path)


def test_the_documents_example_is_a_checkpoint_as_we_write_it(tmp_path, monkeypatch):
    monkeypatch.setattr(numpygpt, "__version__", "0.1.0")
    arrays = {"weight": np.array([[1, 2, 3], [4, 5, 6]], np.float32), "ids": np.array([50256])}
    contents = write_checkpoint(tmp_path, {"example": Section({"step": 7, "note": None}, arrays)}).read_bytes()
    length = int.from_bytes(contents[:8], "little")
    tensors = json.loads(contents[8 : 8 + length])
    header, others = code("json")
    assert tensors.pop("__metadata__") == {"numpygpt": header.strip()}
    assert tensors == json.loads(others)
    assert "`example`" in DOCUMENT
    assert contents[8 + length :].hex() in [block.strip() for block in code("")]
    assert re.search(rf"safetensors header has\s+{length} bytes, and the file {len(contents)}", DOCUMENT)


def test_the_document_names_every_checkpoint_of_a_run_and_its_reader_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    options = ("--steps", 3, "--save-every", 1, "--keep", 2)
    assert run("train", "--text", write_text(tmp_path), "--out", tmp_path / "run", *TRAINING, *options) == 0
    steps = {}
    for path in (tmp_path / "run").rglob("*.safetensors"):
        name = str(path.relative_to(tmp_path / "run"))
        documented = re.sub(r"\d{13}", "N" * 13, name)
        assert f"\n| `{documented}` |" in DOCUMENT
        steps[name] = the_documents_reader()(path)["run"][0]["step"]
    earlier = "earlier/step-0000000000002.safetensors"
    assert steps == {FILE_NAME: 3, earlier: 2, f"best/{FILE_NAME}": 3}


def assert_the_document_has(section, values):
    """The part of the document about this section names these values."""
    (part,) = re.findall(rf"^\*\*`{section}`\*\*(.*?)(?=^\*\*`|^## )", DOCUMENT, re.DOTALL | re.MULTILINE)
    documented = set(re.findall(r"`(\w+)`", part))
    assert values.keys() <= documented
    for inner in ("config", "position", "base", "adapted"):
        assert values.get(inner, {}).keys() <= documented
    for evaluation in values.get("history", []):
        assert evaluation.keys() <= documented


def test_the_document_names_every_section_and_value_of_a_run(tmp_path):
    assert run("train", "--text", write_text(tmp_path), "--out", tmp_path / "run", *TRAINING) == 0
    checkpoint = read_checkpoint(tmp_path / "run")
    assert checkpoint.names == re.findall(r"^\*\*`(\w+)`\*\*$", DOCUMENT, re.MULTILINE)
    for name in checkpoint.names:
        assert_the_document_has(name, checkpoint.values(name))
    assert checkpoint.layouts("random") == {"generator": ("uint8", (5056,))}


@pytest.mark.usefixtures("without_checks_of_annotations")
def test_the_document_names_every_section_and_value_of_a_run_that_tunes(tmp_path, monkeypatch):
    """PPO is stopped within its rounds, and so it has all sections that tuning may add."""
    monkeypatch.setattr(TrainingRun, "plot", lambda training: "no picture")
    config = replace(CONFIG, vocab_size=TOKENIZER.n_vocab, context_length=20)
    base = saved(tmp_path / "base", GPTModel(config))
    records = tmp_path / "records.jsonl"
    records.write_text('{"prompt": "Add", "chosen": "3", "rejected": "four"}\n' * 3)
    tuning = ("--checkpoint", base, "--data", records, "--template", "plain", "--steps", 1, "--eval-batches", 1)
    judge, tuned = tmp_path / "judge", tmp_path / "tuned"
    assert run("finetune", *tuning, "--objective", "reward", "--out", judge) == 0
    ppo = ("--objective", "ppo", "--reward-model", judge, "--max-new-tokens", 3, "--lora", "r=2")
    assert run("finetune", *tuning, *ppo, "--out", tuned) == 0
    checkpoint = read_checkpoint(tuned)
    assert set(checkpoint.names) >= {"aids", "critic", "rollout"}
    for name in checkpoint.names:
        values = checkpoint.values(name)
        assert_the_document_has("model" if name == "critic" else name, values)


# Version 1

RUN = {"step": 1, "options": {"text": ["a"], "lr": 0.01}, "history": []}
POSITION = {"order_seed": 5, "batches_done": 1}


def v1_of(model, optimizer=None, rng=None, tokenizer=None, training=None):
    """The contents and the tensors of a checkpoint as numpygpt wrote them before it had sections."""
    state = {} if optimizer is None else optimizer.state_dict()
    moments = {key: state[key] for key in ("exp_avg", "exp_avg_sq") if key in state}
    arrays = {
        **model.named_parameters(),
        **{f"optimizer.{key}.{name}": array for key in moments for name, array in moments[key].items()},
        **({} if rng is None else {"random.generator": rng.to_torch_state()}),
    }
    contents = {
        "config": model.config.to_dict(),
        "tokenizer": tokenizer,
        "training": training or {},
        "optimizer": {key: state[key] for key in ("step", "lr", "betas", "eps", "weight_decay")} if optimizer else None,
        "numpygpt_version": "0.0.1",
        "sha256": {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()},
    }
    return contents, arrays


def write_v1(path, contents, arrays):
    safetensors.numpy.save_file(arrays, path, metadata={"numpygpt": sealed_v1(contents)})


def use(path):
    """Everything that a checkpoint of version 1 is read for."""
    checkpoint = read_checkpoint(path)
    saved_tokenizer(checkpoint)
    AdamW(model_of(checkpoint)).load_section(checkpoint)
    checkpoint.arrays("random")


@pytest.fixture
def path(tmp_path):
    return tmp_path / FILE_NAME


@pytest.fixture
def everything():
    """A whole run of version 1: its model, optimizer and generator, and its contents and arrays."""
    model, rng = GPTModel(CONFIG), TorchGenerator(7)
    optimizer = AdamW(model, lr=0.01, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.3)
    ids = np.arange(10).reshape(2, 5)
    optimizer.step(model.loss_and_grads(ids, ids, rng=rng)[1])
    return model, optimizer, rng, *v1_of(model, optimizer, rng, "bytes", {**RUN, "position": POSITION})


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_version_1_is_read_as_the_same_sections(path, everything):
    model, optimizer, rng, contents, arrays = everything
    write_v1(path, contents, arrays)
    checkpoint = read_checkpoint(path)
    assert checkpoint.names == ["model", "optimizer", "random", "data", "run"]
    assert checkpoint.numpygpt_version == "0.0.1"
    assert (saved_config(checkpoint), saved_tokenizer(checkpoint)) == (CONFIG, "bytes")
    assert checkpoint.values("data") == {"position": POSITION}
    assert checkpoint.values("run") == RUN
    assert_same(checkpoint.arrays("random"), {"generator": rng.to_torch_state()})
    restored = model_of(checkpoint)
    assert_same(restored.state_dict(), model.state_dict())
    again = AdamW(restored)
    again.load_section(checkpoint)
    assert again.section().values == optimizer.section().values
    assert_same(again.section().arrays, optimizer.section().arrays)


def test_what_version_1_read_and_version_2_wrote_is_the_same(tmp_path, path, everything):
    _, _, _, contents, arrays = everything
    write_v1(path, contents, arrays)
    first = read_checkpoint(path)
    sections = {name: Section(first.values(name), first.arrays(name)) for name in first.names}
    second = read_checkpoint(write_checkpoint(tmp_path / "again", sections))
    assert second.names == first.names
    for name in first.names:
        assert second.values(name) == first.values(name)
        assert_same(second.arrays(name), first.arrays(name))


def test_a_model_alone_in_version_1(path):
    model = GPTModel({**CONFIG.to_dict(), "tie_weights": True})
    write_v1(path, *v1_of(model))
    checkpoint = read_checkpoint(path)
    assert checkpoint.names == ["model"]
    assert saved_tokenizer(checkpoint) is None
    assert_same(model_of(checkpoint).state_dict(), model.state_dict())


def test_damage_to_version_1_is_found(path, everything):
    _, _, _, contents, arrays = everything
    write_v1(path, contents, arrays)
    sound = path.read_bytes()
    changed = bytearray(sound)
    changed[-1] ^= 1
    path.write_bytes(changed)
    with pytest.raises(InputError, match=r"is damaged: the bytes of .* are not those that were saved"):
        use(path)
    path.write_bytes(sound.replace(rb"\"step\": 1", rb"\"step\": 2"))
    with pytest.raises(InputError, match=r"the header of the checkpoint .* is damaged: its seal does not fit"):
        read_checkpoint(path)
    without = {name: array for name, array in arrays.items() if name != "random.generator"}
    write_v1(path, contents, {**without, "extra": np.ones(2)})
    with pytest.raises(InputError, match=r"tensors missing \['random\.generator'\], unexpected \['extra'\]"):
        read_checkpoint(path)


def test_a_relabeled_dtype_in_version_1_is_refused_where_it_is_used(path, everything):
    """Version 1 hashed the bytes alone, so it is the parts that find what cannot be theirs."""
    _, _, _, contents, arrays = everything
    for key in ("tok_emb.weight", "optimizer.exp_avg.tok_emb.weight", "optimizer.exp_avg_sq.final_norm.scale"):
        write_v1(path, contents, {**arrays, key: arrays[key].view(np.int32)})
        with pytest.raises(InputError, match=r"cannot be used: .* do not fit"):
            use(path)


@pytest.mark.parametrize("place", ["config", "tokenizer", "training", "optimizer", "numpygpt_version", "sha256"])
@pytest.mark.parametrize("value", [5, [], json.loads("[" * 500 + "]" * 500), {"x": {}}], ids=type)
def test_version_1_with_other_contents_is_refused(path, everything, place, value):
    _, _, _, contents, arrays = everything
    contents[place] = value
    tensors = {key: ["F32", list(a.shape), a.tobytes()] for key, a in arrays.items() if a.dtype == np.float32}
    tensors["random.generator"] = ["U8", [5056], arrays["random.generator"].tobytes()]
    path.write_bytes(safetensors_of(tensors, {"numpygpt": sealed_v1(contents)}))
    if place == "training" and isinstance(value, dict):
        assert read_checkpoint(path).values("run") == value
    else:
        with pytest.raises(InputError):
            use(path)
