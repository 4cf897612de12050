"""`peft_folder`: real mistakes in it."""

from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly
from numpygpt.formats import peft_folder

BUGS = (
    Bug(
        "peft_scaled_by_alpha",
        "a folder's α is taken for the scale, without the division by the rank",
        "mlx-vlm#845",
        "files.ours.logits",
        ("adapter_files", "adapter_files_of_peft"),
        (Change("formats.peft_folder:_scale", "return alpha / (", "return alpha / 1 if True else ("),),
    ),
    Bug(
        "peft_rslora_ignored",
        "the folder says rsLoRA, and α is divided by the rank, not by its root",
        "no public report known",
        "none",
        ("adapter_files_of_peft",),
        (Change("formats.peft_folder:_scale", "if rank_stabilized else rank", "if False else rank"),),
    ),
    Bug(
        "peft_thirds_reversed",
        "of Hugging Face's projection in one, values and queries are exchanged",
        "swift-models#564",
        "files.hugging-face.logits",
        ("adapter_files", "adapter_files_of_peft"),
        (Change("formats.peft_folder:_as_ours", "np.split(path.B, len(ours))", "np.split(path.B, len(ours))[::-1]"),),
    ),
    Bug(
        "peft_scales_of_thirds_lost",
        "of paths with several scales that are written in one, each has the first one's",
        "no public report known",
        "files.hugging-face.logits",
        ("adapter_files",),
        (Change("formats.peft_folder:_in_one", "path.scale / scale * path.B", "path.B"),),
    ),
    Bug(
        "peft_pattern_ignored",
        "the α of a single projection is not looked up",
        "no public report known",
        "files.ours.logits",
        ("adapter_files", "adapter_files_of_peft"),
        (Change("formats.peft_folder:_scale", "for pattern in patterns:", "for pattern in ():"),),
    ),
)

RECORD = BugsOnly(peft_folder, "it reads and writes files", BUGS)
