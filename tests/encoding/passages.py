"""Fifty texts of many lengths and scripts."""

from __future__ import annotations

_SENTENCES = (
    "The weather is lovely today.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "L'été dernier, nous avons traversé les Alpes à pied.",
    "В чащах юга жил бы цитрус? Да, но фальшивый экземпляр!",  # noqa: RUF001 - another script on purpose
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "العربية لغة جميلة يتحدث بها كثير من الناس.",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण।",
    "我能吞下玻璃而不伤身体。",
    "いろはにほへと ちりぬるを",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "def add(a: int, b: int) -> int: return a + b  # 🙂",
)

_REPEATED = (1, 2, 5, 12)

TEXTS: tuple[str, ...] = (
    *(" ".join([sentence] * times) for times in _REPEATED for sentence in _SENTENCES[:12]),
    _SENTENCES[12],
    "?",
)
