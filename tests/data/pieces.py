"""Models of SentencePiece, as folders on the Hub have them."""

import contextlib
import io
import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

BOTH = ["</s>", "<unk>"]


def train(path: Path, texts: Iterable[str], **options) -> list[str]:
    """Writes a model; gives its pieces."""
    made = io.BytesIO()
    # It says what it does, whatever it is told.
    with contextlib.redirect_stderr(io.StringIO()):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=made, minloglevel=2, hard_vocab_limit=False, **options
        )
    path.write_bytes(made.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    return [model.id_to_piece(number) for number in range(model.get_piece_size())]


def write_marian(folder: Path, sources: list[str], targets: list[str], *, extra: Iterable[str] = (), **options) -> int:
    """`source.spm`, `target.spm` and `vocab.json`, as the Hub has them; some pieces have no number. Gives the size."""
    options = {"vocab_size": 120, "character_coverage": 0.999} | options
    sides = [
        train(folder / f"{name}.spm", texts, **options) for name, texts in (("source", sources), ("target", targets))
    ]
    pieces = sorted({piece for side in sides for piece in side[3:]})
    numbered = [piece for number, piece in enumerate(pieces) if number % 17 != 5]
    tokens = [*BOTH, *extra, *numbered, "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    return len(tokens)
