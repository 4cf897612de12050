"""What a tuned model learns from: records of files, as batches of the objective's kind."""

from collections.abc import Sequence
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.data.batching import Examples, LabeledTexts, Pairs
from numpygpt.data.examples import Kept, Limit
from numpygpt.data.instructions import Prompt, read_instructions, read_prompts
from numpygpt.data.labels import LabeledText, read_labeled_texts
from numpygpt.data.loader import DataLoader, Dataset, Draws
from numpygpt.data.packing import PackedExamples
from numpygpt.data.preferences import read_preferences
from numpygpt.data.templates import template_of
from numpygpt.data.tokenizer import Encoding
from numpygpt.errors import InputError
from numpygpt.model.config import GPTConfig
from numpygpt.shapes import Array, Integer
from numpygpt.training.corpus import TRAIN_SHARE


class Records(NamedTuple):
    """Records to train on, and records to validate with.

    sha256   the SHA-256 of the digests of the files, one after another
    notes    lines for a person: what was left out, how full the rows are
    """

    training: Dataset
    validation: Dataset
    sha256: str
    notes: list[str]

    def loaders(self, batch_size: int, length: int, rng: Draws) -> tuple[DataLoader, DataLoader]:
        """Their batches, those of training in a new order each epoch. The last batch of either may be smaller."""
        return (
            DataLoader(self.training, batch_size, shuffle=True, rng=rng),
            DataLoader(self.validation, batch_size, rng=rng),
        )


class Prompts:
    """A dataset of prompts, whose batches are lists of them."""

    unit = "prompts"

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, numbers: Integer[Array, "B"]) -> list[Prompt]:
        """The prompts of these numbers."""
        return [self.prompts[number] for number in numbers]


def read_record_corpus(options: Any, tokenizer: Encoding, config: GPTConfig) -> Records:
    """The records that `FinetuneOptions` name, for their objective.

    Raises InputError for a file that cannot be read, a record that cannot be used, and for fewer than two records.
    """
    training = _items(options, options.text, tokenizer, config)
    notes = training.notes
    if options.val_data:
        validating = _items(options, options.val_data, tokenizer, config)
        kept, held_out = training.items, validating.items
        notes += [f"validation: {note}" for note in validating.notes]
    else:
        kept, held_out = _split(training.items)
    if options.objective == "classify":
        notes += _without_texts(options.class_names, kept)
    learned, validation = (_dataset(options, items, config) for items in (kept, held_out))
    if isinstance(learned, PackedExamples):
        notes.append(learned.note)
    return Records(learned, validation, _digest([*options.text, *options.val_data]), notes)


def _items(options: Any, paths: Sequence[str], tokenizer: Encoding, config: GPTConfig) -> Kept:
    """What was made of the records of several files."""
    settings = options.settings
    room = options.window(config)
    if "max_new_tokens" in settings:
        room -= settings["max_new_tokens"]
        if room < 2:
            raise InputError(
                f"max_new_tokens is {settings['max_new_tokens']}, and the model reads {options.window(config)} tokens "
                f"at once; expected room for a prompt: give fewer new tokens"
            )
    limit = Limit(room, settings["too_long"])
    if options.objective == "classify":
        read = partial(read_labeled_texts, classes=options.class_names, tokenizer=tokenizer, limit=limit)
    else:
        read = partial(_reader(options), template=template_of(settings["template"]), tokenizer=tokenizer, limit=limit)
    found = [read(Path(path)) for path in paths]
    items, alike = [item for kept in found for item in kept.items], sum(kept.alike for kept in found)
    return Kept(items, found[-1].dropped, found[-1].truncated, alike)  # the limit counts over all files


def _reader(options: Any) -> Any:
    if options.objective in ("reward", "dpo"):
        return read_preferences
    if options.objective in ("ppo", "grpo"):
        return read_prompts
    return partial(read_instructions, mask_prompts=options.settings["mask_prompts"])


def _dataset(options: Any, items: Sequence[Any], config: GPTConfig) -> Any:
    if options.settings.get("pack"):
        return PackedExamples(items, options.window(config))
    kind = {"classify": LabeledTexts, "reward": Pairs, "dpo": Pairs, "ppo": Prompts, "grpo": Prompts}
    return kind.get(options.objective, Examples)(items)


def _split(items: list[Any]) -> tuple[list[Any], list[Any]]:
    """The first nine tenths, and the rest: at least one record each."""
    if len(items) < 2:
        raise InputError(
            f"there is {len(items)} record to learn from, and none to validate with; give more, or --val-data"
        )
    first = min(max(1, round(TRAIN_SHARE * len(items))), len(items) - 1)
    return items[:first], items[first:]


def _without_texts(names: Sequence[str], texts: Sequence[LabeledText]) -> list[str]:
    """A line about the classes of which no text is learned, if there are any."""
    found = {text.label for text in texts}
    missing = [name for number, name in enumerate(names) if number not in found]
    return [f"no text to learn from is of the class {', '.join(missing):.200}"] if missing else []


def _digest(paths: Sequence[str]) -> str:
    digest = sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            digest.update(file_digest(file, "sha256").digest())
    return digest.hexdigest()
