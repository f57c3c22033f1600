"""Near-duplicates are found as surely as promised, and nothing else is taken for one."""

import random
import string

import numpy as np
import pytest

from dpo.duplicates import BANDS, SHINGLE, bands, candidates, key, near_duplicates, shared_bands, similarity

LETTERS = string.ascii_lowercase + "äöüß 1234567890"


def jaccard(one, other):
    """Similarity by the definition, of Python's own sets of strings."""

    def shingled(text):
        return {text[place : place + SHINGLE] for place in range(max(len(text) - SHINGLE + 1, 1))}

    first, second = shingled(one), shingled(other)
    return len(first & second) / len(first | second)


def random_text(rng, low=5, high=400):
    return "".join(rng.choices(LETTERS, k=rng.randint(low, high)))


def changed(rng, text, changes):
    """Return the text with so many letters replaced, removed or added."""
    letters = list(text)
    for _ in range(changes):
        place = rng.randrange(len(letters))
        letters[place : place + rng.randint(0, 1)] = rng.choices(LETTERS, k=rng.randint(0, 2))
    return "".join(letters)


def find(texts, threshold=0.8):
    """Near-duplicates among texts of one part."""
    return near_duplicates(bands(texts), lambda place: (texts[place],), threshold)


def test_similarity_is_that_of_sets_of_five_characters():
    rng = random.Random(0)
    for _ in range(300):
        one = random_text(rng, low=1)
        other = changed(rng, one, rng.randint(0, len(one) // 4)) or "x"
        assert similarity(one, other) == jaccard(one, other), (one, other)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("yes", "yes", 1.0),
        ("yes", "no", 0.0),
        ("", "", 1.0),
        ("", "a", 0.0),
        ("five!", "five!?", 0.5),
        ("aaaaa", "aaaaaaaaaaa", 1.0),
    ],
)
def test_similarity_of_the_shortest_texts(one, other, expected):
    assert similarity(one, other) == expected


def test_texts_of_similarity_nine_tenths_are_always_found():
    """Among 1000 texts, 500 of them near-duplicates of the other 500, every one is found with the right partner."""
    rng = random.Random(1)
    originals, copies = [], []
    while len(copies) < 500:
        text = random_text(rng, low=60)
        copy = changed(rng, text, rng.randint(1, 1 + len(text) // 100))
        if 0.9 <= jaccard(text, copy) < 1:
            originals.append(text)
            copies.append(copy)
    found = find(originals + copies)
    assert {later: earlier for later, (earlier, _) in found.items()} == {500 + place: place for place in range(500)}
    for later, (earlier, alike) in found.items():
        assert alike == jaccard(copies[later - 500], originals[earlier])


def test_texts_below_the_threshold_are_never_taken_for_near_duplicates():
    rng = random.Random(2)
    texts = [random_text(rng) for _ in range(500)]
    assert find(texts, threshold=0.1) == {}
    # Alike, but less than the threshold asks: candidates by their bands, then compared exactly.
    text = random_text(rng, low=400)
    alike = [changed(rng, text, 8) for _ in range(50)]
    found = find(alike, threshold=0.75)
    for later, (earlier, measured) in found.items():
        assert measured == jaccard(alike[later], alike[earlier]) >= 0.75
    assert 0 < len(found) < 49


def test_of_many_copies_only_the_first_stays():
    rng = random.Random(3)
    text = random_text(rng, low=300)
    copies = [text, *(changed(rng, text, 1) for _ in range(200))]
    assert sorted(find(copies)) == list(range(1, 201))


def test_what_is_like_a_near_duplicate_alone_stays():
    """Else a chain of small changes would remove a text that is like none of those that stay."""
    rng = random.Random(7)
    text = random_text(rng, low=400)
    changed_once = text[:-40] + "".join(rng.choices(LETTERS, k=40))
    changed_twice = "".join(rng.choices(LETTERS, k=40)) + changed_once[40:]
    texts = [text, changed_once, changed_twice]
    assert jaccard(*texts[:2]) >= 0.8 and jaccard(*texts[1:]) >= 0.8 > jaccard(text, changed_twice)
    assert set(candidates(bands(texts))) >= {(1, 0), (2, 1)}
    assert find(texts) == {1: (0, jaccard(*texts[:2]))}


def test_different_answers_to_one_long_prompt_are_no_near_duplicates():
    rng = random.Random(4)
    prompt = random_text(rng, low=390)
    rows = [(prompt, answer) for answer in ("yes, it is", "no, it is not", "nobody knows that yet")]
    rows.append((prompt, "yes, it is!!"))
    whole = ["\n".join(row) for row in rows]
    assert min(similarity(whole[0], text) for text in whole) > 0.9
    found = near_duplicates(bands(whole), lambda place: rows[place], 0.8)
    assert found == {}
    found = near_duplicates(bands(whole), lambda place: rows[place], 0.7)
    assert {later: earlier for later, (earlier, _) in found.items()} == {3: 0}


def test_no_texts_and_texts_of_less_than_five_letters_work():
    assert bands([]).shape == (0, BANDS)
    assert find([]) == {}
    assert find(["no"]) == {}
    assert find(["no", "yes", "no", "", "ok"]) == {2: (0, 1.0)}


def test_the_bands_of_a_text_do_not_depend_on_its_neighbours():
    rng = random.Random(5)
    texts = [random_text(rng, low=1, high=30) for _ in range(50)]
    together = bands(texts)
    assert np.array_equal(together, np.concatenate([bands([text]) for text in texts]))


def test_a_band_that_all_texts_share_gives_two_candidates_a_text():
    """Or a million variations of one text would have to be compared in 10^12 pairs."""
    hashes = np.arange(1000 * BANDS, dtype=np.uint32).reshape(1000, BANDS)
    hashes[:, 3] = 7
    found = list(candidates(hashes))
    assert len(found) == 1997
    assert set(found) == {(later, 0) for later in range(1, 1000)} | {(later, later - 1) for later in range(2, 1000)}


def test_keys_tell_texts_and_their_order_apart():
    assert key("a", "b") == key("a", "b") < 2**64
    assert len({key("a", "b"), key("b", "a"), key("ab"), key("ab", ""), key("", "ab"), key("a\x00c")}) == 6


def test_prompts_are_found_exactly_and_nearly():
    rng = random.Random(6)
    known = [random_text(rng, low=100) for _ in range(100)]
    listed = [*known, f"{known[0]}!", "why"]
    near = known[5][:-30] + "".join(rng.choices(LETTERS, k=30))
    too_far = known[6][:-45] + "".join(rng.choices(LETTERS, k=45))
    assert jaccard(near, known[5]) >= 0.8 > jaccard(too_far, known[6]) >= 0.7
    asked = [random_text(rng), known[0], near, "why", "who", too_far]
    found = shared_bands(bands(listed), bands(asked))
    # One text may nearly be several prompts; each counts.
    assert found[1] >= {0, 100} and 5 in found[2] and 101 in found[3]
    assert 0 not in found and 4 not in found
    assert shared_bands(bands(listed), bands([])) == shared_bands(bands([]), bands(asked)) == {}
