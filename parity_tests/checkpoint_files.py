"""Checkpoints that somebody made: files put together byte by byte, whose seals fit whatever they claim.

This module follows docs/checkpoint-format.md with only json, struct and hashlib, and shares nothing with the code under
test.
"""

import hashlib
import json
import struct

SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "BOOL": 1}


def taken_apart(path):
    """Our header of a checkpoint (without its seal), and its tensors as {key: [dtype, shape, bytes]}."""
    contents = path.read_bytes()
    (length,) = struct.unpack("<Q", contents[:8])
    tensors = json.loads(contents[8 : 8 + length])
    header = json.loads(tensors.pop("__metadata__")["numpygpt"])
    header.pop("sha256")
    data = contents[8 + length :]
    return header, {
        key: [tensor["dtype"], tensor["shape"], data[slice(*tensor["data_offsets"])]] for key, tensor in tensors.items()
    }


def sealed(header):
    """The text of our header, version 2."""
    text = json.dumps(header)
    return text[:-1] + f',"sha256":"{hashlib.sha256(text.encode()).hexdigest()}"}}'


def sealed_v1(contents):
    """The text of our header, version 1."""
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    return json.dumps({"format": "numpygpt checkpoint", "version": 1, "sha256": digest, "contents": contents})


def with_hashes(header, tensors):
    """The header with the dtypes, shapes and SHA-256 of these tensors, whose keys are SECTION.NAME."""
    for key, (dtype, shape, data) in tensors.items():
        section, _, name = key.partition(".")
        text = json.dumps([dtype, shape], separators=(",", ":"))
        header["sections"][section]["arrays"][name] = {
            "dtype": dtype,
            "shape": shape,
            "sha256": hashlib.sha256(text.encode() + data).hexdigest(),
        }
    return header


def safetensors_of(tensors, metadata):
    """The bytes of a safetensors file with tensors {key: [dtype, shape, bytes]} and metadata {name: text}."""
    entries, data = {"__metadata__": metadata}, b""
    for key, (dtype, shape, contents) in tensors.items():
        entries[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(contents)]}
        data += contents
    return with_length(json.dumps(entries).encode()) + data


def with_length(header):
    return struct.pack("<Q", len(header)) + header


def write(path, header, tensors):
    """A checkpoint of version 2 with this header, sealed, and these tensors."""
    path.write_bytes(safetensors_of(tensors, {"numpygpt": sealed(header)}))
