"""A program that reads a TensorFlow checkpoint, for `numpygpt.formats.tensorflow_file`.

    python -P tensorflow_process.py model.ckpt

runs in the checkpoint's folder. It prints a line of JSON, {variable: [dtype, shape]}. Then, for each line that it
reads, which is a variable's name in JSON, it prints the bytes of that variable. It ends when its input ends.

It imports nothing of numpygpt, so it needs no path to it.
"""

import json
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any, BinaryIO


def checkpoint_reader(prefix: str) -> Any:
    """What `tf.train.load_checkpoint` returns, without the rest of TensorFlow.

    `import tensorflow` imports all of it, which takes 4 seconds; the reader alone takes 0.8. A package that is already
    there is not imported, so an empty one is put in its place. A release that keeps the reader elsewhere is imported
    whole.
    """
    spec = find_spec("tensorflow")
    package = ModuleType("tensorflow")
    package.__path__ = list(spec.submodule_search_locations or ()) if spec else []
    sys.modules["tensorflow"] = package
    try:
        from tensorflow.python.training.py_checkpoint_reader import NewCheckpointReader
    except ImportError:
        del sys.modules["tensorflow"]
        from tensorflow.train import load_checkpoint as NewCheckpointReader  # noqa: N812
    return NewCheckpointReader(prefix)


def main(prefix: str, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more questions. `prefix` is the name of the checkpoint's files up to their ending."""
    reader = checkpoint_reader(prefix)
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    answers.write(json.dumps({name: [dtypes[name].name, shapes[name]] for name in shapes}).encode() + b"\n")
    answers.flush()
    for question in questions:
        answers.write(reader.get_tensor(json.loads(question)).data)
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
