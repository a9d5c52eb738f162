"""The units of a checkpoint as a tokenizer of this project: the blank first, and a sentencepiece model that spells.

The tables of other projects put the blank first, last or elsewhere, and their pieces in another order than their
sentencepiece model. Here ids are places in one list, `symbols`; the model is rewritten with its pieces in that order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from conformer.checkpoints.tensors import ConversionError
from conformer.tokenizer import BLANK_SYMBOL, SPACE_SYMBOL, BpeTokenizer, CharTokenizer, Tokenizer


def blank_first(count: int, blank: int) -> list[int]:
    """Returns the checkpoint's number of each unit here: the blank, then the others in their order."""
    return [blank, *(unit for unit in range(count) if unit != blank)]


def make_tokenizer(symbols: Sequence[str], blank: int, model: Any = None) -> Tokenizer:
    """A tokenizer of a checkpoint's units.

    Args:
        symbols: in the checkpoint's order, with something in the place of the blank.
        blank: its place.
        model: a ModelProto of sentencepiece whose pieces are among the symbols. None: characters, or, where there are
            longer units, a model that spells with as few of them as it can.
    """
    ordered = [
        BLANK_SYMBOL,
        *(symbols[unit].replace(" ", SPACE_SYMBOL) for unit in blank_first(len(symbols), blank)[1:]),
    ]
    for unit in ordered:
        if not unit or len(unit.split()) != 1:
            raise ConversionError(f"unit {unit!r} cannot stand in a table of units: it is empty or holds white space")
    if len(set(ordered)) != len(ordered):
        twice = next(unit for unit in ordered if ordered.count(unit) > 1)
        raise ConversionError(f"unit {twice!r} stands twice in the table of units: correct the table")
    if model is None:
        if all(len(unit) == 1 for unit in ordered[1:]):
            return CharTokenizer(ordered)
        model = plain_model({unit: -1.0 for unit in ordered[1:] if not _special(unit)}, "unigram")
    return BpeTokenizer(_in_order(model, ordered).SerializeToString())


def parse_model(data: bytes, origin: str) -> Any:
    """A ModelProto. Raises ConversionError for what is none."""
    model = _protocol().ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:
        raise ConversionError(f"{origin} is no sentencepiece model ({error}): restore it") from None
    return model


def plain_model(scores: Mapping[str, float], kind: str) -> Any:
    """A ModelProto of pieces and their scores, "bpe" or "unigram", which changes nothing of a text but its spaces."""
    protocol = _protocol()
    model = protocol.ModelProto()
    for piece, score in scores.items():
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.model_type = getattr(protocol.TrainerSpec, kind.upper())
    words = any(piece.startswith(SPACE_SYMBOL) for piece in scores)
    spec = model.normalizer_spec
    spec.name, spec.add_dummy_prefix, spec.remove_extra_whitespaces, spec.escape_whitespaces = (
        "identity",
        words,
        True,
        True,
    )
    return model


def pieces_of(model: Any) -> list[str]:
    """Returns the pieces of a ModelProto, in the order of their ids."""
    return [piece.piece for piece in model.pieces]


def _in_order(model: Any, symbols: Sequence[str]) -> Any:
    """The same model with its pieces in the order of `symbols`, whose first is the unknown piece."""
    protocol = _protocol()
    kinds = protocol.ModelProto.SentencePiece
    known = {piece.piece: piece for piece in model.pieces}
    new = protocol.ModelProto()
    new.CopyFrom(model)
    del new.pieces[:]
    new.pieces.add(piece=symbols[0], score=0.0, type=kinds.UNKNOWN)
    for symbol in symbols[1:]:
        piece = known.get(symbol)
        if piece is None or piece.type == kinds.UNKNOWN:
            new.pieces.add(piece=symbol, score=0.0, type=kinds.UNUSED)
        else:
            new.pieces.add().CopyFrom(piece)
    spec = new.trainer_spec
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 0, -1, -1, -1
    spec.unk_piece, spec.vocab_size = symbols[0], len(symbols)
    return new


def _special(unit: str) -> bool:
    return unit.startswith("<") and unit.endswith(">")


def _protocol() -> Any:
    from sentencepiece import sentencepiece_model_pb2  # here: it loads protobuf

    return sentencepiece_model_pb2
