"""`gpt`: real mistakes in the whole model and its face."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.model import gpt

_BACKWARD = "model.gpt:GPTModel.backward"

BUGS = (
    Bug(
        "tied_head_gradient_forgotten",
        "with tied weights only the embedding's path reaches the gradient",
        "no public report known",
        "d_tok_emb.weight",
        ("gradients", "complex_step"),
        (Change(_BACKWARD, 'gradients["tok_emb.weight"] += gradients.pop', "gradients.pop"),),
    ),
    Bug(
        "dropout_alive_in_evaluation",
        "evaluation drops elements",
        "pytorch#124464",
        "merged_twice.logits",
        ("evaluation", "cache"),
        (
            Change(
                "model.gpt:GPTModel.__call__",
                "self.forward(in_idx,",
                "self.forward(in_idx, masks=self.draw_dropout_masks(np.random.default_rng(), *np.shape(in_idx)),",
            ),
        ),
    ),
    Bug(
        "evaluation_ends_dropout",
        "an evaluation turns dropout off for good",
        "Megatron-LM#411",
        "after_evaluation.drop_emb",
        ("evaluation", "purity"),
        (
            Change(
                "model.gpt:GPTModel.__call__",
                "return logits",
                "self.config = GPTConfig.of({**self.config.to_dict(), 'drop_rate': 0.0})\n    return logits",
            ),
        ),
    ),
    Bug(
        "backward_accumulates",
        "a second backward adds to the first's gradients",
        "micrograd#102",
        "micro_batches.tok_emb.weight",
        ("purity", "micro_batches"),
        (
            Change(
                _BACKWARD,
                "return gradients",
                "earlier = getattr(self, '_earlier', {})\n"
                "    self._earlier = {name: g + earlier.get(name, 0) for name, g in gradients.items()}\n"
                "    return self._earlier",
            ),
        ),
    ),
    Bug(
        "square_weights_transposed",
        "in and out of a square matrix exchanged on loading: no shape complains",
        "nanoGPT#190",
        "loaded.trf_blocks.0.att.W_query.weight",
        ("weights", "forward"),
        (
            Change(
                "model.gpt:GPTModel.load_state_dict",
                "np.copyto(array, given[name], casting",
                "np.copyto(array, given[name].T if given[name].T.shape == array.shape else given[name], casting",
            ),
        ),
    ),
)

RECORD = BugsOnly(gpt, "its forward and backward are methods of a model; gradcheck has cases of its own for them", BUGS)
