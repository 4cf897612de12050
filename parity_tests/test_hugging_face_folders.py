"""Hugging Face's folders: transformers writes and we read, we write and transformers reads, and what is refused."""

import inspect
import json
import os
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, pipeline

import numpygpt
from numpygpt.checks.compare import compare, normwise
from numpygpt.errors import InputError
from numpygpt.formats import hugging_face
from numpygpt.formats.hugging_face import read_folder, write_folder
from numpygpt.formats.kinds import read_model
from numpygpt.model.config import GPTConfig
from numpygpt.model.gpt import GPTModel
from numpygpt.model.saving import model_of as saved_model
from numpygpt.model.saving import saved_config
from parity_tests.small_models import assert_equal, ids_of, model_of
from parity_tests.test_huggingface import with_qkv_together

CONFIG = GPTConfig(
    vocab_size=13, context_length=9, emb_dim=12, n_heads=3, n_layers=2, drop_rate=0.1, qkv_bias=True, tie_weights=True
)
#: What config.json may say otherwise, and what GPTConfig makes of it.
VARIANTS = {
    "as released": ({}, {}),
    "not tied": ({"tie_word_embeddings": False}, {"tie_weights": False}),
    "erf": ({"activation_function": "gelu"}, {"activation": "gelu_erf"}),
    "tanh": ({"activation_function": "gelu_pytorch_tanh"}, {"activation": "gelu_tanh"}),
    "eps": ({"layer_norm_epsilon": 0.01}, {"norm_eps": 0.01}),
    "square": ({"vocab_size": 12, "n_positions": 12}, {"vocab_size": 12, "context_length": 12}),
}


