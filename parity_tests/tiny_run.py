"""A small training run in processes that are killed or stopped. This is a script, and the tests import what they share.

    python -m parity_tests.tiny_run serve DIR TEXT
        for each line on standard input a child process goes on with the run in DIR, and a line says how it ended
    python -m parity_tests.tiny_run train DIR TEXT STEPS [CALL]
        train a new run and print the digest of its state after each step; Ctrl-C comes in the CALLth micro-batch
    python -m parity_tests.tiny_run resume DIR STEPS
        go on with the run, and print the digest after each step

These processes lack the checks that the test run installs, which take most of the time of so small a run.
"""

import errno
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from numpygpt import GPTConfig, GPTModel
from numpygpt.errors import InputError
from numpygpt.formats.checkpoint import read_checkpoint
from numpygpt.training import earlier
from numpygpt.training.loop import Plan, train
from numpygpt.training.numpy_backend import NumpyBackend
from numpygpt.training.options import Options
from numpygpt.training.progress import Progress
from numpygpt.training.run import TrainingRun

CONFIG = GPTConfig(vocab_size=256, context_length=6, emb_dim=16, n_heads=2, n_layers=1, drop_rate=0.2, qkv_bias=True)
#: An epoch has 8 batches, and a step takes 3 of them, so steps end everywhere in an epoch, and some span two.
OPTIONS = {
    "steps": 10**6, "batch_size": 9, "accumulate": 3, "schedule": "constant", "lr": 0.01, "warmup_steps": 0,
    "eval_every": 7, "eval_batches": 1, "sample_every": 0, "keep": 3,
}  # fmt: skip
#: How a child ends, if its save is not refused. `UNIMPAIRED`: the operation that failed was not needed for the save.
KILLED, UNIMPAIRED, DONE = "killed", "done in spite of it", "done without an interruption"
#: A part of the name of a folder in which something is written.
UNFINISHED = ".numpygpt-"
#: What Python tells its audit hooks about files. A process is killed just before the Nth of these.
OPERATIONS = {
    "open", "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "shutil.rmtree",
    "tempfile.mkdtemp",
}  # fmt: skip


def start(directory, text, **changes):
    """The run before its first step."""
    options = Options(text=(str(text),), **{**OPTIONS, **changes})
    return TrainingRun.start(NumpyBackend, options, CONFIG, Path(directory))


def resume(directory, **changes):
    return TrainingRun.resume(NumpyBackend, Path(directory), **changes)


def digest(training):
    """The SHA-256 of everything that a later step depends on, and of everything that was recorded."""
    whole = sha256()
    for name, section in training.backend.state().items():
        whole.update(json.dumps([name, section.values], sort_keys=True).encode())
        for key, array in section.arrays.items():
            whole.update(f"{key} {array.dtype} {array.shape}".encode() + array.tobytes())
    history = [asdict(evaluation) for evaluation in training.history]
    whole.update(json.dumps([training.step, training.tokens_seen, history]).encode())
    return whole.hexdigest()


# A run that is killed again and again


def begun(directory, text):
    """The run after four steps, each of them saved, and two of them as the best so far. It does not accumulate."""
    training = start(directory, text, accumulate=1)
    while training.step < 4:
        go_on(training)
    return training


def go_on(training):
    """Take a step and save it. After every second step there is an evaluation, and perhaps a new best checkpoint."""
    training.train_step()
    if training.step % 2 == 0:
        training.evaluate()
        if training.best_step == training.step:
            training.save_best()
    training.save()


class Interruption:
    """An audit hook that does something just before the Nth operation on a file, counted from when it is made."""

    def __init__(self, what, number):
        self.what, self.left = what, number
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if event in OPERATIONS and self.left:
            self.left -= 1
            if not self.left:
                self.what()


def kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)


def fill_the_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def child(directory, order, number, ready):
    """What a child process does with the run; returns a line for the tests."""
    training = resume(directory)
    if order == "after":
        while True:
            go_on(training)
            os.write(ready, b".")
    interruption = Interruption({"kill": kill_this_process, "fill": fill_the_disk}[order], int(number))
    try:
        go_on(training)
    except InputError as error:
        return f"refused: {error}"
    return DONE if interruption.left else UNIMPAIRED


def serve(directory, text):
    """Begin a run, and fork a child for each order. It is a fork because imports take longer than the child.

    after SECONDS   kill it so many seconds after it has saved for the first time
    kill N          it kills itself before the Nth operation on files of a step and its save
    fill N          the Nth operation finds the disk full

    The answer is how the child has ended, and the steps that are saved. At the end of the input, the last line is the
    digest of the run, and that of one that was never interrupted.
    """
    begun(directory, text)
    for line in sys.stdin:
        order, number = line.split()
        read, write = os.pipe()
        process = os.fork()
        if not process:
            os.write(write, child(directory, order, number, write).encode())
            os._exit(0)
        os.close(write)
        if order == "after":
            os.read(read, 1)
            time.sleep(float(number))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        end = KILLED if os.WIFSIGNALED(status) else os.read(read, 10_000).decode()
        os.close(read)
        print(json.dumps([end, *saved_steps(Path(directory))]), flush=True)
    resumed = resume(directory)
    whole = begun(f"{directory} without an interruption", text)
    while whole.step < resumed.step:
        whole.train_step()
        if whole.step % 2 == 0:
            whole.evaluate()
    print(json.dumps([digest(resumed), digest(whole)]))


def saved_steps(directory):
    """The step of the last checkpoint, and those of the earlier ones. Every checkpoint of the run is checked."""
    for path in directory.rglob("*.safetensors"):
        if UNFINISHED not in str(path):
            checkpoint = read_checkpoint(path)
            checkpoint.check()
            assert path.parent.name != earlier.FOLDER or f"{checkpoint.values('run')['step']:013}" in path.name
    return read_checkpoint(directory).values("run")["step"], earlier.steps(directory)


# A run that is stopped


class Digests(Progress):
    """Prints the digest of the run after each step."""

    def stepped(self, run, loss, seconds):
        print(run.step, digest(run), flush=True)

    def write(self, line):
        pass


def stop_in_call(number):
    """Let Ctrl-C come in the middle of a step: when the forward and backward of its micro-batch begins."""
    loss_and_grads, calls = GPTModel.loss_and_grads, []

    def interrupted(model, *arguments, **options):
        calls.append(number)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return loss_and_grads(model, *arguments, **options)

    GPTModel.loss_and_grads = interrupted


def main(task, directory, *rest):
    if task == "serve":
        serve(directory, *rest)
        return
    if task == "train":
        text, steps, *call = rest
        training = start(directory, text, steps=int(steps))
        for number in call:
            stop_in_call(int(number))
    else:
        training = resume(directory, steps=int(rest[0]))
    train(training, Plan.of(training.options), Digests())


if __name__ == "__main__":
    main(*sys.argv[1:])
