"""Topics, intents, emotions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from deepseek_eval.metrics import mean, one
from deepseek_eval.task import Generate, Item, Output, Rows, Score, Scorer, Task
from deepseek_eval.tasks.builders import Question, Read, Style, choice_task, generate_task, in_turn

LINE = Generate(max_tokens=24, stop=("\n",))
SIB200 = {"en": "eng_Latn", "zh": "zho_Hans", "ja": "jpn_Jpan", "ko": "kor_Hang"}
TOPICS = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
_TOPIC_STYLE = Style(
    description="Is this a piece of news regarding " + ", ".join(TOPICS[:-1]) + f", or {TOPICS[-1]}?\n\n"
)
XSID_INTENTS = {
    "weather/find": "ask about the weather",
    "BookRestaurant": "book a restaurant",
    "PlayMusic": "play music",
    "SearchScreeningEvent": "search a film's screening times",
    "AddToPlaylist": "add music to a playlist",
    "SearchCreativeWork": "search a creative work",
    "RateBook": "rate a book",
    "alarm/set_alarm": "set an alarm",
    "alarm/cancel_alarm": "cancel an alarm",
    "alarm/show_alarms": "show alarms",
    "alarm/time_left_on_alarm": "ask the time left on an alarm",
    "alarm/snooze_alarm": "snooze an alarm",
    "alarm/modify_alarm": "change an alarm",
    "reminder/set_reminder": "set a reminder",
    "reminder/cancel_reminder": "cancel a reminder",
    "reminder/show_reminders": "show reminders",
}
KO_INTENTS = ("단편", "평서문", "질문", "명령", "수사의문문", "수사명령문", "억양 의존")
KO_EMOTIONS = ("일상", "이별", "사랑")


def tasks() -> Iterator[Task]:
    """All of them."""
    for language in SIB200:
        yield _sib200(language)
    yield _banking77()
    yield _clinc150()
    yield _clinc150_scope()
    for language in ("en", "zh", "ja"):
        yield _xsid_intent(language)
    yield _intent_3i4k()
    yield _korean_chatbot()


def _sib200(language: str) -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        folder = f"annotated/{SIB200[language]}"
        test, train = (
            [
                Question(row["index_id"], f"Text: {row['text']}\nTopic:", row["category"], TOPICS)
                for row in files["sib200"].read(f"{folder}/{name}.tsv")
            ]
            for name in ("test", "train")
        )
        return test, in_turn(train)

    return choice_task(
        f"sib200_{language}",
        "Topic of a sentence, seven topics",
        "classification",
        (language,),
        ("sib200",),
        read,
        choices=len(TOPICS),
        classes=TOPICS,
        style=_TOPIC_STYLE,
        shots=7,
        suites=("core",) if language == "en" else (),
        note="Test split, an example of each topic from train; the words around the text are English in all languages, "
        "as in the dataset's own prompts. Items are named by index_id, so stored answers join.",
    )


def _banking77() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        rows = files["banking77"]
        test, train = (_utterances(rows.read(f"{name}.csv"), name) for name in ("test", "train"))
        return test, in_turn(train)

    def _utterances(rows: Iterable[Mapping[str, str]], split: str) -> list[Question]:
        return [
            Question(f"{split}/{index}", f"Customer: {row['text'].strip()}\nIntent:", _spaced(row["category"]))
            for index, row in enumerate(rows)
        ]

    return _intent_task("banking77", "Intent of a bank's customer, 77 intents", "banking77", read, 77)


def _intent_task(name: str, title: str, dataset: str, read: Read, classes: int) -> Task:
    return generate_task(
        name,
        title,
        "classification",
        ("en",),
        (dataset,),
        read,
        LINE,
        _named_intent(),
        (mean("accuracy", chance=1 / classes),),
        shots=classes,
        note=f"One example of each of the {classes} intents comes first, which is how a model learns their names; the "
        "answer must be such a name.",
    )


def _named_intent() -> Scorer:
    def score(item: Item, output: Output) -> Score:
        text = output.samples[0].text.strip().split("\n")[0].strip()
        same = _spaced(text).casefold().rstrip(".") == item.target.casefold()
        return Score(
            statistics={"accuracy": one(same)},
            answer=text,
            explanation=f"right is {item.target!r}",
            expected=item.target,
        )

    return score


def _spaced(name: str) -> str:
    return name.replace("_", " ").strip()


def _clinc(files: Mapping[str, Rows], split: str) -> list[Question]:
    return [
        Question(f"{split}/{index}", f"User: {text}\nIntent:", _spaced(intent))
        for index, (text, intent) in enumerate(files["clinc150"].json("data_full.json")[split])
    ]


def _clinc150() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        return _clinc(files, "test"), in_turn(_clinc(files, "train"))

    return _intent_task("clinc150", "Intent of a request to an assistant, 150 intents", "clinc150", read, 150)


def _clinc150_scope() -> Task:
    choices = ("yes", "no")
    about = (
        "A voice assistant can help with banking, credit cards, kitchen and dining, home, cars and commuting, travel, "
        "utilities, work, small talk, and its own settings. Can it help with this request?\n\n"
    )

    def questions(files: Mapping[str, Rows], *splits: str) -> Iterator[Question]:
        for split in splits:
            for one_of in _clinc(files, split):
                answer = "no" if split.startswith("oos") else "yes"
                text = one_of.text.removesuffix("\nIntent:") + "\nCan help:"
                yield Question(one_of.id, text, answer, choices, groups={"scope": answer})

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        return questions(files, "test", "oos_test"), in_turn(list(questions(files, "val", "oos_val"))[10::25])

    return choice_task(
        "clinc150_oos",
        "Whether a request is out of an assistant's scope",
        "classification",
        ("en",),
        ("clinc150",),
        read,
        choices=2,
        classes=choices,
        style=Style(description=about),
        shots=6,
        note="4,500 requests in scope and 1,000 out of it: a model that always says yes has an accuracy of 82%, "
        "so read "
        "macro F1. The scope is told in one sentence, which is less than a trained classifier sees.",
    )


def _xsid_intent(language: str) -> Task:
    names = tuple(XSID_INTENTS.values())

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        test, valid = (
            [
                Question(f"{split}/{index}", f"Request: {joined(tokens)}\nIntent:", XSID_INTENTS[intent], names)
                for index, (intent, tokens, _) in enumerate(xsid_sentences(files["xsid"], language, split))
            ]
            for split in ("test", "valid")
        )
        return test, in_turn(valid)

    return choice_task(
        f"xsid_intent_{language}",
        "Intent of a request to an assistant",
        "classification",
        (language,),
        ("xsid",),
        read,
        choices=len(names),
        classes=names,
        style=Style(description="Which intent does the request have? " + "; ".join(names) + ".\n\n"),
        shots=8,
        note="Parallel requests. Intents are named in English words of our own."
        + (" Japanese has 9 of the 16 intents." if language == "ja" else ""),
    )


def xsid_sentences(rows: Rows, language: str, split: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(intent, tokens, BIO tags) of the sentences of a CoNLL file."""
    for block in rows.text(f"{language}.{split}.conll").strip().split("\n\n"):
        lines = block.split("\n")
        intent = next(line.split(" = ", 1)[1] for line in lines if line.startswith("# intent = "))
        columns = [line.split("\t") for line in lines if not line.startswith("#")]
        yield intent, [one[1] for one in columns], [one[3] for one in columns]


