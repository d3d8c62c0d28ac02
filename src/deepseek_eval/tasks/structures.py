"""JSON after a schema and calls of tools, made from templates in four languages, so that the right answer is known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from deepseek_eval.scorers.structured import JSON_METRICS, TOOL_METRICS, json_answer, tool_calls
from deepseek_eval.task import Generate, Item, Message, Rows, Task

ITEMS = 80
LANGUAGES = ("en", "zh", "ja", "ko")
_NOTE = f"{ITEMS} requests made from templates with a seed; names and figures are invented."


def tasks() -> Iterator[Task]:
    """All of them."""
    for language in LANGUAGES:
        yield _json_schema(language)
    for language in LANGUAGES:
        yield _tool_calling(language)


NAMES = {
    "en": ("Alice Moore", "Daniel Reed", "Grace Hall", "Omar Khan", "Nina Petrova", "Luis Garcia"),
    "zh": ("李明", "王芳", "张伟", "陈静", "刘洋", "赵丽"),
    "ja": ("佐藤健", "鈴木美咲", "高橋翔太", "田中葵", "伊藤蓮", "渡辺結衣"),
    "ko": ("김민준", "이서연", "박지훈", "최수아", "정도윤", "강하은"),
}
CITIES = {
    "en": ("Lisbon", "Toronto", "Nairobi", "Oslo", "Lima", "Sydney"),
    "zh": ("北京", "成都", "杭州", "西安", "广州", "昆明"),
    "ja": ("東京", "大阪", "札幌", "福岡", "京都", "仙台"),
    "ko": ("서울", "부산", "대구", "인천", "광주", "제주"),
}
GOODS = {
    "en": ("notebook", "lamp", "backpack", "kettle", "chair", "umbrella"),
    "zh": ("笔记本", "台灯", "背包", "水壶", "椅子", "雨伞"),
    "ja": ("ノート", "ランプ", "リュック", "やかん", "椅子", "傘"),
    "ko": ("공책", "램프", "배낭", "주전자", "의자", "우산"),
}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer", "minimum": 0}
_STATUS = ("paid", "unpaid")
PERSON = _object({"name": _TEXT, "age": _WHOLE, "city": _TEXT})
ORDER = _object(
    {
        "customer": _TEXT,
        "items": {"type": "array", "items": _object({"product": _TEXT, "quantity": _WHOLE}), "minItems": 1},
        "status": {"enum": list(_STATUS)},
    }
)
_INSTRUCTION = {
    "en": (
        "Write the facts of the text as JSON that follows the schema, with the values of the text.\n\nSchema: {}\n\n"
        "Text: {}\n\nAnswer with the JSON only."
    ),
    "zh": "请把文中的信息写成符合模式的JSON，填入文中的值。\n\n模式：{}\n\n文本：{}\n\n只回答JSON。",
    "ja": "文の情報をスキーマに従うJSONで、文中の値を入れて書いてください。\n\nスキーマ：{}\n\n文："
    "{}\n\nJSONだけを答えてください。",
    "ko": "글의 정보를 스키마를 따르는 JSON으로, 글의 값을 넣어 쓰세요.\n\n스키마: {}\n\n글: {}\n\nJSON만 답하세요.",
}
_PERSON_TEXT = {
    "en": "{name} is {age} years old and lives in {city}.",
    "zh": "{name}今年{age}岁，住在{city}。",
    "ja": "{name}さんは{age}歳で、{city}に住んでいます。",
    "ko": "{name} 씨는 {age}세이고 {city}에 살고 있습니다.",
}
_ORDER_TEXT = {
    "en": (
        "{} ordered {}.",
        "{1} of the product {0}",
        " and ",
        {"paid": "It is paid.", "unpaid": "It is not paid yet."},
    ),
    "zh": ("{}订购了{}。", "商品“{0}”{1}件", "和", {"paid": "已付款。", "unpaid": "尚未付款。"}),
    "ja": (
        "{}さんは{}を注文しました。",
        "商品「{0}」{1}点",
        "と",
        {"paid": "支払い済みです。", "unpaid": "まだ支払われていません。"},
    ),
    "ko": (
        "{} 씨가 {} 주문했습니다.",
        "상품 '{0}' {1}개",
        "와 ",
        {"paid": "결제했습니다.", "unpaid": "아직 결제하지 않았습니다."},
    ),
}


def _person(random: Random, language: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    value = {
        "name": random.choice(NAMES[language]),
        "age": random.randint(19, 88),
        "city": random.choice(CITIES[language]),
    }
    return PERSON, _PERSON_TEXT[language].format(**value), value


def _order(random: Random, language: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    template, each, joint, states = _ORDER_TEXT[language]
    goods = [(one, random.randint(2, 30)) for one in random.sample(GOODS[language], random.randint(1, 3))]
    status, customer = random.choice(_STATUS), random.choice(NAMES[language])
    text = template.format(customer, joint.join(each.format(*one) for one in goods))
    value = {
        "customer": customer,
        "items": [{"product": product, "quantity": quantity} for product, quantity in goods],
        "status": status,
    }
    return ORDER, f"{text} {states[status]}" if language in ("en", "ko") else text + states[status], value


def _json_schema(language: str) -> Task:
    def items(files: Mapping[str, Rows], shots: int) -> Iterator[Item]:
        for index in range(ITEMS):
            random = Random(f"json/{language}/{index}")
            make = (_person, _order)[index % 2]
            schema, text, value = make(random, language)
            yield Item(
                id=str(index),
                prompt=(Message("user", _INSTRUCTION[language].format(json.dumps(schema), text)),),
                ask=Generate(max_tokens=192),
                target={"schema": schema, "value": value},
                groups={"schema": make.__name__.strip("_")},
            )

    return Task(
        name=f"json_schema_{language}",
        title="Write facts as JSON after a schema",
        kind="instructions",
        languages=(language,),
        datasets=(),
        items=items,
        scorer=json_answer(),
        metrics=JSON_METRICS,
        suites=("core",) if language == "en" else (),
        note=_NOTE
        + " The schema is told in words and not enforced while the answer is written: a server that enforces "
        "schemas makes any model's JSON valid.",
    )


def _function(name: str, description: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": _object(properties)},
    }


TOOLS = (
    _function("get_weather", "Weather of a city on a day", {"city": _TEXT, "day": {"enum": ["today", "tomorrow"]}}),
    _function("send_money", "Send an amount of money to a person", {"recipient": _TEXT, "amount": _WHOLE}),
    _function("set_alarm", "Set an alarm", {"hour": {**_WHOLE, "maximum": 23}, "minute": {**_WHOLE, "maximum": 59}}),
    _function("search_products", "Search a shop for a product", {"product": _TEXT, "max_price": _WHOLE}),
)
_REQUESTS: dict[str, dict[str, Any]] = {
    "en": {
        "get_weather": ("What will the weather be like in {city} {day}?", {"today": "today", "tomorrow": "tomorrow"}),
        "send_money": "Send {amount} to {recipient}.",
        "set_alarm": "Set an alarm for {hour:02d}:{minute:02d}.",
        "search_products": "Find me a {product} that costs at most {max_price}.",
        "none": ("Thank you, that is all.", "What is a good name for a cat?", "Tell me a joke."),
        "joint": " Also: ",
    },
    "zh": {
        "get_weather": ("{city}{day}的天气怎么样？", {"today": "今天", "tomorrow": "明天"}),
        "send_money": "给{recipient}转账{amount}元。",
        "set_alarm": "设一个{hour:02d}:{minute:02d}的闹钟。",
        "search_products": "帮我找一个不超过{max_price}元的{product}。",
        "none": ("谢谢，没有别的事了。", "给猫起什么名字好？", "讲个笑话吧。"),
        "joint": "另外，",
    },
    "ja": {
        "get_weather": ("{day}の{city}の天気はどうですか。", {"today": "今日", "tomorrow": "明日"}),
        "send_money": "{recipient}に{amount}円を送金してください。",
        "set_alarm": "{hour:02d}:{minute:02d}にアラームを設定してください。",
        "search_products": "{max_price}円以下の{product}を探してください。",
        "none": ("ありがとう、以上です。", "猫の名前は何がいいですか。", "冗談を言ってください。"),
        "joint": "それから、",
    },
    "ko": {
        "get_weather": ("{day} {city} 날씨가 어때요?", {"today": "오늘", "tomorrow": "내일"}),
        "send_money": "{recipient}에게 {amount}원을 보내 주세요.",
        "set_alarm": "{hour:02d}:{minute:02d}에 알람을 맞춰 주세요.",
        "search_products": "{max_price}원 이하의 {product} 찾아 주세요.",
        "none": ("고마워요, 이제 됐어요.", "고양이 이름으로 뭐가 좋을까요?", "농담 하나 해 주세요."),
        "joint": " 그리고 ",
    },
}


def _call(random: Random, language: str, name: str) -> tuple[dict[str, Any], str]:
    """(arguments, the request for it)."""
    words = _REQUESTS[language][name]
    if name == "get_weather":
        template, days = words
        arguments = {"city": random.choice(CITIES[language]), "day": random.choice(["today", "tomorrow"])}
        return arguments, template.format(city=arguments["city"], day=days[arguments["day"]])
    drawn: dict[str, dict[str, Any]] = {
        "send_money": {"recipient": random.choice(NAMES[language]), "amount": random.randrange(10, 900, 5)},
        "set_alarm": {"hour": random.randint(5, 23), "minute": random.randrange(0, 60, 5)},
        "search_products": {"product": random.choice(GOODS[language]), "max_price": random.randrange(20, 500, 10)},
    }
    return drawn[name], words.format(**drawn[name])


def _tool_calling(language: str) -> Task:
    def items(files: Mapping[str, Rows], shots: int) -> Iterator[Item]:
        names = [tool["function"]["name"] for tool in TOOLS]
        for index in range(ITEMS):
            random = Random(f"tools/{language}/{index}")
            count = (1, 1, 1, 2, 0)[index % 5]
            made = [(name, *_call(random, language, name)) for name in random.sample(names, count)]
            text = _REQUESTS[language]["joint"].join(request for _, _, request in made)
            yield Item(
                id=str(index),
                prompt=(Message("user", text or random.choice(_REQUESTS[language]["none"])),),
                ask=Generate(max_tokens=160, tools=TOOLS),
                target=[{"name": name, "arguments": arguments} for name, arguments, _ in made],
                groups={"calls": str(count)},
            )

    return Task(
        name=f"tool_calling_{language}",
        title="Call the right tools with the right arguments, or none",
        kind="tools",
        languages=(language,),
        datasets=(),
        items=items,
        scorer=tool_calls(),
        metrics=TOOL_METRICS,
        suites=("core",) if language == "en" else (),
        note=_NOTE
        + " Of five requests one needs no tool and one needs two calls. Tools are shown by the model's own chat "
        "template; a model whose template has no place for tools cannot do this.",
    )
