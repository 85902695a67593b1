"""measures what a translator of the catalogues has to beat: the source as it is, and the nearest training pair's target

    python scripts/translation_baselines.py [--language de]

Scores are sacrebleu's, on the pairs that `data=catalogues` holds out. The nearest pair is found by three
similarities of its source: cosines of tf-idf vectors of character n-grams, of words and their pairs, and both summed.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import sacrebleu
from sklearn.feature_extraction.text import TfidfVectorizer

from txtrain.data.catalogues import Catalogues
from txtrain.data.parallel import Pair
from txtrain.data.tokenizer import Byte
from txtrain.data.translation import held_out

VECTORS: dict[str, dict[str, Any]] = {
    "characters": {"analyzer": "char", "ngram_range": (2, 5)},
    "words": {"token_pattern": r"\w+|[^\w\s]", "ngram_range": (1, 2)},
}


def similarities(known: Sequence[str], asked: Sequence[str]) -> dict[str, Any]:
    """By name the cosines (asked, known) of texts' tf-idf vectors, weighted as the known ones say."""
    found = {}
    for name, options in VECTORS.items():
        vectors = TfidfVectorizer(sublinear_tf=True, **options)
        memory = vectors.fit_transform(known)
        found[name] = (vectors.transform(asked) @ memory.T).toarray()
    return found | {"both": found["characters"] + found["words"]}


def translations(train: Sequence[Pair], asked: Sequence[str]) -> dict[str, list[str]]:
    """By the name of a baseline what it says of each text."""
    found = {"copy": list(asked)}
    for name, cosines in similarities([pair.source for pair in train], asked).items():
        found[f"neighbour by {name}"] = [train[number].target for number in np.argmax(cosines, axis=1)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", default="de", help="of the targets: data.language")
    data = Catalogues(tokenizer=Byte(), language=parser.parse_args().language)
    pairs = list(data.pairs())
    held = held_out(pairs, data.validation_fraction)
    train = [pair for pair, out in zip(pairs, held, strict=True) if not out]
    validation = [pair for pair, out in zip(pairs, held, strict=True) if out]
    print(f"{len(train)} pairs are known, {len(validation)} held out")
    for name, said in translations(train, [pair.source for pair in validation]).items():
        references = [[pair.target for pair in validation]]
        bleu, chrf = sacrebleu.corpus_bleu(said, references).score, sacrebleu.corpus_chrf(said, references).score
        print(f"{name:24} BLEU {bleu:5.2f}   chrF {chrf:5.2f}")


if __name__ == "__main__":
    main()