def joined(tokens: Sequence[str]) -> str:
    """Tokens as a text: a space between those that end and begin with a letter or digit of a spaced script."""
    text = ""
    for token in tokens:
        space = text and text[-1].isascii() and token[:1].isascii() and (token[:1].isalnum() or token[:1] in "$#(")
        text += f" {token}" if space else token
    return text


def _intent_3i4k() -> Task:
    def questions(rows: Rows, name: str) -> list[Question]:
        found = []
        for index, line in enumerate(rows.text(name).split("\n")):
            number, mark, text = line.partition("\t")
            if mark and text.strip():
                asked = f"발화: {text.strip()}\n유형:"
                found.append(Question(f"{name}/{index}", asked, KO_INTENTS[int(number)], KO_INTENTS))
        return found

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        rows = files["intent_3i4k"]
        return questions(rows, "fci_test.txt"), in_turn(questions(rows, "fci_train_val.txt"))

    return choice_task(
        "intent_3i4k",
        "What a Korean utterance intends",
        "classification",
        ("ko",),
        ("intent_3i4k",),
        read,
        choices=len(KO_INTENTS),
        classes=KO_INTENTS,
        style=Style(description="다음 한국어 발화의 유형을 고르세요: " + ", ".join(KO_INTENTS) + ".\n\n"),
        shots=14,
        note="Classes are very uneven: read macro F1. Names of the classes are our own words for the dataset's.",
    )


def _korean_chatbot() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        every = [
            Question(str(index), f"문장: {row['Q']}\n분류:", KO_EMOTIONS[int(row["label"])], KO_EMOTIONS)
            for index, row in enumerate(files["korean_chatbot"].read("ChatbotData.csv"))
        ]
        # One split only: every tenth row is asked, the others give examples; the same text may be in several rows.
        asked = every[::10]
        texts = {one.text for one in asked}
        return asked, in_turn(one for one in every if one.text not in texts)

    return choice_task(
        "korean_chatbot",
        "Feeling of a Korean utterance: everyday, parting, love",
        "classification",
        ("ko",),
        ("korean_chatbot",),
        read,
        choices=len(KO_EMOTIONS),
        classes=KO_EMOTIONS,
        style=Style(description="다음 문장은 " + ", ".join(KO_EMOTIONS) + " 가운데 무엇에 관한 것입니까?\n\n"),
        shots=6,
        note="Every tenth row; the dataset has one split.",
    )
