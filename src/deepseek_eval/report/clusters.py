"""Which errors belong together: labels taken for each other, and questions that resemble each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_eval.report.items import Asked
from deepseek_eval.report.text import shortened

MOST_LABELS = 40
_FEWEST_WRONG, _PER_CLUSTER, _MOST_CLUSTERS = 12, 6, 6
_MOST_ITEMS = 3000
_TERMS = 6
_TEXT = 2000


@dataclass(frozen=True)
class Confusion:
    """Items of one label that got another. ``of``: answered items of the label."""

    expected: str
    answer: str
    count: int
    of: int


@dataclass(frozen=True)
class Cluster:
    """Questions that resemble each other.

    Attributes:
        terms: what they have in common.
        wrong: that are wrong.
        items: that are in the cluster, right ones too.
        example: one of them, near its centre.
        example_id: its id.
    """

    terms: tuple[str, ...]
    wrong: int
    items: int
    example: str
    example_id: str


def confusions(every: Sequence[Asked], place: int, most: int = 8) -> list[Confusion]:
    """Labels that a model takes for others, the most frequent first; [] where answers are not labels.

    They are labels if few different ones are expected, each of several items.
    """
    pairs = [
        (asked.expected, given.line.score.answer or "(no label)", given.state)
        for asked in every
        if (given := asked.given.get(place)) is not None and given.line.score is not None
    ]
    labels = Counter(expected for expected, _, _ in pairs)
    if not 2 <= len(labels) <= MOST_LABELS or len(labels) * 2 > len(pairs) or any(len(label) > 60 for label in labels):
        return []
    wrong = Counter((expected, answer) for expected, answer, state in pairs if state == "wrong")
    if sum(1 for _, answer in wrong if answer in labels or answer == "(no label)") < len(wrong) / 2:
        return []
    return [
        Confusion(expected, shortened(answer, 60), count, labels[expected])
        for (expected, answer), count in wrong.most_common(most)
        if count > 1
    ]


def similar_errors(every: Sequence[Asked], place: int, seed: int) -> list[Cluster]:
    """Clusters of the questions that a model has wrong, the highest share of wrong ones first.

    TF-IDF over words and, for languages without spaces, pairs of characters; k-means (Lloyd 1982) on the wrong items,
    one cluster for each six of them, six at most; right items are then counted with the nearest centre, because a
    topic is not hard for being frequent. [] for fewer than twelve wrong items.
    """
    answered = [one for one in every if place in one.given and one.given[place].state in ("right", "partly", "wrong")]
    answered = answered[:_MOST_ITEMS]
    wrong = [index for index, one in enumerate(answered) if one.given[place].state == "wrong"]
    if len(wrong) < _FEWEST_WRONG:
        return []
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    def terms(text: str) -> list[str]:
        return [term for term in _terms(text) if term not in ENGLISH_STOP_WORDS]

    texts = _own_parts([_question(one) for one in answered])
    vectorizer = TfidfVectorizer(analyzer=terms, max_df=0.4, min_df=2, max_features=4000, sublinear_tf=True)
    try:
        vectors = vectorizer.fit_transform(texts)
    except ValueError:  # no term is in two questions and not in nearly all
        return []
    different = len({tuple(terms(texts[index])) for index in wrong})
    count = min(_MOST_CLUSTERS, len(wrong) // _PER_CLUSTER, different)
    means = KMeans(count, n_init=4, random_state=seed).fit(vectors[wrong])
    names = vectorizer.get_feature_names_out()
    nearest, distances = means.predict(vectors), means.transform(vectors)
    found = []
    for cluster in range(count):
        own_wrong = [index for index in wrong if nearest[index] == cluster]
        if len(own_wrong) < 2:
            continue
        best = means.cluster_centers_[cluster].argsort()[::-1][:_TERMS]
        centre = min(own_wrong, key=lambda index: distances[index, cluster])
        found.append(
            Cluster(
                terms=tuple(names[i] for i in best if means.cluster_centers_[cluster][i] > 0),
                wrong=len(own_wrong),
                items=int((nearest == cluster).sum()),
                example=shortened(texts[centre].strip(), 240),
                example_id=answered[centre].item.id,
            )
        )
    return sorted(found, key=lambda one: (-one.wrong / one.items, -one.wrong))


def _question(asked: Asked) -> str:
    prompt = asked.item.prompt
    return prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)


def _own_parts(texts: Sequence[str]) -> list[str]:
    """Texts without what all of them begin with: instructions and examples."""
    first, last = min(texts), max(texts)  # what these begin with, all others begin with too
    common = first[: next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
    if len(set(texts)) == 1:
        common = ""
    start = max(common.rfind("\n"), common.rfind(" ")) + 1
    return [text[start:][-_TEXT:] for text in texts]


def _terms(text: str) -> list[str]:
    """Words, and pairs of characters where words are not separated."""
    found: list[str] = []
    word = ""
    previous = ""
    for char in text.casefold() + " ":
        wide = "\u3040" <= char <= "\u30ff" or "\u3400" <= char <= "\u9fff"
        if char.isalpha() and not wide:
            word += char
        else:
            if len(word) > 2 or (word and word[0] >= "\uac00"):
                found.append(word)
            word = ""
        if wide and previous:
            found.append(previous + char)
        previous = char if wide else ""
    return found
