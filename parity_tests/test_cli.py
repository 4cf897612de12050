"""The commands train, generate and info from end to end at tiny sizes, and the memory that info predicts."""

import re
import shlex
from dataclasses import fields, replace

import numpy as np
import pytest

from numpygpt import GPT_CONFIG_124M, GPTConfig, GPTModel, TorchGenerator, generate, get_tokenizer, text_to_token_ids
from numpygpt.commands.main import COMMANDS
from numpygpt.data.texts import python_reference_text
from numpygpt.formats import load_model
from numpygpt.formats.checkpoint import read_checkpoint, write_checkpoint
from numpygpt.model.config import ATTENTIONS
from numpygpt.model.saving import model_of, model_section, saved_config
from numpygpt.model.sizes import num_parameters, parameter_table, training_bytes
from numpygpt.training.options import Options
from numpygpt.tree import named
from parity_tests.command import TEXT, TRAINING, files, python, run, write_text

BYTES = get_tokenizer("bytes")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run, and what the training printed, with a clock of its own."""
    folder = tmp_path_factory.mktemp("trained")
    text = write_text(folder)
    done = python(
        "-m", "numpygpt", "train", "--text", text, *TRAINING, "--out", folder / "run",
        "--eval-every", 2, "--sample-every", 2, "--sample-prompt", "The ",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run", done


# train


def test_training_tells_its_losses_samples_files_and_what_to_do_next(trained):
    folder, done = trained
    lines = done.stdout.splitlines()
    parameters = load_model(folder).num_parameters()
    assert lines[0] == (
        f"{parameters:,} parameters; 24 training batches of 3 x 6 tokens; "
        f"3 steps to do at a learning rate of at most 0.004"
    )
    losses = re.findall(
        r"^step (\d+): training loss (\d+\.\d{3}), validation loss (\d+\.\d{3}) nats a token$", done.stdout, re.M
    )
    history = read_checkpoint(folder).values("run")["history"]
    printed = [(str(e["step"]), f"{e['train_loss']:.3f}", f"{e['val_loss']:.3f}") for e in history]
    assert printed == losses
    assert [entry["step"] for entry in history] == [0, 2, 3]
    samples = re.findall(r"^step (\d+): The .*$", done.stdout, re.M)
    assert samples == ["2", "3"]
    assert lines[-3:] == [
        f"wrote {folder}/checkpoint.safetensors",
        f"wrote {folder}/losses.png",
        f"let it write: numpygpt generate --checkpoint {folder} --prompt 'The '",
    ]
    assert sorted(files(folder)) == [
        "best/checkpoint.safetensors", "checkpoint.safetensors", "log.jsonl", "losses.png",
    ]  # fmt: skip
    assert files(folder)["losses.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(("prompt", "told"), [('$(exit) "why"', '$(exit) "why"'), ("", "The ")])
def test_a_shell_takes_the_command_that_is_told(tmp_path, capsys, monkeypatch, prompt, told):
    monkeypatch.setattr("numpygpt.training.run.TrainingRun.plot", lambda training: "no picture")
    folder = tmp_path / "a run; exit"
    given = ("--text", write_text(tmp_path), *TRAINING, "--sample-prompt", prompt, "--out", folder)
    assert run("train", *given) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("let it write: ")
    assert shlex.split(command) == ["numpygpt", "generate", "--checkpoint", str(folder), "--prompt", told]


def test_the_progress_bar_shows_rate_and_remaining_time_and_loss(trained):
    _, done = trained
    last = done.stderr.replace("\r", "\n").strip().splitlines()[-1]
    losses = r"val=\d+\.\d{3}, loss=\d+\.\d{3}"
    assert re.search(rf"^step 3/3: 100%.* 54\.0/54\.0 \[\d\d:\d\d<.*token/s, {losses}\]$", last), last


def test_the_text_may_be_several_files_and_every_option_reaches_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("numpygpt.training.run.TrainingRun.plot", lambda training: "no picture")
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text(TEXT)
    second.write_text("?" * 100)
    options = {
        "steps": 2, "batch_size": 2, "accumulate": 2, "lr": 0.01, "min_lr": 0.001, "warmup_steps": 1, "clip": 0.5,
        "weight_decay": 0.2, "eval_every": 5, "eval_batches": 2, "sample_every": 0, "sample_prompt": "x",
        "save_every": 7, "keep": 2, "seed": 5, "schedule": "wsd", "schedule_steps": 9, "dtype": "float64",
        "tokenizer": "bytes", "attention": "flash", "decay": "all", "decay_steps": 3, "optimizer": "sgd",
        "momentum": 0.5, "optimizer_state": "disk", "optimizer_state_dir": str(tmp_path / "state"),
        "precision": "fp32", "autocast": "cpu",
    }  # fmt: skip
    sizes = {"context_length": 5, "emb_dim": 6, "n_heads": 3, "n_layers": 2, "drop_rate": 0.25}
    flags = [part for name, value in {**options, **sizes}.items() for part in (f"--{name.replace('_', '-')}", value)]
    flags += ["--qkv-bias", "--tie-weights", "--checkpoint-activations", "--nesterov"]
    assert run("train", "--text", first, second, *flags, "--out", tmp_path / "run") == 0
    saved = read_checkpoint(tmp_path / "run")
    expected = {**options, "checkpoint_activations": True, "text": [str(first), str(second)]}
    expected |= {"vocab": None, "tokens": None, "nesterov": True, "rest_lr_scale": None}
    assert saved.values("run")["options"] == expected
    assert expected.keys() == {field.name for field in fields(Options)}
    assert saved_config(saved) == GPTConfig(256, **sizes, qkv_bias=True, tie_weights=True)
    assert model_of(saved).dtype == np.float64
    assert saved.values("run")["tokens_seen"] == 2 * 2 * 2 * 5


def test_the_defaults_learn_from_the_language_reference(monkeypatch, tmp_path, capsys):
    """This takes the first step of the default run, except for its size. The folder is named by date and time."""
    monkeypatch.setattr("numpygpt.training.run.TrainingRun.plot", lambda training: "no picture")
    monkeypatch.chdir(tmp_path)
    assert run("train", *TRAINING, "--steps", 1) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}", folder.name)
    windows = (int(0.9 * len(python_reference_text())) - 1) // 6
    found = re.search(r"; (\d+) training batches of 3 x 6 tokens", capsys.readouterr().out)
    assert int(found[1]) >= windows // 3
    assert read_checkpoint(folder).values("run")["options"]["text"] == []


def test_the_presets_sizes_and_what_replaces_them(capsys):
    assert run("info", "--preset", "gpt2-medium", "--n-layers", 2, "--no-tie-weights", "--drop-rate", 0) == 0
    out = capsys.readouterr().out
    for line in ("vocab_size 50257", "emb_dim 1024", "n_heads 16", "n_layers 2", "drop_rate 0.0", "qkv_bias True"):
        assert f"{line}\n" in out
    assert "tie_weights False\n" in out


@pytest.mark.parametrize(("preset", "parameters"), [("gpt2", "124,439,808"), ("book-124M", "163,009,536")])
def test_the_released_model_and_the_books_differ_in_their_head_and_in_biases(capsys, preset, parameters):
    assert run("info", "--preset", preset) == 0
    out = capsys.readouterr().out
    for line in (f"qkv_bias {preset == 'gpt2'}", f"tie_weights {preset == 'gpt2'}"):
        assert f"{line}\n" in out
    assert re.search(rf"^total +{parameters} ", out, re.M)


# generate


def test_generating_continues_the_prompt_as_the_library_does(trained, capsys):
    folder, _ = trained
    model, prompt = load_model(folder), text_to_token_ids("The c", BYTES)
    for options, expected in (
        ({"temperature": 0}, {}),
        ({"temperature": 1.5, "top-k": 20, "top-p": 0.9, "seed": 4}, {"temperature": 1.5, "top_k": 20, "top_p": 0.9}),
    ):
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        assert run("generate", "--checkpoint", folder, "--prompt", "The c", "--max-new-tokens", 12, *flags) == 0
        ids = generate(model, prompt, 12, 6, **expected, rng=TorchGenerator(4))[0]
        assert capsys.readouterr().out == bytes(ids.tolist()).decode(errors="replace") + "\n"


def test_several_samples_are_numbered_and_go_on_drawing(trained, capsys):
    flags = ("--max-new-tokens", 8, "--temperature", 2, "--seed", 1)
    assert run("generate", "--checkpoint", trained[0], "--prompt", "A", *flags, "--num-samples", 2) == 0
    first, second = re.findall(r"--- sample \d of 2\n(.*?)\n(?=---|\Z)", capsys.readouterr().out, re.S)
    assert first != second
    assert run("generate", "--checkpoint", trained[0] / "checkpoint.safetensors", "--prompt", "A", *flags) == 0
    assert capsys.readouterr().out == f"{first}\n"


def test_a_character_of_several_bytes_is_printed_when_it_is_whole(tmp_path, capsys):
    """The model says é again and again. It takes two tokens for each, and ends with half of one."""
    config = GPTConfig(256, context_length=4, emb_dim=4, n_heads=1, n_layers=1, drop_rate=0.0, qkv_bias=False)
    model = GPTModel(config)
    for array in model.named_parameters().values():
        array[...] = 0
    weights = model.state_dict()
    high, low = "é".encode()
    weights["tok_emb.weight"][[high, low]] = [[1, 0, 0, -1], [0, 1, 0, -1]]
    weights["final_norm.scale"][...] = 1
    weights["out_head.weight"][[low, high]] = [[1, 0, 0, 0], [0, 1, 0, 0]]
    write_checkpoint(tmp_path, {"model": model_section(model, "bytes")})
    assert run("generate", "--checkpoint", tmp_path, "--prompt", "é", "--temperature", 0, "--max-new-tokens", 5) == 0
    assert capsys.readouterr().out == "ééé\N{REPLACEMENT CHARACTER}\n"


def test_no_new_tokens_print_the_prompt(trained, capsys):
    assert run("generate", "--checkpoint", trained[0], "--prompt", "The", "--max-new-tokens", 0) == 0
    assert capsys.readouterr().out == "The\n"


def test_ctrl_c_while_generating_ends_without_a_traceback(trained, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        yield np.array([ord("!")])
        raise KeyboardInterrupt

    monkeypatch.setattr("numpygpt.commands.generate.stream", interrupted)
    assert run("generate", "--checkpoint", trained[0], "--prompt", "The") == 130
    assert capsys.readouterr() == ("The!", "")


# info


def test_info_prints_the_124m_models_parameters_as_published(capsys):
    assert run("info", "--preset", "book-124M") == 0
    out = capsys.readouterr().out
    for name, value in GPT_CONFIG_124M.items():
        assert f"{name} {value}\n" in out
    counts = dict(re.findall(r"^(\w+) +([\d,]+)   ", out, re.M))
    assert counts == {
        "tok_emb": "38,597,376",
        "pos_emb": "786,432",
        "trf_blocks": "85,026,816",
        "final_norm": "1,536",
        "out_head": "38,597,376",
        "total": "163,009,536",
    }
    assert "12 x 7,085,568: attention 2,360,064, feed-forward 4,722,432, norms 3,072\n" in out


def test_infos_memory_is_that_of_the_library_in_mebibytes(capsys):
    config = GPTConfig.of(GPT_CONFIG_124M)
    assert run("info", "--preset", "book-124M", "--batch-size", 3, "--tokens", 256, "--dtype", "float64") == 0
    out = capsys.readouterr().out
    assert "\na training step on 3 x 256 tokens in float64, AdamW:\n" in out
    parts = training_bytes(config, 3, 256, np.float64)
    printed = dict(re.findall(r"^(\w+) +([\d,.]+) MiB$", out, re.M))
    assert printed == {name: f"{size / 2**20:,.1f}" for name, size in parts._asdict().items()}
    assert parts.weights == parts.gradients == parts.optimizer // 2 == 8 * 163_009_536


def test_info_of_a_run(trained, capsys):
    folder, _ = trained
    assert run("info", "--checkpoint", folder) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{folder}/checkpoint.safetensors: tokenizer bytes, step 3\n")
    assert re.search(rf"^total +{load_model(folder).num_parameters():,}   parameters$", out, re.M)
    assert "a training step on 3 x 6 tokens in float32" in out


# The figures behind info


CONFIGS = [
    GPTConfig(11, 5, 6, 2, n_layers=2, drop_rate=drop_rate, **ways)
    for drop_rate in (0.0, 0.3)
    for ways in (
        {"qkv_bias": False},
        {"qkv_bias": True, "tie_weights": True},
        {"qkv_bias": False, "bias": False, "activation": "gelu_erf"},
    )
]
NAMES_OF_CONFIGS = [f"{config.drop_rate}, biases {config.qkv_bias}, {config.bias}" for config in CONFIGS]


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES_OF_CONFIGS)
def test_the_parameter_table_counts_the_models_own_arrays(config):
    counts = dict.fromkeys(["tok_emb", "pos_emb", "trf_blocks", "final_norm", "out_head"], 0)
    model = GPTModel(config)
    for name, array in model.named_parameters().items():
        counts[name.partition(".")[0]] += array.size
    assert {row.name: row.parameters for row in parameter_table(config)} == counts
    assert num_parameters(config) == model.num_parameters()


def bases_in(tree):
    """{address: array} of the arrays that own the memory of every array in the tree."""
    if isinstance(tree, np.ndarray):
        while isinstance(tree.base, np.ndarray):
            tree = tree.base
        return {id(tree): tree}
    children = tree if isinstance(tree, (tuple, list)) else ()
    return {address: base for child in children for address, base in bases_in(child).items()}


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES_OF_CONFIGS)
@pytest.mark.parametrize(("batch_size", "tokens", "dtype"), [(3, 5, np.float32), (2, 4, np.float64)])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_activations_are_the_bytes_that_a_forward_keeps(config, batch_size, tokens, dtype, attention):
    """Each owner of memory counts once. Parameters and token ids do not count, which exist without the forward."""
    model = GPTModel(config, dtype=dtype, attention=attention)
    masks = model.draw_dropout_masks(np.random.default_rng(0), batch_size, tokens)
    _, saved = model.forward(np.zeros((batch_size, tokens), int), masks=masks)
    kept = bases_in([saved, masks])
    for address in bases_in(model.parameters):
        kept.pop(address, None)
    held = sum(base.nbytes for base in kept.values() if base.dtype != np.int64)
    parts = training_bytes(config, batch_size, tokens, dtype, attention=attention)
    assert held == parts.activations
    itemsize = np.dtype(dtype).itemsize
    assert parts.logits == itemsize * batch_size * tokens * config.vocab_size
    assert parts.weights == sum(array.nbytes for array in bases_in(model.parameters).values())
    assert parts.gradients == parts.weights
    assert parts.optimizer == 2 * parts.weights
    assert len(list(named(model.parameters))) > len(bases_in(model.parameters)), "views must count once"


PEAK = """
import tracemalloc, sys
import numpy as np
from numpygpt import GPTConfig, GPTModel