def transformers_model(dtype=torch.float64, **changes):
    """Asymmetric random weights; norms that scale and shift."""
    torch.manual_seed(1)
    values = {
        "vocab_size": CONFIG.vocab_size,
        "n_positions": CONFIG.context_length,
        "n_embd": CONFIG.emb_dim,
        "n_layer": CONFIG.n_layers,
        "n_head": CONFIG.n_heads,
        "attn_implementation": "eager",
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model = GPT2LMHeadModel(GPT2Config(**values | changes)).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def assert_computes_the_same(ours, theirs):
    """Logits, loss and every gradient, in float64."""
    config = ours.config
    inputs, targets = ids_of(config, 1), ids_of(config, 2)
    logits = theirs(torch.from_numpy(inputs)).logits
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    theirs.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    expected = with_qkv_together(hugging_face.TABLE.to_ours(config, gradients.__getitem__))
    expected |= {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    our_loss, our_gradients = ours.loss_and_grads(inputs, targets)
    found = {**with_qkv_together(our_gradients), "logits": ours(inputs), "loss": np.asarray(our_loss)}
    allowed = {name: normwise(array) for name, array in expected.items()}
    assert not [row for row in compare(found, expected, allowed, dtype=np.float64) if not row.passed]


# transformers writes, we read


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_of_transformers_computes_the_same(tmp_path, variant):
    changes, expected = VARIANTS[variant]
    theirs = transformers_model(**changes)
    theirs.save_pretrained(tmp_path)
    model = numpygpt.load_model(tmp_path)
    assert model.config == GPTConfig.of({**CONFIG.to_dict(), **expected})
    assert model.dtype == np.float64
    assert_computes_the_same(model, theirs)


def test_shards_are_one_model(tmp_path):
    theirs = transformers_model()
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_computes_the_same(numpygpt.load_model(tmp_path), theirs)


def test_the_body_alone_is_a_tied_model(tmp_path):
    """As OpenAI's release lies at Hugging Face: no prefix, no head, and the masks of attention among the weights."""
    theirs = transformers_model()
    theirs.transformer.save_pretrained(tmp_path)
    weights = safetensors.numpy.load_file(tmp_path / hugging_face.WEIGHTS)
    assert "h.0.attn.c_attn.weight" in weights
    masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 9, 9), np.float32)) for i in range(CONFIG.n_layers)}
    safetensors.numpy.save_file(weights | masks, tmp_path / hugging_face.WEIGHTS)
    assert_computes_the_same(numpygpt.load_model(tmp_path), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_numbers_become_float32(tmp_path, dtype):
    theirs = transformers_model(dtype)
    theirs.save_pretrained(tmp_path)
    model = numpygpt.load_model(tmp_path)
    assert model.dtype == np.float32
    assert {array.dtype for array in read_model(tmp_path).arrays("model").values()} == {np.dtype(np.float32)}
    expected = {name: tensor.detach().float().numpy() for name, tensor in theirs.named_parameters()}
    assert_equal(model.named_parameters(), hugging_face.TABLE.to_ours(CONFIG, expected.__getitem__))
    assert numpygpt.load_model(tmp_path, np.float64).dtype == np.float64
    notes = " ".join(read_model(tmp_path).notes)
    assert (str(dtype).removeprefix("torch.") in notes) == (dtype != torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_in_pytorchs_own_file(tmp_path, dtype):
    theirs = transformers_model(dtype)
    theirs.save_pretrained(tmp_path)
    expected = numpygpt.load_model(tmp_path)
    (tmp_path / hugging_face.WEIGHTS).unlink()
    torch.save(theirs.state_dict(), tmp_path / hugging_face.PICKLED)
    model = numpygpt.load_model(tmp_path)
    assert model.dtype == expected.dtype
    assert_equal(model.state_dict(), expected.state_dict())
    assert any("bfloat16" in note for note in read_model(tmp_path).notes) == (dtype == torch.bfloat16)


def test_what_config_json_leaves_out_is_as_in_transformers():
    """A GPT2Config of sizes alone."""
    sizes = {"vocab_size": 13, "n_positions": 9, "n_embd": 12, "n_layer": 2, "n_head": 3}
    theirs = GPT2Config(**sizes)
    config = hugging_face.config_of({"model_type": "gpt2", **sizes})
    assert (config.tie_weights, config.norm_eps) == (theirs.tie_word_embeddings, theirs.layer_norm_epsilon)
    assert config.drop_rate == theirs.resid_pdrop == theirs.embd_pdrop == theirs.attn_pdrop
    assert hugging_face.ACTIVATIONS[theirs.activation_function] == config.activation
    for name, expected in hugging_face.FIXED.items():
        assert getattr(theirs, name) == expected
    assert config == hugging_face.config_of(theirs.to_dict())


def test_several_dropouts_are_told(tmp_path):
    transformers_model(resid_pdrop=0.2).save_pretrained(tmp_path)
    assert saved_config(read_model(tmp_path)).drop_rate == 0.2
    assert "resid_pdrop 0.2, embd_pdrop 0.1, attn_pdrop 0.1" in " ".join(read_model(tmp_path).notes)


# We write, transformers reads

OURS = {
    "tied": {},
    "not tied": {"tie_weights": False},
    "no bias in queries, keys and values": {"qkv_bias": False, "tie_weights": False},
    "no bias": {"qkv_bias": False, "bias": False},
    "sinusoidal": {"position": "sinusoidal"},
    "erf, eps": {"activation": "gelu_erf", "norm_eps": 0.01},
}


def written(folder, changes, dtype=np.float64, tokenizer=None):
    config = GPTConfig.of({**CONFIG.to_dict(), **changes})
    model = model_of(config, seed=3, dtype=dtype)
    write_folder(folder, config, model.named_parameters(), tokenizer)
    return model


@pytest.mark.parametrize("changes", OURS.values(), ids=OURS)
def test_a_model_of_ours_computes_the_same_in_transformers(tmp_path, changes):
    model = written(tmp_path / "hf", changes)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    assert isinstance(theirs, GPT2LMHeadModel)
    assert next(theirs.parameters()).dtype == torch.float64
    with torch.no_grad():
        logits = theirs(torch.from_numpy(ids_of(model.config, 1))).logits.numpy()
    ours = model(ids_of(model.config, 1))
    assert compare({"": ours}, {"": logits}, {"": normwise(logits)}, dtype=np.float64)[0].passed


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("changes", OURS.values(), ids=OURS)
def test_there_and_back_nothing_changes(tmp_path, changes, dtype):
    model = written(tmp_path / "hf", changes, dtype)
    read = read_folder(tmp_path / "hf")
    assert read.config == model.config
    again = saved_model(read)
    assert again.dtype == dtype
    assert_equal(again.named_parameters(), model.named_parameters())


@pytest.mark.parametrize(
    ("changes", "module", "expected"),
    [
        ({"qkv_bias": False}, "transformer.h.1.attn.c_attn", {"qkv_bias": True}),
        ({"bias": False}, "transformer.ln_f", {"bias": True}),
    ],
)
def test_biases_that_transformers_trained_are_kept(tmp_path, changes, module, expected):
    """They were zeros in the place of what the model does without, as config.json goes on to say."""
    written(tmp_path / "ours", changes)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    with torch.no_grad():
        theirs.get_submodule(module).bias += 0.5
    theirs.save_pretrained(tmp_path / "trained")
    assert json.loads((tmp_path / "trained" / hugging_face.CONFIG).read_text())["numpygpt"]
    model = numpygpt.load_model(tmp_path / "trained")
    assert model.config == GPTConfig.of({**CONFIG.to_dict(), **changes, **expected})
    assert any("trained" in note for note in read_model(tmp_path / "trained").notes)
    assert_computes_the_same(model, theirs)


@pytest.fixture(scope="module", params=["gpt2", "bytes"])
def with_tokenizer(request, tmp_path_factory):
    """A folder of ours with a tokenizer, and the model that is in it."""
    folder = tmp_path_factory.mktemp(request.param) / "hf"
    size = {"gpt2": 50257, "bytes": 256}[request.param]
    return folder, written(folder, {"vocab_size": size, "context_length": 32}, np.float32, request.param)


def test_the_tokenizer_comes_back(with_tokenizer):
    folder, model = with_tokenizer
    assert read_folder(folder).tokenizer == {50257: "gpt2", 256: "bytes"}[model.config.vocab_size]


def test_a_pipeline_of_transformers_writes_the_same_text(with_tokenizer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder, model = with_tokenizer
    writer = pipeline("text-generation", model=str(folder))
    prompt = "Every effort"
    theirs = writer(prompt, max_new_tokens=8, do_sample=False)[0]["generated_text"]
    tokenizer = read_folder(folder).encoding()
    idx = numpygpt.text_to_token_ids(prompt, tokenizer)
    ids = numpygpt.generate(model, idx, 8, model.config.context_length, temperature=0.0)
    assert theirs == numpygpt.token_ids_to_text(ids, tokenizer)


def test_a_tokenizer_of_transformers_gives_the_same_ids(with_tokenizer):
    folder, _ = with_tokenizer
    theirs, ours = AutoTokenizer.from_pretrained(folder), read_folder(folder).encoding()
    for text in ("Every effort moves you", "  two  spaces\n\n", "naïve café 東京 🙂", "don't 12345 !!", "\x00\x7f"):
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == text
    assert len(theirs) == ours.n_vocab


def test_without_a_tokenizer_gpt2s_is_taken_if_its_size_fits(tmp_path):
    written(tmp_path / "small", {})
    small = read_folder(tmp_path / "small")
    assert (small.tokenizer, small.own_tokenizer) == (None, None)
    with pytest.raises(InputError, match=r"there is no tokenizer beside .*, so a prompt cannot be encoded"):
        small.encoding()
    written(tmp_path / "large", {"vocab_size": 50257})
    large = read_folder(tmp_path / "large")
    assert large.tokenizer == "gpt2"
    assert any("GPT-2's is taken" in note for note in large.notes)


def test_nothing_is_half_written(tmp_path, monkeypatch):
    """Not even if the last file fails; what was there before is as it was."""

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "hf"
    config, weights = CONFIG, model_of(CONFIG, seed=1).named_parameters()
    monkeypatch.setattr("numpygpt.formats.tokenizer_files.write_tokenizer", fail)
    with pytest.raises(InputError, match=f"cannot write the folder {folder}: No space left on device"):
        write_folder(folder, config, weights, "bytes")
    assert not list(tmp_path.iterdir())
    written(folder, {"tie_weights": False})
    with pytest.raises(InputError, match=f"cannot write the folder {folder}: No space left on device"):
        write_folder(folder, config, weights, "bytes", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert read_folder(folder).config.tie_weights is False


def test_only_a_folder_of_this_kind_is_replaced(tmp_path):
    folder = tmp_path / "hf"
    model = written(folder, {})
    with pytest.raises(InputError, match="already holds files; replace them with --overwrite, or name another"):
        write_folder(folder, model.config, model.named_parameters(), None)
    write_folder(folder, model.config, model.named_parameters(), "bytes", overwrite=True)
    assert read_folder(folder).tokenizer == "bytes"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files, such as notes\.txt, and is not replaced"):
        write_folder(folder, model.config, model.named_parameters(), None, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"


# What is refused


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """The suite's check of types would refuse some configurations before GPTConfig does."""
    monkeypatch.setattr(GPTConfig, "__init__", inspect.unwrap(GPTConfig.__init__))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "hf"
    written(folder, {})
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    """A copy of a sound folder."""
    copied = tmp_path / "hf"
    copied.mkdir()
    for path in sound.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    return copied


def assert_refused(folder, message):
    """In one line, and without much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message) as refused:
            saved_model(read_model(folder))
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert "\n" not in str(refused.value)


def change_config(folder, **changes):
    path = folder / hugging_face.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; expected 'gpt2', the one architecture"),
        ({"model_type": None}, "model_type is None; expected str"),
        ({"activation_function": "relu"}, "activation_function is 'relu'; expected one of: gelu_new"),
        ({"n_inner": 7}, r"n_inner is 7; expected 4 n_embd, 48, or null"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False; expected True"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True; expected False"),
        ({"add_cross_attention": True}, "add_cross_attention is True; expected False"),
        ({"n_embd": "12"}, "n_embd is '12'; expected int"),
        ({"n_head": 5}, "emb_dim 12 is not divisible by n_heads 5"),
        ({"n_layer": 3}, r"missing: transformer\.h\.2\.ln_1\.weight, .* and 2 more"),
        ({"n_layer": 1}, r"unexpected: transformer\.h\.1\."),
        ({"n_layer": 2**31 - 1}, "the model has 2147483647 blocks"),
        ({"vocab_size": 2**31 - 1}, r"misshaped: transformer\.wte\.weight \(13, 12\), expected \(2147483647, 12\)"),
        ({"tie_word_embeddings": False}, r"missing: lm_head\.weight"),
        ({"layer_norm_epsilon": 0}, "norm_eps is 0"),
        ({"numpygpt": {"qkv_bias": "no"}}, "qkv_bias is 'no'; expected True or False"),
        ({"numpygpt": []}, r"numpygpt is \[\]; expected dict"),
    ],
)
def test_configurations(folder, changes, message):
    change_config(folder, **changes)
    assert_refused(folder, message)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"model_type": ' + b'{"a":' * 100_000, "is no JSON"),
        (b'{"n_embd": ' + b"1" * 5000 + b"}", "is no JSON"),
        (b"[]", "holds a list; expected a JSON object"),
        (b"\xff\xfe\xfd", "is no JSON"),
    ],
    ids=["cut", "deep list", "deep object", "long number", "list", "not UTF-8"],
)
@pytest.mark.parametrize("name", [hugging_face.CONFIG, hugging_face.INDEX])
def test_json(folder, name, contents, message):
    if name == hugging_face.INDEX:
        (folder / hugging_face.WEIGHTS).unlink()
    (folder / name).write_bytes(contents)
    assert_refused(folder, message)


@pytest.mark.parametrize("name", [hugging_face.CONFIG, hugging_face.INDEX])
def test_large_json(folder, name):
    """Nothing is read past the most that such a file has."""
    (folder / hugging_face.WEIGHTS).unlink()
    (folder / name).touch()
    os.truncate(folder / name, 2**27)
    assert_refused(folder, r"it has more than \d+ bytes; such a file has fewer")


def with_length(header, length=None):
    return struct.pack("<Q", len(header) if length is None else length) + header


def header_of(shape, end):
    return json.dumps({"wte.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"no safetensors",
        with_length(b"{}", 2**63),
        with_length(b"[" * 100_000),
        with_length(b"{}" + b" " * 2**24),
        with_length(header_of([2**40], 2**42)),
        with_length(header_of([4], 4)) + b"0000",
    ],
    ids=["empty", "text", "huge header", "deep header", "long header", "past the end", "another size"],
)
def test_files_that_are_no_safetensors(folder, contents):
    (folder / hugging_face.WEIGHTS).write_bytes(contents)
    assert_refused(folder, "is truncated, damaged or no safetensors file")


def test_values_that_are_not_finite(folder):
    path = folder / hugging_face.WEIGHTS
    weights = safetensors.numpy.load_file(path)
    weights["transformer.h.1.mlp.c_fc.weight"][3, 4] = np.nan
    safetensors.numpy.save_file(weights, path)
    assert_refused(folder, r"holds values that are not finite in transformer\.h\.1\.mlp\.c_fc\.weight")


def test_a_head_that_is_tied_and_another(folder):
    path = folder / hugging_face.WEIGHTS
    weights = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(weights | {"lm_head.weight": weights["transformer.wte.weight"] + 1}, path)
    assert_refused(folder, r"lm_head\.weight differs from wte\.weight, but config\.json ties the two")


def test_no_weights(folder):
    (folder / hugging_face.WEIGHTS).unlink()
    assert_refused(folder, r"holds a config\.json, but no weights; expected model\.safetensors")
    (folder / hugging_face.PICKLED).write_bytes(b"anything")
    assert_refused(folder, r"pytorch_model\.bin is truncated, damaged, or no file of PyTorch")


# Shards


@pytest.fixture
def sharded(folder):
    """The folder with its weights in two files."""
    path = folder / hugging_face.WEIGHTS
    weights = safetensors.numpy.load_file(path)
    names = sorted(weights)
    places = {name: f"part-{1 + 2 * index // len(names)}.safetensors" for index, name in enumerate(names)}
    for part in dict.fromkeys(places.values()):
        safetensors.numpy.save_file({n: weights[n] for n in names if places[n] == part}, folder / part)
    path.unlink()
    (folder / hugging_face.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def change_index(folder, change):
    path = folder / hugging_face.INDEX
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_two_shards(sharded, sound):
    assert_equal(saved_model(read_folder(sharded)).state_dict(), saved_model(read_folder(sound)).state_dict())


def test_a_missing_shard(sharded):
    (sharded / "part-2.safetensors").unlink()
    assert_refused(sharded, r"lacks 1 of the files that .* names: part-2\.safetensors")


@pytest.mark.parametrize("name", ["../part.safetensors", "/etc/passwd", "..", ".", "", "a/b.safetensors", "a\0b", 5])
def test_a_shard_by_a_name_that_is_no_plain_name(sharded, name):
    change_index(sharded, lambda places: places.update({"transformer.wte.weight": name}))
    assert_refused(sharded, "expected the plain name of a file in that folder|expected str")


@pytest.mark.parametrize(
    "change",
    [
        lambda places: places.pop("transformer.wte.weight"),
        lambda places: places.update({"transformer.wte.weight": "part-1.safetensors"}),
        lambda places: places.update({"another": "part-1.safetensors"}),
    ],
    ids=["a tensor more", "another place", "a tensor less"],
)
def test_an_index_that_is_not_of_these_shards(sharded, change):
    change_index(sharded, change)
    assert_refused(sharded, r"differ on whether (transformer\.wte\.weight|another) is in part-")


# Links


@pytest.mark.parametrize("name", [hugging_face.CONFIG, hugging_face.WEIGHTS])
@pytest.mark.parametrize(
    "target", ["../elsewhere/{}", "{}", "nowhere", "/dev/zero"], ids=["out", "circle", "nowhere", "device"]
)
def test_links(folder, name, target):
    (folder / "../elsewhere").mkdir()
    (folder / name).rename(folder / "../elsewhere" / name)
    (folder / name).symlink_to(target.format(name))
    assert_refused(folder, "is a link out of its folder|leads nowhere|cannot read|is no regular file|but no weights")


def test_a_shard_that_is_a_link(sharded):
    (sharded / "part-1.safetensors").rename(sharded / "../moved")
    (sharded / "part-1.safetensors").symlink_to("../moved")
    assert_refused(sharded, r"part-1\.safetensors is a link out of its folder")


def test_pipes(folder):
    (folder / hugging_face.WEIGHTS).unlink()
    os.mkfifo(folder / hugging_face.WEIGHTS)
    assert_refused(folder, "is no regular file")


def test_the_hubs_cache_may_link_within_itself(folder, tmp_path):
    """Its snapshots are links to blobs, beside those of the same model alone."""
    model = tmp_path / "hub" / "models--org--name"
    blobs, snapshot = model / "blobs", model / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert isinstance(numpygpt.load_model(snapshot), GPTModel)
    (blobs / hugging_face.WEIGHTS).rename(tmp_path / "hub" / "elsewhere")
    (snapshot / hugging_face.WEIGHTS).unlink()
    (snapshot / hugging_face.WEIGHTS).symlink_to("../../../elsewhere")
    assert_refused(snapshot, "is a link out of its folder")
