"""`disk_state`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.training import disk_state

BUGS = (
    Bug(
        "moments_in_one_place",
        "every array begins at the first byte of the file, so that parameters share their moments",
        "no public report known",
        "on_disk.sgd_nesterov.step1.momentum_buffer.tok_emb.weight",
        ("moments_on_disk", "optimizers_on_disk"),
        (Change("training.disk_state:zeros_on_disk", "begin += size", "begin += 0"),),
    ),
    Bug(
        "moments_that_overlap",
        "a size is rounded down to a multiple of the alignment, and the next array begins within this one",
        "no public report known",
        "on_disk.sgd_nesterov.step1.momentum_buffer.tok_emb.weight",
        ("moments_on_disk", "optimizers_on_disk"),
        (Change("training.disk_state:zeros_on_disk", "-(-array.nbytes // ALIGNMENT)", "(array.nbytes // ALIGNMENT)"),),
    ),
    Bug(
        "moments_in_float32",
        "the moments in the file are of float32, whatever the parameters are",
        "no public report known",
        "on_disk.sgd_nesterov.step1.momentum_buffer.tok_emb.weight",
        ("moments_on_disk", "optimizers_on_disk"),
        (Change("training.disk_state:zeros_on_disk", "array.dtype, buffer", "np.float32, buffer"),),
    ),
)

RECORD = BugsOnly(disk_state, "it computes nothing: it makes arrays", BUGS)
