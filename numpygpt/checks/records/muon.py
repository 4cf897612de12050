"""`muon`: real mistakes in Muon."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import muon

BUGS = (
    Bug(
        "muon_not_transposed_back",
        "a tall matrix is transposed for the iteration, and not transposed back",
        "no public report known",
        "muon.step1.momentum_buffer.trf_blocks.0.att.W_query.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.muon:orthogonalized",
                "return x.T if rows > cols else x",
                "return x",
            ),
        ),
    ),
    Bug(
        "muon_scale_of_the_transposed",
        "the scale is that of a weight (in, out), and not (out, in)",
        "ultralytics#25846",
        "muon.step1.trf_blocks.0.ff.layers.0.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.muon:Muon._update_matrix",
                "rows / cols",
                "cols / rows",
            ),
        ),
    ),
    Bug(
        "muon_on_embeddings",
        "embeddings and the head are orthogonalized, too",
        "Jordan 2024, who warns of it",
        "muon.step1.momentum_buffer.tok_emb.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.muon:is_matrix_of_a_block",
                'name.startswith("trf_blocks.") and n_axes == 2',
                "n_axes == 2",
            ),
        ),
    ),
    Bug(
        "muon_rest_at_its_own_rate",
        "AdamW trains the rest at the learning rate of the matrices",
        "no public report known",
        "muon.step1.tok_emb.weight",
        ("optimizers", "by_hand"),
        (
            Change(
                "training.muon:Muon._rest",
                "self.rest_lr_scale * rates.lr",
                "rates.lr",
            ),
        ),
    ),
)

#: X X^T X is the same from either Gram matrix: the transposition saves time, and changes nothing else.
CONTROLS = (
    Bug(
        "muon_by_the_larger_gram_matrix",
        "a tall matrix is not transposed, neither before nor after",
        "",
        "none",
        (),
        (
            Change("training.muon:orthogonalized", "x = matrix.T if rows > cols else matrix", "x = matrix"),
            Change("training.muon:orthogonalized", "return x.T if rows > cols else x", "return x"),
        ),
    ),
)

RECORD = BugsOnly(muon, "an optimizer has no gradient", BUGS, CONTROLS)
