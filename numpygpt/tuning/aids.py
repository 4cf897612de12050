"""Models that help to tune another, and are not trained themselves: a reference, a teacher, and what judges answers.

A run keeps the fingerprints of their weights. So a run that is resumed finds out if one of them has changed.

    values   reference, teacher, reward_model   the SHA-256 of each model's weights, or None
"""

from pathlib import Path
from typing import Any, NamedTuple

from numpygpt.adapt.adapters import remove_lora
from numpygpt.adapt.files import fingerprint
from numpygpt.adapt.saving import model_of
from numpygpt.adapt.vocabulary import resize_embeddings
from numpygpt.data.tokenizer import get_tokenizer
from numpygpt.errors import InputError
from numpygpt.formats.kinds import read_model
from numpygpt.model.gpt import GPTModel
from numpygpt.sections import SavedSections, Section, named_in_errors, value_of
from numpygpt.tuning.options import NO_REFERENCE, FinetuneOptions

SECTION = "aids"


class Aids(NamedTuple):
    """The models; None for one that the objective does not need."""

    reference: GPTModel | None = None
    teacher: GPTModel | None = None
    reward_model: GPTModel | None = None

    def section(self) -> Section:
        """What a checkpoint keeps of them."""
        return Section({name: model and fingerprint(model) for name, model in self._asdict().items()}, {})

    def refuse_others(self, saved: SavedSections) -> None:
        """InputError if one of them is another than the one that the run began with."""
        values = saved.values(SECTION)
        with named_in_errors(saved):
            for name, model in self._asdict().items():
                before = value_of(values, name, str, type(None))
                if before != (now := model and fingerprint(model)):
                    raise InputError(
                        f"the {name.replace('_', ' ')} has the SHA-256 {now}, and the run began with {before}; say "
                        f"with --{name.replace('_', '-')} where that one is"
                    )


def aids_of(options: FinetuneOptions, model: GPTModel) -> Aids:
    """The models that the options name, for the model that is tuned.

    The reference of an adapter is the model without it, which shares its arrays; any other is read from its files.

    Raises InputError for a model that cannot be read, and for one with another vocabulary, another kind of head or a
    shorter context than the run needs.
    """
    settings = options.settings
    found = {name: _read(options, name) for name in ("teacher", "reward_model") if settings.get(name)}
    aids = Aids(reference=_reference(options, model), **found)
    for name, other in aids._asdict().items():
        if other is not None:
            _check(options, name.replace("_", " "), other, model)
    return aids


def _check(options: FinetuneOptions, name: str, other: GPTModel, model: GPTModel) -> None:
    """Raise InputError if the helper of this name cannot help the model."""
    theirs, window = other.config, options.window(model.config)
    if theirs.vocab_size != model.config.vocab_size:
        raise InputError(
            f"the {name} has a vocabulary of {theirs.vocab_size} tokens; expected {model.config.vocab_size}, that of "
            f"the model which is tuned"
        )
    if name != "reward model" and theirs.classes is not None:
        raise InputError(f"the {name} has a head of {theirs.classes} scores and writes no text; expected one that does")
    if theirs.context_length < window:
        raise InputError(
            f"the {name} reads {theirs.context_length} tokens at once, and the run up to {window}; expected at least "
            f"as many: give --length {theirs.context_length}"
        )
    if name == "teacher" and options.hidden and theirs.emb_dim != model.config.emb_dim:
        raise InputError(
            f"the teacher's emb_dim is {theirs.emb_dim}; expected {model.config.emb_dim}, the student's, to match "
            f"hidden states: leave out --hidden"
        )


def with_tokens_of(options: FinetuneOptions, model: GPTModel) -> GPTModel:
    """The model with rows for all tokens of the run's tokenizer. InputError if only an adapter is to be trained.

    The new rows are means of the others (`numpygpt.adapt.vocabulary`), and so the same each time.
    """
    tokens = get_tokenizer(options.tokenizer, options.vocab).n_vocab
    if tokens <= model.config.vocab_size:
        return model
    if options.is_adapted:
        raise InputError(
            f"the model has {model.config.vocab_size} tokens, and the tokenizer {options.tokenizer!r} has {tokens}; "
            f"new rows would not be trained beside an adapter or frozen weights: tune all weights first"
        )
    return resize_embeddings(model, tokens)


def _reference(options: FinetuneOptions, model: GPTModel) -> GPTModel | None:
    if "reference" not in options.settings or options.reference == NO_REFERENCE:
        return None
    if options.reference is not None:
        return _read(options, "reference")
    return remove_lora(model) if options.lora is not None else with_tokens_of(options, _read(options, "checkpoint"))


def _read(options: FinetuneOptions, name: str) -> GPTModel:
    path: Any = getattr(options, name)
    try:
        return model_of(read_model(Path(path)), options.dtype)
    except InputError as error:
        raise InputError(f"--{name.replace('_', '-')}: {error}") from error
