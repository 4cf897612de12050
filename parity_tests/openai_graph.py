"""GPT-2 in the graphs of TensorFlow 1, as OpenAI's model.py has it: writes checkpoints, and what the graph computes.

    python openai_graph.py FOLDER

makes a folder of OpenAI's files for each of CASES in FOLDER, by TensorFlow's own Saver, and beside it `NAME.npz` with
token ids and, computed by the graph in float64, the logits, the loss, and the gradient of each variable. It is a
program of its own, so that TensorFlow and PyTorch are not in one process.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

#: {name: (hparams, the dtype of the checkpoint)}
CASES = {
    "three_heads": ({"n_vocab": 13, "n_ctx": 9, "n_embd": 12, "n_head": 3, "n_layer": 2}, "float64"),
    "one_position": ({"n_vocab": 7, "n_ctx": 1, "n_embd": 8, "n_head": 1, "n_layer": 1}, "float64"),
    "single": ({"n_vocab": 11, "n_ctx": 6, "n_embd": 16, "n_head": 4, "n_layer": 1}, "float32"),
}
B = 2


class Graph:
    """The variables of a GPT-2, made where they are first used, and its logits."""

    def __init__(self, tf, hparams, rng, stored, dtype):
        self.tf, self.hparams, self.rng, self.stored, self.dtype = tf, hparams, rng, stored, dtype

    def variable(self, name, shape, mean=0.0):
        values = (mean + 0.4 * self.rng.standard_normal(shape)).astype(self.stored)
        return self.tf.get_variable(name, initializer=values.astype(self.dtype))

    def norm(self, x, scope):
        with self.tf.variable_scope(scope):
            width = x.shape[-1]
            g, b = self.variable("g", [width], mean=1.0), self.variable("b", [width])
            centered = x - self.tf.reduce_mean(x, axis=-1, keepdims=True)
            variance = self.tf.reduce_mean(self.tf.square(centered), axis=-1, keepdims=True)
            return centered * self.tf.math.rsqrt(variance + 1e-5) * g + b

    def conv1d(self, x, scope, outputs):
        """A convolution of width 1, which is a product."""
        with self.tf.variable_scope(scope):
            inputs = x.shape[-1]
            w, b = self.variable("w", [1, inputs, outputs]), self.variable("b", [outputs])
            rows = self.tf.reshape(x, [-1, inputs])
            return self.tf.reshape(rows @ self.tf.reshape(w, [inputs, outputs]) + b, [*x.shape[:-1], outputs])

    def gelu(self, x):
        return 0.5 * x * (1 + self.tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attention(self, x):
        tf, heads = self.tf, self.hparams["n_head"]
        batch, tokens, width = x.shape
        with tf.variable_scope("attn"):
            parts = tf.split(self.conv1d(x, "c_attn", 3 * width), 3, axis=2)
            queries, keys, values = (
                tf.transpose(tf.reshape(part, [batch, tokens, heads, width // heads]), [0, 2, 1, 3]) for part in parts
            )
            scores = tf.matmul(queries, keys, transpose_b=True) / math.sqrt(width // heads)
            seen = tf.constant(np.tril(np.ones((tokens, tokens))), x.dtype)
            weights = tf.nn.softmax(scores * seen - 1e10 * (1 - seen))
            merged = tf.reshape(tf.transpose(tf.matmul(weights, values), [0, 2, 1, 3]), [batch, tokens, width])
            return self.conv1d(merged, "c_proj", width)

    def mlp(self, x):
        with self.tf.variable_scope("mlp"):
            return self.conv1d(self.gelu(self.conv1d(x, "c_fc", 4 * x.shape[-1])), "c_proj", x.shape[-1])

    def logits(self, ids):
        tf, hparams = self.tf, self.hparams
        with tf.variable_scope("model"):
            wpe = self.variable("wpe", [hparams["n_ctx"], hparams["n_embd"]])
            wte = self.variable("wte", [hparams["n_vocab"], hparams["n_embd"]])
            x = tf.gather(wte, ids) + tf.gather(wpe, np.arange(ids.shape[1]))
            for layer in range(hparams["n_layer"]):
                with tf.variable_scope(f"h{layer}"):
                    x = x + self.attention(self.norm(x, "ln_1"))
                    x = x + self.mlp(self.norm(x, "ln_2"))
            return tf.matmul(self.norm(x, "ln_f"), wte, transpose_b=True)


def computed(tf, hparams, stored, dtype, folder=None):
    """Logits, loss and gradients by name; with a folder, the checkpoint is written there."""
    rng = np.random.default_rng(7)
    inputs, targets = rng.integers(0, hparams["n_vocab"], (2, B, hparams["n_ctx"]))
    with tf.Graph().as_default(), tf.Session() as session:
        logits = Graph(tf, hparams, rng, stored, dtype).logits(inputs)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits))
        variables = tf.trainable_variables()
        session.run(tf.global_variables_initializer())
        if folder is not None:
            tf.train.Saver(save_relative_paths=True).save(session, str(folder / "model.ckpt"))
            (folder / "hparams.json").write_text(json.dumps(hparams), encoding="utf-8")
        gradients = [tf.convert_to_tensor(gradient) for gradient in tf.gradients(loss, variables)]
        arrays = session.run([logits, loss, *gradients])
    names = ["logits", "loss", *(f"d_{variable.op.name}" for variable in variables)]
    return {"inputs": inputs, "targets": targets, **dict(zip(names, arrays, strict=True))}


def main(folder):
    import tensorflow.compat.v1 as tf

    tf.disable_v2_behavior()
    for name, (hparams, stored) in CASES.items():
        (folder / name).mkdir()
        arrays = computed(tf, hparams, stored, stored, folder / name)
        if stored != "float64":
            arrays = computed(tf, hparams, stored, "float64")
        np.savez(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
