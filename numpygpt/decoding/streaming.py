"""Text as it comes: from the bytes of one token after the other to whole characters, up to a string that ends it."""

import codecs
from collections.abc import Iterable, Iterator, Sequence

from numpygpt.data.tokenizer import Encoding
from numpygpt.errors import InputError


def token_bytes(token_id: int, tokenizer: Encoding) -> bytes:
    """The bytes that the token stands for. InputError for an id that the tokenizer does not know."""
    try:
        return tokenizer.decode_single_token_bytes(token_id)
    except KeyError as error:
        raise InputError(
            f"token id {token_id} is none of the tokenizer {tokenizer.name}, which has {tokenizer.n_vocab}; "
            f"the model was trained with another"
        ) from error


def whole_characters(chunks: Iterable[bytes]) -> Iterator[str]:
    """The text of bytes that come in chunks.

    A character may need the bytes of several tokens. They are held back until they make a whole character. Bytes that
    are not UTF-8 become U+FFFD, the replacement character.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def before_stops(texts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The texts up to the first stop string, which is left out with all that follows. No more of them is asked for.

    What may be the beginning of a stop string is held back until that is known. Of several stop strings, the one that
    is complete first counts. So the result does not depend on where the text is cut.
    """
    held = ""
    for text in texts:
        held += text
        found = [(at + len(stop), at) for stop in stops if (at := held.find(stop)) >= 0]
        if found:
            _, begin = min(found)
            yield held[:begin]
            return
        safe = len(held) - max((_begun(held, stop) for stop in stops), default=0)
        yield held[:safe]
        held = held[safe:]
    yield held


def _begun(text: str, stop: str) -> int:
    """With how many characters of the stop string the text ends, from the first on."""
    return next(length for length in range(len(stop) - 1, -1, -1) if text.endswith(stop[:length]))
