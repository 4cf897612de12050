"""`files` of `numpygpt.adapt`: real mistakes in it."""

from numpygpt.adapt import files
from numpygpt.checks.planting import Bug, Change
from numpygpt.checks.record import BugsOnly

BUGS = (
    Bug(
        "adapter_in_another_layout",
        "the numbers of A are read in the order of its transpose, which keeps the shape",
        "nntile#370",
        "files.ours.logits",
        ("adapter_files", "adapter_files_of_peft"),
        (Change("adapt.files:load_adapter", "A.astype(model.dtype),", "A.T.reshape(A.shape).astype(model.dtype),"),),
    ),
    Bug(
        "adapter_saved_without_alpha",
        "a folder is written without the scale of its paths, which then is 1",
        "no public report known",
        "files.ours.logits",
        ("adapter_files", "adapter_files_of_peft"),
        (Change("adapt.files:adapter_of", "node.scales[name])", "1.0)"),),
    ),
    Bug(
        "adapter_on_any_base",
        "the fingerprint of the base is not looked at, and the adapter of another model is loaded without a word",
        "no public report known",
        "made.bases_refused",
        ("adapters_of_bases",),
        (Change("adapt.files:_refuse_another_base", "if is_whole and", "if False and"),),
    ),
    Bug(
        "fingerprint_of_adapters_too",
        "an adapter that is there counts as a part of the base, so that a second one does not fit any more",
        "no public report known",
        "made.bases_refused",
        ("adapters_of_bases",),
        (Change("adapt.files:fingerprint", 'if ".lora_" not in name:', "if True:"),),
    ),
)

RECORD = BugsOnly(files, "it reads and writes files", BUGS)
