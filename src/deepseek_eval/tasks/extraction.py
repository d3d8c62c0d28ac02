"""Entities, personal data, slots, the state of a dialogue."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from deepseek_eval.scorers.spans import SPAN_METRICS, entities, spans_of_tags
from deepseek_eval.scorers.structured import STATE_METRICS, dialogue_state
from deepseek_eval.task import Generate, Rows, Task
from deepseek_eval.tasks.builders import Question, Style, generate_task, split
from deepseek_eval.tasks.classification import joined, xsid_sentences

_ASK = Generate(max_tokens=128, stop=("\n\n",))
_NONE = {"en": "none", "zh": "无", "ja": "なし", "ko": "없음"}
KLUE = {"사람": "PS", "장소": "LC", "기관": "OG", "날짜": "DT", "시간": "TI", "수량": "QT"}
WIKIPEDIA_JA = (
    *("人名", "法人名", "政治的組織名", "その他の組織名"),
    *("地名", "施設名", "製品名", "イベント名"),
)
PII = {
    "person": "PERSON",
    "address": "STREET_ADDRESS",
    "place": "GPE",
    "organization": "ORGANIZATION",
    "credit card": "CREDIT_CARD",
    "date or time": "DATE_TIME",
    "title": "TITLE",
    "phone number": "PHONE_NUMBER",
    "age": "AGE",
    "nationality": "NRP",
    "email": "EMAIL_ADDRESS",
    "zip code": "ZIP_CODE",
    "domain": "DOMAIN_NAME",
    "iban": "IBAN_CODE",
    "social security number": "US_SSN",
    "ip address": "IP_ADDRESS",
    "driver license": "US_DRIVER_LICENSE",
}
_KLUE_SENTENCE = re.compile(r"^## klue-ner-v1_dev_(\d+)-(\w+)", re.MULTILINE)
_DOMAINS = ("景点", "餐馆", "酒店", "地铁", "出租")

_Found = Iterable[tuple[str, str, str, list[tuple[str, str]]]]
"""(id, cluster, text, [(name of a type, words)]) of each sentence."""
_Read = Callable[[Rows], _Found]


def tasks() -> Iterator[Task]:
    """All of them."""
    yield _klue_ner()
    yield _ner_wikipedia_ja()
    yield _presidio()
    for language in ("en", "zh", "ja"):
        yield _xsid_slots(language)
    yield _crosswoz()


def listed(found: Sequence[tuple[str, str]], none: str) -> str:
    """Entities as a model should write them: a line for each."""
    return "\n".join(f"{name}: {text}" for name, text in found) or none


def _entity_task(
    name: str,
    title: str,
    language: str,
    dataset: str,
    read: _Read,
    types: Mapping[str, str],
    description: str,
    *,
    held_out: int,
    shots: int,
    note: str,
    suites: tuple[str, ...] = (),
) -> Task:
    def questions(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        every = [
            Question(
                ident,
                f"{text}\n->\n",
                listed(found, _NONE[language]),
                target=[[types[kind], value] for kind, value in found],
                cluster=cluster,
            )
            for ident, cluster, text, found in read(files[dataset])
        ]
        asked, kept = split(every, held_out)
        others = {one.cluster for one in asked if one.cluster}
        # Examples with entities first: one without is a poor teacher, but there should be one.
        usable = [one for one in kept if not one.cluster or one.cluster not in others]
        usable = list({one.cluster or one.id: one for one in usable}.values())
        return asked, sorted(usable, key=lambda one: (len(one.target) == 0, -len({k for k, _ in one.target})))

    return generate_task(
        name,
        title,
        "extraction",
        (language,),
        (dataset,),
        questions,
        _ASK,
        entities(types),
        SPAN_METRICS,
        style=Style(description=description, delimiter=""),
        shots=shots,
        suites=suites,
        note=note + " An entity is right if its type and text are; places are not asked for.",
    )


def _klue_ner() -> Task:
    names = {kind: name for name, kind in KLUE.items()}

    def read(rows: Rows) -> _Found:
        for block in rows.text("klue-ner-v1.1_dev.tsv").split("\n\n"):
            head = _KLUE_SENTENCE.search(block)
            lines = [line.split("\t") for line in block.split("\n") if line and not line.startswith("## ")]
            if head is None or any(len(line) != 2 for line in lines):
                continue
            text = "".join(char for char, _ in lines)
            spans = spans_of_tags([tag for _, tag in lines])
            yield head[1], "", text, [(names[kind], text[start:end]) for kind, start, end in spans]

    return _entity_task(
        "klue_ner",
        "Named entities in Korean news and reviews, six types",
        "ko",
        "klue",
        read,
        KLUE,
        "문장에서 개체명을 찾아 한 줄에 하나씩 '유형: 개체명'으로 쓰세요. 유형: " + ", ".join(KLUE) + ".\n\n",
        held_out=40,
        shots=5,
        note="KLUE 1.1, dev; the last 40 sentences are kept back as examples.",
    )


def _ner_wikipedia_ja() -> Task:
    def read(rows: Rows) -> _Found:
        for index, row in enumerate(rows.json("ner.json")):
            yield str(index), "", row["text"], [(one["type"], one["name"]) for one in row["entities"]]

    return _entity_task(
        "ner_wikipedia_ja",
        "Named entities in Japanese Wikipedia, eight types",
        "ja",
        "ner_wikipedia_ja",
        read,
        {name: name for name in WIKIPEDIA_JA},
        "文中の固有表現を一行に一つずつ「種類: 固有表現」の形で書きなさい。種類: " + "、".join(WIKIPEDIA_JA) + "。\n\n",
        held_out=60,
        shots=5,
        note="The last 60 sentences are kept back as examples.",
    )


def _presidio() -> Task:
    names = {kind: name for name, kind in PII.items()}

    def read(rows: Rows) -> _Found:
        # Sentences of one template are alike: sorted by template, so that examples are of other templates than items.
        for index, row in sorted(enumerate(rows.json("synth_dataset_v2.json")), key=lambda one: one[1]["template_id"]):
            spans = sorted(row["spans"], key=lambda one: one["start_position"])
            found = [(names[one["entity_type"]], " ".join(one["entity_value"].split())) for one in spans]
            yield str(index), str(row["template_id"]), " ".join(row["full_text"].split()), found

    return _entity_task(
        "presidio_pii",
        "Personal data in English sentences, 17 types",
        "en",
        "presidio_synth",
        read,
        PII,
        "Find all personal data in the text. Write one per line as 'type: text'. Types: " + ", ".join(PII) + ".\n\n",
        held_out=100,
        shots=6,
        note="Made-up people. Sentences are of templates; the examples are of other templates than the questions.",
    )


def _xsid_slots(language: str) -> Task:
    def sentences(rows: Rows, split_name: str) -> _Found:
        for index, (_, tokens, tags) in enumerate(xsid_sentences(rows, language, split_name)):
            found = [(_slot_name(kind), joined(tokens[start:end])) for kind, start, end in spans_of_tags(tags)]
            yield f"{split_name}/{index}", "", joined(tokens), found

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        test, valid = (
            [
                Question(ident, f"{text}\n->\n", listed(found, "none"), target=[list(one) for one in found])
                for ident, _, text, found in sentences(files["xsid"], name)
            ]
            for name in ("test", "valid")
        )
        # Examples that show new slots come first, then the others.
        seen: set[str] = set()
        examples: list[Question] = []
        others: list[Question] = []
        for one in sorted(valid, key=lambda one: -len(one.target)):
            kinds = {kind for kind, _ in one.target}
            (examples if kinds - seen else others).append(one)
            seen |= kinds
        return test, examples + others

    return generate_task(
        f"xsid_slots_{language}",
        "What a request to an assistant names",
        "extraction",
        (language,),
        ("xsid",),
        read,
        _ASK,
        entities({name: name for name in XSID_SLOTS}),
        SPAN_METRICS,
        style=Style(description="List the slots of each request, one per line, as 'slot: words'.\n\n", delimiter=""),
        shots=8,
        note="Slots have English names in all languages. A slot is right if its name and words are.",
    )


def _slot_name(tag: str) -> str:
    return tag.replace("/", " ").replace("_", " ")


XSID_SLOTS = (
    *("album", "artist", "best rating", "condition description", "condition temperature", "cuisine", "datetime"),
    *("entity name", "facility", "genre", "location", "movie name", "movie type", "music item", "object location type"),
    *("object name", "object part of series type", "object select", "object type", "party size description"),
    *("party size number", "playlist", "rating unit", "rating value", "recurring datetime", "reference"),
    *("reminder todo", "restaurant name", "restaurant type", "served dish", "service", "sort", "track"),
    *("weather attribute", "alarm name", "ordinal", "negation", "weather temperatureUnit", "timer attributes"),
)


def _crosswoz() -> Task:
    turns_asked = (2, 5, 8)

    def dialogues(rows: Rows, name: str) -> Iterator[Question]:
        for ident, dialogue in rows.json(f"{name}.json.zip").items():
            lines: list[str] = []
            turn = 0
            for message in dialogue["messages"]:
                user = message["role"] == "usr"
                if not user:
                    turn += 1
                    state = _state(message["sys_state_init"])
                    if turn in turns_asked and state:
                        text = "对话：\n" + "\n".join(lines) + "\n用户目前的要求：\n"
                        shown = listed(list(state.items()), "无")
                        yield Question(f"{ident}/{turn}", text, shown, target=state, cluster=ident)
                lines.append(("用户：" if user else "系统：") + message["content"])

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        rows = files["crosswoz"]
        examples = sorted(dialogues(rows, "val"), key=lambda one: (len(one.target) < 4, len(one.text)))
        return dialogues(rows, "test"), examples[:16]

    return generate_task(
        "crosswoz_state",
        "What the user of a Chinese dialogue has asked for so far",
        "dialogue",
        ("zh",),
        ("crosswoz",),
        read,
        Generate(max_tokens=160, stop=("\n\n", "对话：")),
        dialogue_state({slot: slot for slot in SLOTS}),
        STATE_METRICS,
        style=Style(
            description="根据对话，列出用户目前对景点、餐馆、酒店、地铁和出租的要求，每行一个“领域-属性: 值”。\n\n",
            delimiter="",
        ),
        shots=2,
        note=f"Before the system's answers number {', '.join(map(str, turns_asked))} of each test dialogue. "
        f"Slots are those "
        "the dataset's system state has; slots that hold a list count as one value.",
    )


_ATTRIBUTES = (
    *("名称", "评分", "门票", "游玩时间", "推荐菜", "人均消费", "酒店类型", "酒店设施", "价格"),
    *("出发地", "目的地", "周边景点", "周边餐馆", "周边酒店"),
)
SLOTS = tuple(f"{domain}-{attribute}" for domain in _DOMAINS for attribute in _ATTRIBUTES)


def _state(system: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """Slots that are set, as text."""
    return {
        f"{domain}-{attribute}": str(value)
        for domain, slots in system.items()
        for attribute, value in slots.items()
        if value and attribute != "selectedResults"
    }
