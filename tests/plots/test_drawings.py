"""What pictures show is what was counted: the parts of them that are no drawing."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from txtrain.model.grid import Grid
from txtrain.model.maps import AttentionMap
from txtrain.plots.attention import DIM, by_brightness, draw_attention, over_area
from txtrain.plots.canvas import as_array, new_figure, png
from txtrain.plots.confusion import draw_confusion, most_confused
from txtrain.plots.encoding import by_distance, tiles
from txtrain.plots.guesses import NONE, Guesses
from txtrain.plots.samples import LINES, RIGHT, WIDTH, WRONG, Shown, aligned, draw_pictures, draw_table, wrapped
from txtrain.plots.view import Area, Row, in_brackets
from txtrain.task.base import Example


def test_the_wrong_ones_come_first_and_of_them_the_surest():
    guesses = Guesses(lambda *given: None)
    guesses.guesses = torch.tensor([1, 2, 0, NONE, 1, 1])
    guesses.targets = torch.tensor([1, 1, 1, 0, 1, 0])
    guesses.probabilities = torch.tensor([0.9, 0.5, 0.8, 0.0, 0.6, 0.7])
    assert guesses.wrong_first(99) == [2, 5, 1, 4, 0]
    assert guesses.wrong_first(2) == [2, 5]


@pytest.mark.parametrize("most", [2, 4, 7])
def test_the_most_confused_labels_are_those_of_the_largest_mistakes(most):
    counts = np.random.default_rng(0).permutation(100).reshape(10, 10)
    chosen = most_confused(counts, most)
    assert len(chosen) <= most and chosen == sorted(chosen)
    ranked = sorted(((counts[i, j], i, j) for i in range(10) for j in range(10) if i != j), reverse=True)
    wanted = set()
    for _, i, j in ranked:
        if len(wanted | {i, j}) > most:
            break
        wanted |= {i, j}
    assert set(chosen) == wanted
    assert most_confused(counts, 10) == list(range(10))


def test_shares_of_a_row_are_the_colours_of_a_confusion_matrix(monkeypatch):
    from matplotlib.axes import Axes

    shown, texts = [], []
    real, write = Axes.imshow, Axes.text
    monkeypatch.setattr(Axes, "imshow", lambda self, x, **rest: shown.append(x) or real(self, x, **rest))
    monkeypatch.setattr(Axes, "text", lambda self, *a, **rest: texts.append(a) or write(self, *a, **rest))
    draw_confusion(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 6]]), ["a", "b", "c"])
    np.testing.assert_allclose(shown[0], [[0.75, 0.25, 0], [np.nan] * 3, [0.25, 0, 0.75]])
    assert sorted(texts) == [(0, 0, "3"), (0, 2, "2"), (1, 0, "1"), (2, 2, "6")]  # column, row


def test_the_class_token_looks_over_the_picture():
    weights = torch.rand(7, 7).numpy()
    common = {"picture": np.zeros((4, 6)), "covered": (4, 4)}
    area = Area(size=(2, 3), prefix=1, columns=2, **common)
    assert over_area(weights, area).tolist() == [[weights[0, 1], weights[0, 2]], [weights[0, 4], weights[0, 5]]]
    without = Area(size=(1, 7), prefix=0, columns=7, **common)
    np.testing.assert_allclose(over_area(weights, without)[0], weights.mean(0))


def test_a_picture_keeps_its_colours_where_nothing_looks():
    """Only its brightness says where the model looks; what no patch covers is as dark as can be."""
    picture = np.random.default_rng(0).uniform(0.1, 1, (5, 7, 3)).astype(np.float32)
    shown = by_brightness(picture, np.array([[0.0, 1.0, 0.5], [0.0, 0.2, 1.0]]), (4, 6))
    ratio = shown / picture
    np.testing.assert_allclose(ratio, ratio[..., :1].repeat(3, -1), rtol=1e-5)
    np.testing.assert_allclose(ratio[..., 0][[0, 1, 2, 4, 0], [0, 2, 5, 0, 6]], [DIM, 1, 1, DIM, DIM], rtol=1e-5)
    grey = by_brightness(picture[..., 0], np.ones((1, 1)), (5, 7))
    np.testing.assert_allclose(grey, picture[..., :1].repeat(3, -1), rtol=1e-6)


def test_all_panels_of_attention_have_one_scale(monkeypatch):
    from matplotlib.axes import Axes

    limits, real = [], Axes.imshow
    monkeypatch.setattr(
        Axes, "imshow", lambda self, x, **rest: limits.append((rest["vmin"], rest["vmax"])) or real(self, x, **rest)
    )
    weights = torch.rand(4, 1, 3, 3) * torch.tensor([0.1, 1, 5, 1])[:, None, None, None]
    maps = [AttentionMap(where="decoder", layer=n // 2, head=n % 2, weights=part) for n, part in enumerate(weights)]
    draw_attention(maps, {"decoder": Row(names=["a", "b", "c"])})
    assert len(limits) == 4 and set(limits) == {(0, limits[0][1])}
    assert limits[0][1] > weights[1].max()


def test_only_the_wrong_tag_is_red_and_tags_stand_under_their_words():
    words = [("Ann", "B-PER", "B-PER"), ("in", "O", "O"), ("Constantinople", "B-LOC", "O")]
    (_, text), (_, right), (_, model) = aligned(Example("", "", "", words=words))
    starts = [text["black"].index(word) for word, _, _ in words]
    assert [right["gray"].split()[n] for n in range(3)] == ["B-PER", "O", "B-LOC"]
    assert model[RIGHT].split() == ["B-PER", "O"] and model[WRONG].split() == ["O"]
    for start, (_, tag, said) in zip(starts, words, strict=True):
        assert right["gray"].startswith(tag, start)
        assert model[RIGHT if tag == said else WRONG].startswith(said, start)


def test_distance_counts_from_the_query():
    positions = np.arange(5)
    relation = (positions[:, None] - positions)[None]
    for causal in (True, False):
        distance, rows = by_distance(relation, causal=causal)
        assert (distance * (1 if causal else -1)).tolist() == rows[0].tolist()
    assert by_distance(relation, causal=False)[0].tolist() == [-2, -1, 0, 1, 2]


def test_a_tile_has_what_its_patch_has_to_all_others():
    grid = Grid(size=(2, 3), prefix=1)
    relation = np.arange(49.0).reshape(7, 7)
    found = tiles(relation, grid)
    assert found.shape == (2 * 3, 3 * 4)
    for row in range(2):
        for column in range(3):
            tile = found[row * 3 : row * 3 + 2, column * 4 : column * 4 + 3]
            assert tile.flatten().tolist() == relation[1 + row * 3 + column, 1:].tolist()
    many = Grid(size=(40, 30))
    assert tiles(np.zeros((1200, 1200)), many).shape == (14 * 41, 14 * 31)


def test_texts_are_cut_and_shown_as_they_are():
    """No formula, no missing glyph and no control character of a text disturbs (warnings are errors here)."""
    assert (
        wrapped("\n") == ["⏎"]
        and wrapped("") == ["(nothing)"]
        and wrapped("a\x1b[2Jb") == ["a\N{REPLACEMENT CHARACTER}[2Jb"]
    )
    assert len(wrapped("word " * 500)) == LINES and max(map(len, wrapped("x" * 900))) == WIDTH
    odd = Example("costs $5^{ and $6", "日本語 \U0001f600", "\\frac{1}")
    image = Image.open(BytesIO(draw_table([odd, odd])))
    assert image.format == "PNG" and image.width > image.height
    with_texts = draw_pictures([Shown(picture=np.eye(3), reference="$a$b$", said="语", probability=0.5)], upward=False)
    assert as_array(with_texts).ndim == 3


def test_a_picture_is_the_same_array_again():
    def draw():
        figure = new_figure(1, 1)
        figure.set_facecolor((1.0, 0.0, 0.0))
        return figure

    array = as_array(png(draw))
    assert array.shape == (110, 110, 3) and (array == [255, 0, 0]).all()


def test_masked_words_stand_in_brackets_in_their_text():
    words = [" a", " b", "c", ".", "\ufffd"]

    def decode(ids):
        return "".join(words[number] for number in ids)

    def shown(*marked):
        return in_brackets(decode, range(4), [number in marked for number in range(4)])

    assert shown() == " a bc."
    assert shown(0) == " [a] bc." and shown(2) == " a b[c]." and shown(3) == " a bc[.]"
    assert shown(1, 2) == " a [bc]." and shown(0, 3) == " [a] bc[.]"
    assert in_brackets(decode, [], []) == ""
