"""The text on which an export compares tokenizers: source code and many scripts.

The code is that of Python's own standard library, which every machine has; the rest stands here.
All of it is in Unicode's composed form (NFC), because llama.cpp does not normalise: what that does
to other text is a stated caveat of the tokenizer, not an error of the export.
"""

from __future__ import annotations

import sysconfig
import unicodedata
from pathlib import Path

_SOURCES = ("textwrap.py", "json/decoder.py", "heapq.py", "argparse.py", "html/entities.py")
_PIECE = 4000  # characters; a tokenizer that differs shows itself in any piece
SCRIPTS = (
    "The quick brown fox can't, won't, shouldn't've jumped: 3.14159, 1,000,000 and 0x7FFF_FFFF!",
    "Größe, naïveté, façade, smörgåsbord, Œuvre, ½ Straße; œ æ ß ð þ ł",
    "Быстрая коричневая лиса перепрыгивает через ленивую собаку. Ёлка, 42 рубля.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί· ἄνθρωπος.",
    "敏捷的棕色狐狸跳过了懒狗。一二三，四五六！「引用」《書名》繁體字也在這裡。",
    "素早い茶色の狐はのろまな犬を飛び越える。カタカナ、ひらがな、漢字、１２３。",
    "빠른 갈색 여우가 게으른 개를 뛰어넘습니다. 한국어 문장입니다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول. ١٢٣٤، مرحبًا!",
    "השועל החום המהיר קופץ מעל הכלב העצלן. שָׁלוֹם",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते पर कूदती है। १२३ क्षत्रिय",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ ๑๒๓",
    "Con cáo nâu nhanh nhẹn nhảy qua con chó lười biếng. Tiếng Việt có dấu.",
    "🦊🐶 jumps 🚀✨ 👩‍👩‍👧‍👦 🇩🇪🇯🇵 👍🏽 ❤️ ☕️",
    "∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε; ∑ᵢ xᵢ² ≤ √2·π, ℝⁿ→ℂ",
    "tabs\tand\t\ttabs, spaces   and      more, trailing   \n\n\n\n  indented\r\nwindows\rmac",
    "control \x01\x02\x1b[31m\x7f characters, \u200bzero width\u200d, \ufeffmark",
    "\u00a0no-break\u3000wide\u2028line\u0085next",
    "a" * 50 + " " + "0123456789" * 8 + " " + "=" * 70 + " ....,,,,;;;;!!!!????",
    "HTTPServer2XMLParser_v1.0-rc2/path/to/file.tar.gz?query=a%20b&c=d#fragment user@example.org",
    "def f(x):\n    return {k: v**2 for k, v in x.items() if k != '\\n'}  # comment\n",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE I'M you'LL ’s ’t",
    " leading space",
    "\n",
    " ",
)


def proof_texts() -> list[str]:
    """All pieces of text, none empty."""
    library = Path(sysconfig.get_paths()["stdlib"])
    out = list(SCRIPTS)
    for name in _SOURCES:
        try:
            text = (library / name).read_text(encoding="utf-8")
        except OSError:  # a stripped installation: the scripts above are still there
            continue
        out.extend(text[i : i + _PIECE] for i in range(0, len(text), _PIECE))
    return [unicodedata.normalize("NFC", text) for text in out]


def prompt_text() -> str:
    """What the prompt of the logits' comparison is cut from."""
    return (
        "def read_lines(path):\n    with open(path, encoding='utf-8') as file:\n"
        "        return [line.rstrip() for line in file]\n\nWhen the file is missing, the caller"
    )
