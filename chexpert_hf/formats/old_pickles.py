"""Pickles of whole modules from PyTorch before 1.6, made readable for `torch.load(weights_only=True)`.

In such a file each class is a persistent object of its own, ('module', class, source file, source code), which
`weights_only` refuses whatever the class. Here the file's instructions are read, and none of them is followed: where a
class is named in this way, the persistent object becomes a call of `CLASS_OF`, for which the caller's allow-list needs
a function. Nothing else changes, so `weights_only` still decides about everything that the file names.

Source: torch 1.5, `serialization._legacy_save`.
"""

import io
import pickle
import pickletools

CLASS_OF = "chexpert_hf.class_of"
"""The function that the rewritten pickle calls with the four values; it has to return the second."""

_PICKLES_IN_FRONT = 3  # a magic number, the version of the format, and facts on the machine
_NUM_VALUES = 4
_CALL = b"c" + CLASS_OF.replace(".", "\n").encode() + b"\n"


def without_persistent_classes(content: bytes) -> bytes:
    """A file of PyTorch before 1.6 in which no class is a persistent object; any other such file as it is.

    Raises:
        ValueError: If it is no such file.
    """
    stream = io.BytesIO(content)
    for _ in range(_PICKLES_IN_FRONT):
        for _ in pickletools.genops(stream):
            pass
    done = mark = stream.tell()
    pieces, num_values = [content[:done]], 0
    for code, _, position in list(pickletools.genops(stream)):
        place = position or 0
        if code.name == "MARK":
            mark, num_values = place, 0
        elif code.name == "BINPERSID" and num_values == _NUM_VALUES:
            pieces += [content[done:mark], _CALL, content[mark:place], pickle.REDUCE]
            done = place + 1
        elif code.name != "TUPLE" and not code.name.endswith("PUT"):
            num_values += 1
    return b"".join([*pieces, content[done:]])