config = GPTConfig(2000, 128, 96, 4, n_layers=6, drop_rate=float(sys.argv[1]), qkv_bias=True)
model = GPTModel(config, attention=sys.argv[2], checkpoint_activations=sys.argv[3] == "True")
ids = np.zeros((2, 128), int)
tracemalloc.start()
model.loss_and_grads(ids, ids, rng=np.random.default_rng(0))
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("drop_rate", [0.0, 0.2])
def test_the_peak_is_that_of_a_training_step_but_for_the_temporaries_of_a_block(
    attention, checkpoint_activations, drop_rate
):
    """The peak is measured: it has every byte that NumPy asks for while the loss and the gradients are computed."""
    done = python("-c", PEAK, drop_rate, attention, checkpoint_activations)
    assert done.returncode == 0, done.stderr
    config = GPTConfig(2000, 128, 96, 4, n_layers=6, drop_rate=drop_rate, qkv_bias=True)
    parts = training_bytes(config, 2, 128, attention=attention, checkpoint_activations=checkpoint_activations)
    predicted = parts.peak - parts.weights - parts.optimizer
    all_blocks, one_less = (
        training_bytes(replace(config, n_layers=n_layers), 2, 128, attention=attention).activations
        for n_layers in (6, 5)
    )
    assert predicted <= int(done.stdout) <= predicted + 2 * (all_blocks - one_less)


# Help


@pytest.mark.parametrize("command", [(), *((name,) for name in (*COMMANDS, "parity"))])
def test_help_names_each_default_once_and_no_default_of_none(command, capsys):
    assert run(*command, "--help") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith(f"usage: {' '.join(('numpygpt', *command))} ")
    assert "(default: None)" not in out
    assert not re.search(r"\(default: [^)]*\) \(default: ", out), "each default is named once"
