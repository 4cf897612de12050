"""Bad input gets exit status 2 and one line on stderr that names the thing; nothing is written, overwritten or lost."""

import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy

from numpygpt import GPTConfig, GPTModel, InputError
from numpygpt.formats.checkpoint import FILE_NAME, write_checkpoint
from numpygpt.model.saving import model_section
from numpygpt.ops.cross_entropy import IGNORE_INDEX
from parity_tests.command import TEXT, TRAINING, but_the_log, files, python, run, write_text

CONFIG = GPTConfig(vocab_size=256, context_length=6, emb_dim=8, n_heads=2, n_layers=1, drop_rate=0.0, qkv_bias=False)
MODEL = GPTModel(CONFIG)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with text.txt in it."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """A finished run on a text.txt that is beside it."""
    folder = tmp_path_factory.mktemp("run")
    text = write_text(folder)
    assert run("train", "--text", text, *TRAINING, "--steps", 1, "--out", folder / "run") == 0
    return folder


@pytest.fixture
def trained(a_run, folder):
    """The current folder, with a copy of the finished run in `run`."""
    shutil.copytree(a_run / "run", folder / "run")
    return folder


def save(directory, model, tokenizer="bytes"):
    """Save a model without a training run."""
    write_checkpoint(directory, {"model": model_section(model, tokenizer)})


def refused(capsys, folder, *arguments):
    """The line that the command prints. It must be the only one, and no file may be touched."""
    before = files(folder)
    capsys.readouterr()
    status = run(*arguments)
    printed = capsys.readouterr()
    assert status == 2, printed
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.endswith("\n")
    assert re.match(r"numpygpt( \w+)?: error: ", printed.err)
    assert files(folder) == before
    return printed.err


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--emb-dim", 10, "--n-heads", 3), "emb_dim 10 is not divisible by n_heads 3"),
        (("--n-layers", 0), "n_layers is 0; expected a positive integer"),
        (("--context-length", -4), "context_length is -4; expected a positive integer"),
        (("--drop-rate", 1), r"drop_rate is 1\.0; expected a number in \[0, 1\)"),
        (("--drop-rate", "nan"), r"drop_rate is nan; expected a number in \[0, 1\)"),
        (("--steps", 0), "steps is 0; expected at least 1"),
        (("--steps", "many"), "argument --steps: invalid int value: 'many'; see numpygpt train --help"),
        (("--batch-size", 0), "batch_size is 0; expected at least 1"),
        (("--accumulate", 0), "accumulate is 0; expected at least 1"),
        (("--lr", -1), r"lr is -1\.0; expected a finite number of 0 or more"),
        (("--lr", "nan"), "lr is nan; expected a finite number of 0 or more"),
        (("--lr", "inf"), "lr is inf; expected a finite number of 0 or more"),
        (("--min-lr", -1), r"min_lr is -1\.0; expected a finite number of 0 or more"),
        (("--weight-decay", "nan"), "weight_decay is nan; expected a finite number of 0 or more"),
        (("--warmup-steps", -1), "warmup_steps is -1; expected 0 or more"),
        (("--clip", -1), r"clip is -1\.0; expected a finite number of 0 or more"),
        (("--eval-every", 0), "eval_every is 0; expected at least 1"),
        (("--eval-batches", 0), "eval_batches is 0; expected at least 1"),
        (("--sample-every", -1), "sample_every is -1; expected 0 or more"),
        (("--sample-every", 1, "--sample-prompt", ""), "sample_prompt is empty; expected text"),
        (("--save-every", -1), "save_every is -1; expected 0 or more"),
        (("--keep", 0), "keep is 0; expected at least 1"),
        (("--keep", -1), "keep is -1; expected at least 1"),
        (("--seed", 2**64), f"seed: found {2**64}; give an int"),
        (("--schedule", "steps"), "argument --schedule: invalid choice: 'steps'"),
        (("--decay-steps", 5), "decay_steps is 5, and the schedule is cosine; only wsd has it"),
        (("--optimizer", "rprop"), "argument --optimizer: invalid choice: 'rprop'"),
        (("--momentum", 0.9), "the optimizer adamw has no momentum; leave it out, or choose one that has: sgd"),
        (("--optimizer", "lion", "--nesterov"), "the optimizer lion has no nesterov; leave it out, or choose one that"),
        (("--optimizer", "sgd", "--momentum", 1), "momentum is 1.0; expected a number in "),
        (("--optimizer", "sgd", "--nesterov"), "nesterov with momentum 0 and dampening 0; expected a momentum above 0"),
        (("--optimizer-state", "tape"), "argument --optimizer-state: invalid choice: 'tape'"),
        (("--optimizer-state-dir", "d"), "optimizer_state_dir is for the optimizer_state disk; leave it out, or name"),
        (
            ("--optimizer-state", "disk", "--optimizer-state-dir", "/proc/nowhere"),
            "cannot be put on the disk, in /proc/nowhere: No such file or directory; name another folder with --opt",
        ),
        (("--dtype", "float16"), "argument --dtype: invalid choice: 'float16'"),
        (("--tokenizer", "words"), "argument --tokenizer: invalid choice: 'words'"),
        (("--vocab", "ranks.tiktoken"), r"tokenizer 'bytes' takes no vocabulary file; found ranks\.tiktoken"),
        (("--preset", "gpt3"), "argument --preset: invalid choice: 'gpt3'"),
        (("--heads", 2), "unrecognized arguments: --heads 2"),
        (("--resume", "run"), "argument --resume: not allowed with argument --out"),
        (("--batch-size", 1000), "the training part of the text is too short: .* windows make no batch of 1000"),
    ],
)
def test_options_of_train(capsys, folder, options, message):
    line = refused(capsys, folder, "train", "--text", "text.txt", *TRAINING, "--out", "run", *options)
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--temperature", -1), r"temperature is -1\.0; expected 0 .* or above"),
        (("--temperature", "nan"), "temperature is nan; expected 0 .* or above"),
        (("--top-k", 0), "top_k is 0; expected at least 1"),
        (("--top-p", 0), r"top_p is 0\.0; expected a number in \(0, 1\]"),
        (("--top-p", 1.5), r"top_p is 1\.5; expected a number in \(0, 1\]"),
        (("--max-new-tokens", -1), "--max-new-tokens is -1; expected 0 or more"),
        (("--num-samples", 0), "--num-samples is 0; expected 1 or more"),
        (("--seed", -(2**63) - 1), f"seed: found {-(2**63) - 1}; give an int"),
        (("--prompt", ""), "the prompt is empty; expected text to continue"),
        (("--vocab", "ranks.tiktoken"), r"tokenizer 'bytes' takes no vocabulary file; found ranks\.tiktoken"),
        (("--checkpoint", "nowhere"), r"there is no checkpoint nowhere.*; expected a folder that holds a checkpoint"),
    ],
)
def test_options_of_generate(capsys, trained, options, message):
    line = refused(capsys, trained, "generate", "--checkpoint", "run", "--prompt", "The", "--num-samples", 2, *options)
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--emb-dim", 10, "--n-heads", 3), "emb_dim 10 is not divisible by n_heads 3"),
        (("--vocab-size", 0), "vocab_size is 0; expected a positive integer"),
        (("--batch-size", 0), "a step on 0 x 128 tokens; expected at least 1 x 1"),
        (("--tokens", 0), "a step on 2 x 0 tokens; expected at least 1 x 1"),
        (("--tokens", 129), "a step on 2 x 129 tokens; .* at most context_length 128 tokens"),
        (("--momentum", 0.5), "the optimizer adamw has no momentum; leave it out, or choose one that has: sgd"),
        (("--optimizer", "sgd", "--parallel", "ddp=2"), "what devices hold is counted for AdamW in memory alone; add"),
    ],
)
def test_options_of_info(capsys, folder, options, message):
    assert re.search(message, refused(capsys, folder, "info", "--context-length", 128, *options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND; see numpygpt --help"),
        (("learn",), "argument COMMAND: invalid choice: 'learn'"),
        (("generate", "--prompt", "x"), "the following arguments are required: --checkpoint"),
        (("generate", "--checkpoint", "run"), "the following arguments are required: --prompt"),
        (("gradcheck", "--seed", -1), "--seed is -1; expected 0 or more"),
    ],
)
def test_commands(capsys, folder, arguments, message):
    assert message in refused(capsys, folder, *arguments)


def test_a_real_process_exits_with_2_and_prints_no_traceback(folder):
    done = python("-m", "numpygpt", "train", "--text", "text.txt", "--emb-dim", 10, "--n-heads", 3)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "numpygpt: error: emb_dim 10 is not divisible by n_heads 3: each head gets emb_dim / n_heads features; "
        "change one of the two\n"
    )
    assert list(files(folder)) == ["text.txt"]


# Texts


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", r"the text file other\.txt is empty; expected text to learn from"),
        (b"a", "a text of 1 characters cannot be split at 0.9, one part is empty: give more"),
        (b"short", "the training part of the text is too short: the text has 4 tokens; expected at least 7"),
        (TEXT[:50].encode(), "the validation part of the text is too short: the text has 5 tokens"),
        (b"caf\xe9 noir", r"the text file other\.txt is not UTF-8: found byte 0xe9 at offset 3"),
        (None, r"cannot read the text file other\.txt: No such file"),
    ],
)
def test_texts(capsys, folder, contents, message):
    """One window has 7 tokens: an input of 6, and the next token."""
    if contents is not None:
        (folder / "other.txt").write_bytes(contents)
    arguments = ("--text", "other.txt", *TRAINING, "--batch-size", 1, "--out", "run")
    assert re.search(message, refused(capsys, folder, "train", *arguments))


# Checkpoints


def test_a_run_is_not_overwritten(capsys, trained):
    line = refused(capsys, trained, "train", "--text", "text.txt", *TRAINING, "--out", "run")
    assert "run already holds a checkpoint; continue it with --resume run, replace it with --overwrite" in line


def test_a_folder_that_cannot_be_written_is_found_before_the_training(capsys, folder):
    line = refused(capsys, folder, "train", "--text", "text.txt", *TRAINING, "--out", "text.txt")
    assert "cannot write to the folder text.txt: File exists; choose another" in line


@pytest.mark.parametrize("command", ["generate", "info", "train"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "is truncated, damaged or no safetensors file"),
        (lambda whole: whole[:5], "is truncated, damaged or no safetensors file"),
        (lambda whole: b"", "is truncated, damaged or no safetensors file"),
        (lambda whole: b"not a checkpoint at all", "is truncated, damaged or no safetensors file"),
        (lambda whole: whole.replace(b"cosine", b"Cosine"), "is no numpygpt checkpoint|header .* is damaged"),
        (lambda whole: safetensors.numpy.save({"x": np.ones(3)}), "is no numpygpt checkpoint"),
    ],
    ids=["half", "five bytes", "empty", "text", "edited", "another kind"],
)
def test_damaged_checkpoints(capsys, trained, command, damage, message):
    path = trained / "run" / FILE_NAME
    path.write_bytes(damage(path.read_bytes()))
    options = {"generate": ("--checkpoint", "run", "--prompt", "x"), "info": ("--checkpoint", "run")}
    line = refused(capsys, trained, command, *options.get(command, ("--resume", "run")))
    assert "run/checkpoint.safetensors" in line
    assert re.search(message, line)


def test_a_flipped_bit_names_its_tensor(capsys, trained):
    path = trained / "run" / FILE_NAME
    whole = bytearray(path.read_bytes())
    with safetensors.safe_open(path, framework="numpy") as file:
        weights = file.get_tensor("model.out_head.weight").tobytes()
    whole[whole.index(weights) + 3] ^= 1
    path.write_bytes(whole)
    line = refused(capsys, trained, "generate", "--checkpoint", "run", "--prompt", "x")
    assert "is damaged: the bytes of model.out_head.weight are not those that were saved" in line


def test_weights_of_other_names_and_shapes_are_all_listed(capsys, folder):
    """The file is sound, but its weights are not those of its configuration."""

    class Other(GPTModel):
        def named_parameters(self):
            arrays = super().named_parameters()
            arrays["lm_head.weight"] = arrays.pop("out_head.weight")
            return arrays | {"final_norm.shift": np.zeros(9, np.float32)}

    save(folder / "run", Other(CONFIG))
    line = refused(capsys, folder, "generate", "--checkpoint", "run", "--prompt", "x")
    assert (
        "run/checkpoint.safetensors cannot be used: the weights do not fit the configuration: "
        "missing: out_head.weight; unexpected: lm_head.weight; misshaped: final_norm.shift (9,), expected (8,)"
    ) in line


def test_a_checkpoint_without_a_tokenizer_cannot_take_a_prompt(capsys, folder):
    save(folder / "run", MODEL, tokenizer=None)
    line = refused(capsys, folder, "generate", "--checkpoint", "run", "--prompt", "x")
    assert "names no tokenizer, so a prompt cannot be encoded" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--activation", "relu"), r"argument --activation: invalid choice: 'relu' .*gelu_tanh.*gelu_erf"),
        (("--norm-eps", 0), r"norm_eps is 0\.0; expected a positive finite number, such as 1e-5\n"),
        (("--norm-eps", "nan"), r"norm_eps is nan; expected a positive finite number, such as 1e-5\n"),
        (("--norm-eps", "small"), r"argument --norm-eps: invalid float value: 'small'"),
    ],
)
def test_how_a_model_is_made(capsys, folder, options, message):
    for command in (("info",), ("train", "--text", "text.txt", *TRAINING, "--out", "new")):
        assert re.search(f"error: {message}", refused(capsys, folder, *command, *options))


def test_a_prompt_past_the_models_vocabulary(capsys, folder):
    """The prompt is printed before the model reads it."""
    save(folder / "run", GPTModel({**CONFIG.to_dict(), "vocab_size": 100}))
    assert run("generate", "--checkpoint", "run", "--prompt", "az") == 2
    printed = capsys.readouterr()
    assert printed.out == "az"
    assert re.fullmatch(r"numpygpt: error: id 122 is outside .* 100 .*; ids go from 0 to 99.*\n", printed.err)


def test_info_of_a_run_takes_no_model(capsys, trained):
    """The sizes are those of the run. Options may say how a step is computed."""
    assert "there is no checkpoint nowhere" in refused(capsys, trained, "info", "--checkpoint", "nowhere")
    options = ("--preset", "book-124M", "--emb-dim", 64, "--no-qkv-bias")
    line = refused(capsys, trained, "info", "--checkpoint", "run", *options)
    assert "the model of --checkpoint has its own sizes; leave out --preset, --emb-dim, --qkv-bias\n" in line


# Resuming


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dtype", "float64"), "--dtype cannot change in a resumed run; leave them out, or start a new run"),
        (("--seed", 1, "--emb-dim", 16, "--batch-size", 2), "--batch-size, --emb-dim, --seed cannot change"),
        (("--schedule-steps", 9), "--schedule-steps cannot change"),
        (("--overwrite",), "--overwrite replaces a run, and --resume continues one; leave out one of the two"),
        (("--preset", "gpt2"), "--preset cannot change"),
        (("--no-qkv-bias",), "--qkv-bias cannot change"),
        (("--drop-rate", 0), "--drop-rate cannot change"),
        (("--steps", 0), "steps is 0; expected at least 1"),
        (("--sample-every", 1, "--sample-prompt", ""), "sample_prompt is empty"),
    ],
)
def test_a_resumed_run_keeps_its_options(capsys, trained, options, message):
    assert message in refused(capsys, trained, "train", "--resume", "run", *options)


def test_a_resumed_run_keeps_its_text(capsys, trained, a_run):
    try:
        write_text(a_run, TEXT[::-1])
        line = refused(capsys, trained, "train", "--resume", "run", "--steps", 2)
        assert re.search(r"the text \(.*text\.txt\) is not the one that the run in run learned from", line)
        (a_run / "text.txt").unlink()
        assert "cannot read the text file" in refused(capsys, trained, "train", "--resume", "run", "--steps", 2)
    finally:
        write_text(a_run)


def test_what_holds_no_run_cannot_be_resumed(capsys, folder):
    assert "there is no checkpoint nowhere" in refused(capsys, folder, "train", "--resume", "nowhere")
    save(folder / "model", MODEL)
    line = refused(capsys, folder, "train", "--resume", "model")
    assert "holds a model but no training run; start one with --out" in line


def test_fewer_steps_than_are_done(capsys, trained):
    arguments = ("train", "--text", "text.txt", *TRAINING, "--out", "longer", "--steps", 2)
    assert run(*arguments) == 0
    line = refused(capsys, trained, "train", "--resume", "longer", "--steps", 1)
    assert "steps is 1, but the run in longer has done 2; expected at least as many" in line


# A loss that is not finite


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_its_last_checkpoint(capsys, trained):
    """The bar is on stderr too; after it, there is one line and no warning of the overflow."""
    before = files(trained / "run")
    arguments = ("--lr", 1e30, "--min-lr", 1e30, "--steps", 50, "--save-every", 1, "--sample-every", 0)
    capsys.readouterr()
    assert run("train", "--resume", "run", *arguments) == 2
    printed = capsys.readouterr()
    *bar, line = printed.err.splitlines()
    assert re.fullmatch(
        r"numpygpt: error: after step 2 the loss is (nan|inf); the checkpoint of step 1 is as it was: go on from there "
        r"with a lower learning rate, such as numpygpt train --resume run --lr 1e\+29",
        line,
    )
    assert all("token/s" in part or not part.strip() for part in bar), "the rest is the bar"
    assert not any("Warning" in part for part in bar)
    assert but_the_log(files(trained / "run")) == but_the_log(before)


# Missing packages


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("tiktoken", ("train", "--text", "text.txt", *TRAINING, "--out", "new")),
        ("tiktoken", ("generate", "--checkpoint", "run", "--prompt", "x")),
        ("safetensors", ("generate", "--checkpoint", "run", "--prompt", "x")),
        ("safetensors", ("info", "--checkpoint", "run")),
        ("safetensors", ("train", "--resume", "run")),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(capsys, trained, monkeypatch, package, command):
    monkeypatch.setitem(sys.modules, package, None)  # now it seems not to be installed
    line = refused(capsys, trained, *command)
    assert package in line
    assert line.endswith(f"pip install {package}\n")


def test_without_tqdm_nothing_is_begun(capsys, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    before = files(folder)
    assert run("train", "--text", "text.txt", *TRAINING, "--out", "run") == 2
    assert re.fullmatch(r"numpygpt: error: .*tqdm.*pip install tqdm\n", capsys.readouterr().err)
    assert files(folder) == before


def test_without_scipy_gelus_exact_form_is_refused_before_anything_is_begun(capsys, folder, monkeypatch):
    save(folder / "exact", GPTModel(replace(CONFIG, activation="gelu_erf")))
    for module in ("scipy", "scipy.special"):
        monkeypatch.setitem(sys.modules, module, None)
    missing = "SciPy is not installed, and GELU's exact form needs its erf: pip install scipy\n"
    for command in (
        ("train", "--text", "text.txt", *TRAINING, "--out", "new", "--activation", "gelu_erf"),
        ("generate", "--checkpoint", "exact", "--prompt", "x"),
    ):
        assert refused(capsys, folder, *command).endswith(f": {missing}")
    assert run("info", "--checkpoint", "exact") == 0, "what computes nothing does not need it"


def test_without_matplotlib_the_training_goes_on_without_its_picture(capsys, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run("train", "--text", "text.txt", *TRAINING, "--out", "run") == 0
    written, picture, _ = capsys.readouterr().out.splitlines()[-3:]
    assert written == f"wrote run/{FILE_NAME}"
    missing = "matplotlib is not installed, and plots need it: pip install matplotlib"
    assert picture == f"no loss curves were drawn: {missing}"
    assert run("info", "--checkpoint", "run") == 0
    assert "step 3\n" in capsys.readouterr().out
    monkeypatch.undo()


# The library


@pytest.mark.parametrize("call", [MODEL, MODEL.forward, MODEL.decode, lambda ids: MODEL.loss_and_grads(ids, ids)])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[3, 256, 1]], "id 256 is outside .* 256 .*; ids go from 0 to 255"),
        ([[3, -1, 1]], "id -1 is outside .* 256 .*; ids go from 0 to 255"),
        ([[3, 300, -2]], "id 300 is outside .* 256 .*; ids go from 0 to 255"),
        ([[0] * 7], "a sequence of 7 tokens is longer than context_length 6: give .* the last 6 tokens"),
        ([1, 2, 3], r"token ids are int64 \(3,\); expected integers of shape \(batch, tokens\)"),
        ([[[1, 2]]], r"token ids are int64 \(1, 1, 2\); expected integers of shape \(batch, tokens\)"),
        ([[1.0, 2.0]], r"token ids are float64 \(1, 2\); expected integers of shape \(batch, tokens\)"),
        ([[True, False]], r"token ids are bool \(1, 2\); expected integers of shape \(batch, tokens\)"),
        ([[]], r"token ids are float64 \(1, 0\); expected integers of shape \(batch, tokens\), at least one of each"),
        (np.zeros((0, 3), int), r"token ids are int64 \(0, 3\); .* at least one of each"),
    ],
)
def test_token_ids(call, ids, message):
    with pytest.raises(InputError, match=message):
        call(ids)


def test_a_cache_counts_towards_the_context():
    _, past = MODEL.decode([[1, 2, 3, 4]])
    MODEL.decode([[5, 6]], past)
    with pytest.raises(InputError, match="a sequence of 7 tokens is longer than context_length 6"):
        MODEL.decode([[5, 6, 7]], past)


@pytest.mark.parametrize(("rows", "more"), [(3, 1), (1, 3)])
def test_a_cache_of_other_sequences(rows, more):
    _, past = MODEL.decode([[1, 2]] * rows)
    with pytest.raises(InputError, match=f"past is of 1 blocks and {rows} sequences; expected 1 and {more}"):
        MODEL.decode([[3]] * more, past)
    with pytest.raises(InputError, match=f"past is of 2 blocks and {rows} sequences; expected 1 and {rows}"):
        MODEL.decode([[3]] * rows, past + past)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[1, 2, 256]], "target id 256 is outside the vocabulary of 256; ids go from 0 to 255"),
        ([[1, -1, 2]], "target id -1 is outside the vocabulary of 256; ids go from 0 to 255"),
        ([[1, 300, -2]], "target id 300 is outside the vocabulary of 256; ids go from 0 to 255"),
        ([[1, 2]], r"targets are int64 \(1, 2\); expected integers shaped as the inputs, \(1, 3\)"),
        ([[1.0, 2.0, 3.0]], r"targets are float64 \(1, 3\); expected integers shaped as the inputs, \(1, 3\)"),
    ],
)
def test_targets(targets, message):
    with pytest.raises(InputError, match=message):
        MODEL.loss_and_grads([[1, 2, 3]], targets)
    MODEL.loss_and_grads([[1, 2, 3]], [[1, IGNORE_INDEX, 2]])
