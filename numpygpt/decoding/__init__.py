"""From a prompt to text: one token at a time, or by beam search."""

from numpygpt.decoding.beams import beam_search
from numpygpt.decoding.generation import generate, generate_text_simple, stream

__all__ = ["beam_search", "generate", "generate_text_simple", "stream"]
